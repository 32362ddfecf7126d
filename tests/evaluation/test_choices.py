"""Multiple choice: which option an answer names, likelihoods over orders, controls, and what a report tells of them."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from salmonn.common.errors import UserError
from salmonn.config.loading import load_config
from salmonn.evaluation.choice_answering import option_losses, without_audio
from salmonn.evaluation.choices import named_option, orders, pick, with_options
from salmonn.evaluation.clips import clips_of
from salmonn.evaluation.metrics import METRICS, Texts, measure
from salmonn.evaluation.metrics.choices import Pick
from salmonn.evaluation.pipeline import evaluate_tasks
from salmonn.evaluation.tasks import EvalTask
from salmonn.model.salmonn import SALMONN
from tests.fixtures.mini_world import mini_options
from tests.fixtures.stub_model import WORDS, StubModel, config_for

FOUR = ["Man", "Woman", "An old man", "Robot"]
BOTH = ["choice_likelihood", "choice_named"]


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        ("B", 1),
        ("b", 1),
        ("(B).", 1),
        ("B. Woman", 1),
        ("(b) woman", 1),
        ("B) it is her", 1),
        ("The answer is B.", 1),
        ("The correct option: (B)", 1),
        ("woman", 1),
        ("It is a woman who speaks", 1),
        ("an old man", 2),
        ("I hear an old man speaking, not a robot", 2),
        ("not a man but a woman", 1),
        ("the answer is A robot", 3),
        # what is not told is not guessed
        ("", None),
        ("E", None),
        ("E. woman", None),
        ("B. Robot", None),
        ("A dog barks", None),
        ("a man or a woman", None),
        ("(A) Man (B) Woman (C) An old man (D) Robot", None),
        ("The answer is A or B", None),
        ("the answer is B, D", None),
        ("not a robot", None),
        ("manly womanhood", None),
        ("Both of them", None),
    ],
)
def test_an_answer_names_one_option_or_none(answer, named):
    assert named_option(answer, FOUR) == named


@pytest.mark.parametrize(
    ("answer", "options", "named"),
    [
        ("no", ["yes", "no"], 1),
        ("No, there is none", ["yes", "no"], 1),
        ("120 bpm", ["20 bpm", "120 bpm"], 1),
        ("about 3.5 s", ["3 s", "3.5 s"], 1),
        ("答案是狗", ["猫", "狗"], 1),
        ("D", ["C", "D", "E", "F"], None),  # the fourth, or the second
        ("the key of D", ["C", "D", "E", "F"], 1),
        ("It doesn't rain, the wind blows", ["rain", "wind"], 1),
        ("C", ["one", "two"], None),
    ],
)
def test_options_of_other_kinds(answer, options, named):
    assert named_option(answer, options) == named


def test_each_option_stands_at_each_place_once_however_the_file_orders_them():
    expected = orders(FOUR)
    assert [sorted(column) for column in zip(*expected, strict=True)] == [sorted(FOUR)] * 4
    for seed in range(5):
        assert orders(random.Random(seed).sample(FOUR, 4)) == expected
    assert with_options("Who?", ["b", "a"]) == "Who? Choose one of the options: (A) b (B) a"


def test_the_likeliest_option_is_that_of_the_mean_over_the_orders():
    losses = [[1.0, 2.0, 9.0], [1.0, 0.5, 9.0], [3.0, 2.0, 9.0]]  # of a, b, c; means 1.67, 1.5, 9
    found = pick("(A)", ["b", "c", "a"], "b", losses)
    assert found == Pick(n_options=3, right=0, named=0, likeliest=0, places=(0, 0, 2))
    assert pick("?", ["b", "c", "a"], "d", losses).right is None


def measured(name: str, picks: list[Pick | None]):
    texts = Texts([""] * len(picks), [[]] * len(picks), picks=picks)
    return measure(METRICS[name], texts, [True] * len(picks))


def test_accuracies_unparsed_answers_and_favoured_places_are_told():
    picks = [
        Pick(2, right=0, named=0, likeliest=0, places=(0, 1)),
        Pick(2, right=1, named=None, likeliest=0, places=(0, 0)),  # always the first place: the orders disagree
        Pick(4, right=3, named=3, likeliest=3, places=(0, 0, 0, 0)),
        Pick(4, right=None, named=1, likeliest=1, places=(1, 0, 3, 2)),
        None,  # its right answer is withheld
    ]
    named, likely = measured("choice_named", picks), measured("choice_likelihood", picks)
    assert (named.value, named.clips, named.details["unparsed"], named.details["without_right_option"]) == (
        0.5,
        4,
        1,
        1,
    )
    assert named.details["chance"] == likely.details["chance"] == 0.375
    assert named.details["places_named"] == {"A": 1 / 3, "B": 1 / 3, "C": 0, "D": 1 / 3}
    assert named.details["places_right"] == {"A": 1 / 3, "B": 1 / 3, "C": 0, "D": 1 / 3}
    assert (likely.value, likely.details["order_dependent"]) == (0.5, 2)
    assert likely.details["places_chosen"] == {"A": 8 / 12, "B": 2 / 12, "C": 1 / 12, "D": 1 / 12}
    assert likely.details["places_even"] == {"A": 4 / 12, "B": 4 / 12, "C": 2 / 12, "D": 2 / 12}
    assert "1 of 4 answers name no single option, counted as wrong" in named.details["note"]
    assert "depends on the order for 2 of 4 clips" in likely.details["note"]
    assert measured("choice_named", [picks[1]]).details["places_named"] == {"A": 0, "B": 0}


@pytest.mark.parametrize(
    ("choices", "told"),
    [
        (None, "no list of texts"),
        ("a, b", "no list of texts"),
        (["a", 1], "no list of texts"),
        (["a", " "], "no list of texts"),
        (["a"], "1 options, of 2 to 26"),
        (["a", "b", "a"], "one stands there twice"),
        (["a", "<Speech>b"], "one holds <Speech>, where the audio stands in prompts"),
    ],
)
def test_a_clip_without_options_is_refused(choices, told):
    entries = [
        {"path": "1.wav", "text": "a", "choices": ["a", "b"]},
        {"path": "2.wav", "text": "a", "choices": choices},
    ]
    with pytest.raises(UserError, match=rf"1 entries have no options .*entry 1 \({told}\)"):
        clips_of(entries, EvalTask("t", metrics=BOTH), "ann.json")


class ChoosingStub(StubModel):
    """A stub that finds the colour it hears likely, and without audio whatever stands at the first place."""

    def __init__(self) -> None:
        super().__init__()
        self.config = type("Config", (), {"prompt_template": "USER: {}\nASSISTANT:"})()
        self.llama_model = torch.nn.Module()
        self.llama_model.get_input_embeddings = lambda: torch.nn.Embedding(2, 3)

    def encode_clips(self, raw_wav, _mask):
        return [torch.full((1, 3), wav.max()) for wav in raw_wav]

    def answer_loss(self, embeds, prompts, texts) -> dict[str, Any]:
        losses = []
        for audio, prompt, text in zip(embeds, prompts, texts, strict=True):
            assert f") {text}" in prompt
            assert ("<Speech>" in prompt) == bool(len(audio))
            likely = f") {WORDS[round(10 * audio[0, 0].item())]}" if len(audio) else ""
            is_likely = likely in f") {text}" if len(audio) else f"(A) {text}" in prompt
            losses.append(0.1 if is_likely else 1.0)
        return {"sample_loss": torch.tensor(losses)}

    def answer_embeds(self, embeds, prompts, _settings) -> list[dict[str, Any]]:
        assert not any(map(len, embeds))
        return [{"text": "I hear nothing", "token_ids": [7], "finished": True}] * len(prompts)


def choice_report(world: Path, seed: int, *options: str, entries: list[dict] | None = None) -> dict[str, Any]:
    rng = random.Random(seed)
    clips = [
        {"path": f"{level}.wav", "text": WORDS[level], "task": "QA", "Q": "Which colour?"} for level in range(1, 5)
    ]
    entries = entries or [{**clip, "choices": rng.sample(WORDS[1:5], 4)} for clip in clips]
    config = config_for(world, entries, *options, f"evaluate.name=choices{seed}")
    prompts = {"QA": "<Speech><SpeechHere></Speech> {}"}
    (world / "prompts.json").write_text(json.dumps(prompts))
    task = EvalTask("mc", "colours", f"{world}/ann.json", ["QA"], metrics=BOTH)
    return evaluate_tasks(config, [task], world / f"results/choices{seed}")["mc"]


@pytest.fixture
def _choosing(stub_model, monkeypatch) -> None:
    """In the place of the stub model, which is in the place of what a config names."""
    assert not stub_model.heard
    monkeypatch.setattr(SALMONN, "from_config", lambda *_args, **_options: ChoosingStub())


@pytest.mark.usefixtures("_choosing")
def test_a_listening_model_is_at_chance_or_below_without_its_audio_and_the_order_of_the_file_changes_nothing(
    stub_world,
):
    reports = [choice_report(stub_world, seed, "evaluate.shuffled_control=true") for seed in range(3)]
    for report in reports:
        scores = report["scores"]
        assert (scores["choice_likelihood"], scores["choice_named"]) == (1.0, 1.0)
        assert (scores["choice_likelihood_shuffled"], scores["choice_named_shuffled"]) == (0.0, 0.0)
        assert scores["choice_likelihood_no_audio"] == 0.25  # of equal means the first: chance
        assert scores["choice_named_no_audio"] == 0.0  # names none
        assert report["details"]["choice_likelihood"]["chance"] == 0.25
        assert report["details"]["choice_likelihood"] == reports[0]["details"]["choice_likelihood"]
        assert any("no audio in it" in note for note in report["notes"])
        assert any("names an option by its letter" in note for note in report["notes"])
    page = (stub_world / "results/choices0/mc/report.md").read_text()
    assert "| shuffled audio | no audio |" in page
    line = json.loads((stub_world / "results/choices0/mc/predictions.jsonl").read_text().splitlines()[0])
    assert (line["named"], line["likeliest"]) == ("red", "red")


@pytest.mark.usefixtures("_choosing")
def test_withheld_answers_and_absent_controls_are_told(stub_world):
    entries = [
        {"path": f"{level}.wav", "text": "", "task": "QA", "Q": "Which?", "choices": ["red", "blue"]}
        for level in (1, 2)
    ]
    report = choice_report(stub_world, 9, entries=entries)
    assert report["scores"] == {"choice_likelihood": None, "choice_named": None}
    assert "options and a known answer" in report["unavailable"]["choice_named"]
    assert any("asked without controls" in note for note in report["notes"])
    lines = (stub_world / "results/choices9/mc/predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["named"] for line in lines] == ["red", "blue"]  # what would be handed in


def test_the_losses_are_those_of_the_models_own_loss_and_no_audio_means_no_audio_token(golden):
    """Against the model's forward, one option at a time."""
    from types import SimpleNamespace

    model = golden("base").model
    wav = 0.1 * torch.randn(1, 32_000, generator=torch.Generator().manual_seed(0))
    batch = {"raw_wav": wav, "padding_mask": torch.zeros_like(wav, dtype=torch.bool)}
    config = load_config("configs/evaluate.yaml", ["run.device=cpu", "run.amp=False"])
    prompt = "USER: <Speech><SpeechHere></Speech> {}\nASSISTANT:"
    clip = SimpleNamespace(task="QA", question="Who?", choices=("woman", "an old man"), id="c", path="c.wav")
    one = SimpleNamespace(clips=[clip], prompts={"QA": prompt})
    request = [SimpleNamespace(position=0)]
    (heard,) = option_losses(model, config, one, True, batch, request)
    (unheard,) = option_losses(model, config, one, False, batch, request)
    for order, asked in enumerate((["an old man", "woman"], ["woman", "an old man"])):
        for place, option in enumerate(["an old man", "woman"]):
            text = prompt.replace("{}", with_options("Who?", asked))
            with torch.no_grad():
                alone = model({**batch, "text": [option], "prompts": [text]}, verbose=True)["sample_loss"].item()
            assert heard.losses[order][place] == pytest.approx(alone, rel=1e-4)
    assert not np.allclose(heard.losses, unheard.losses)
    assert without_audio(prompt) == "USER: <SpeechHere> {}\nASSISTANT:"


def test_a_choice_set_of_the_miniature_world_shows_no_order_effect(mini_world, tmp_path):
    """Its weights are random: no skill, but likelihoods in which the order of the file must not show."""
    entries = json.loads((mini_world / "ann/test_QA.json").read_text())["annotation"][:6]
    options = sorted({entry["text"] for entry in entries} | {"a siren", "seven"})[:4]
    found = []
    for seed in range(2):
        shuffled = [
            {**entry, "choices": random.Random(seed + i).sample(options, len(options))}
            for i, entry in enumerate(entries)
        ]
        (tmp_path / f"{seed}.json").write_text(json.dumps({"annotation": shuffled}))
        task = EvalTask("mc", "", str(tmp_path / f"{seed}.json"), ["QA"], metrics=BOTH)
        settings = ["generate.max_new_tokens=4", "generate.num_beams=1", "model.ckpt="]
        config = load_config("configs/mini/evaluate.yaml", [*mini_options(mini_world, tmp_path), *settings])
        report = evaluate_tasks(config, [task], tmp_path / f"results{seed}")["mc"]
        lines = (tmp_path / f"results{seed}/mc/predictions.jsonl").read_text().splitlines()
        found.append(([json.loads(line)["likeliest"] for line in lines], report["details"]["choice_likelihood"]))
        assert {f"{name}_{kind}" for name in BOTH for kind in ("shuffled", "no_audio")} <= report["scores"].keys()
    assert found[0] == found[1]
