"""Answers in another task's form are found, ordinary ones are left alone, and the score without them is told."""

import json
import random
import sys
from pathlib import Path

import pytest

from salmonn.evaluation.clips import EvalExample
from salmonn.evaluation.requests import Prediction
from salmonn.evaluation.task_confusion import confusion_notes, form_of
from tests.fixtures.eval_set_files import TRANSCRIPTS
from tests.fixtures.paths import ROOT
from tests.fixtures.stub_model import StubModel, config_for, entry, results

sys.path.insert(0, str(ROOT))

from util.mini_world import corpus, scenes

SAID = ["he began a confused complaint against the wizard"]


@pytest.mark.parametrize(
    ("answer", "references", "form"),
    [
        ("HH IY B IH G AE N AH", SAID, "phonemes"),
        ("hh iy0 b ih0 g ae1 n", SAID, "phonemes"),
        ("SIL HH IY B IH G AE N SIL he", SAID, "phonemes"),
        ("G UH D.", ["good"], "phonemes"),
        ("Yes.", SAID, "yes or no"),
        ("A man is speaking while birds chirp in the background.", SAID, "a caption"),
        ("The audio contains a speech by a man", SAID, "a caption"),
        ("他开始抱怨", SAID, "Chinese, Japanese or Korean"),
        ("He began", ["他开始抱怨"], "another script than Chinese, Japanese or Korean"),
        ("The man has not seen the dog", ["Der Mann hat den Hund nicht gesehen"], "English"),
        ("Er hat das Haus nicht gesehen", ["he has not seen the house"], "German"),
        ("Write down what is said: write down what is said", SAID, "the instruction repeated"),
    ],
)
def test_an_answer_in_another_tasks_form_is_found(answer, references, form):
    assert form_of(answer, references, "asr", "Write down what is said.") == form


@pytest.mark.parametrize(
    ("answer", "references"),
    [
        (SAID[0], SAID),
        ("she began a fused complaint", SAID),  # only wrong
        ("", SAID),
        ("uh uh ah er", ["uh ah"]),
        ("I am a b", ["i am a bee"]),
        ("no more of that", SAID),
        ("No", ["no, never"]),
        ("yes", ["yes"]),
        ("HH IY B", ["HH IY P"]),
        ("a dog barks while birds chirp in the background", ["A dog is barking loudly while rain falls"]),
        ("the man was speaking of his house", SAID),
        ("BBC 红狗", ["红狗"]),
        ("He has not seen the house", ["blue dog"]),  # of no language that can be told
        ("Die Frau has the house", ["she has the house of the man"]),
        ("Der Mann hat die Frau nicht gesehen", ["Die Frau hat der Mann nicht gesehen"]),
        ("write it", ["right it"]),
        ("anything", []),
        *((line.partition(" ")[2], SAID) for text in TRANSCRIPTS.values() for line in text.splitlines()),
    ],
)
def test_an_ordinary_answer_is_left_alone(answer, references):
    assert form_of(answer, references, "asr", "Write it.") == ""


def test_a_caption_is_what_captioning_asks_for():
    answer, references = "A man speaks while birds chirp in the background", ["Birds"]
    assert form_of(answer, references, "audiocaption") == ""
    assert form_of("HH IY B IH G AE N", references, "audiocaption") == "phonemes"


def test_shares_examples_and_the_score_without_them_are_told():
    clips = [EvalExample(i, f"c{i}", "x", "asr", "", ("a b",)) for i in range(4)]
    predictions = {i: Prediction(text="a b", finished=True) for i in range(3)} | {3: Prediction(text="HH IY B")}
    statistics = {"wer": {"rows": [0, 1, 2, 3], "values": [[1, 2], [0, 2], [0, 2], [3, 2]]}}
    told, without = confusion_notes({3: "phonemes"}, clips, predictions, statistics)
    assert told == ("Task confusion: 1 of 4 answers (25.00 %) are in another task's form, phonemes: c3 ('HH IY B').")
    assert without == "Without the answers in another task's form: WER 16.67 %."
    assert confusion_notes({}, clips, predictions, statistics) == []


@pytest.mark.usefixtures("stub_model")
def test_the_report_of_a_set_tells_it(stub_world: Path):
    from salmonn.evaluation.pipeline import evaluate

    entries = [entry(2, text="蓝狗", testset_id="a"), entry(3, text="green dog", testset_id="b")]
    evaluate(config_for(stub_world, entries), "valid_asr")
    report, _ = results(stub_world, "valid_asr")
    assert report["other_forms"] == {"a": "another script than Chinese, Japanese or Korean"}
    assert any(note.startswith("Task confusion: 1 of 2 answers") for note in report["notes"])


def test_ordinary_answers_of_the_miniature_world_are_left_alone():
    """Right ones, and wrong ones of the same task: what other clips would be answered. At most 1 % may be taken."""
    prompts = json.loads((ROOT / "configs/prompts/test_prompt.json").read_text())
    rng, texts = random.Random(1), {}
    for clip in corpus.plan(train_clips=400, test_clips=400, broken=0, seed=5):
        for task in scenes.tasks_of(clip.scene):
            question, text = scenes.answer(clip.scene, task, rng)
            texts.setdefault((task, question), []).append(text)
    pairs = [
        (answer, right, task, prompts[task].rpartition("</Speech>")[2].replace("{}", question))
        for (task, question), said in texts.items()
        for answers in (said, said[1:] + said[:1], said[7:] + said[:7])
        for answer, right in zip(answers, said, strict=True)
    ]
    taken = [(form, *pair) for pair in pairs if (form := form_of(pair[0], [pair[1]], pair[2], pair[3]))]
    assert len(pairs) > 5000
    assert len({pair[2] for pair in pairs}) >= 12
    assert len(taken) <= 0.01 * len(pairs), taken[:5]
    for task in ("asr", "audiocaption", "QA", "translation_ec"):
        of_task = [pair for pair in pairs if pair[2] == task]
        assert sum(one[3] == task for one in taken) <= 0.01 * len(of_task), task


def test_words_in_the_place_of_phones_and_phones_in_the_place_of_words_are_all_found():
    """What the miniature world says, in the form of the other task."""
    sentences = {
        clip.scene for clip in corpus.plan(train_clips=200, test_clips=50, broken=0, seed=6)
        if isinstance(clip.scene, scenes.Speech)
    }  # fmt: skip
    rng = random.Random(0)
    for scene in sentences:
        words, phones = (scenes.answer(scene, task, rng)[1] for task in ("asr", "phone_recognition"))
        assert form_of(phones, [words], "asr") == "phonemes"


@pytest.mark.usefixtures("stub_model")
def test_a_model_asked_with_the_prompt_of_another_task_shows_it_in_its_report(stub_world: Path, monkeypatch):
    from salmonn.evaluation.pipeline import evaluate

    spelled = {"blue": "B L UW", "green": "G R IY N"}

    def answer(_model, samples, _settings, prompts, return_details):
        heard = [["zero", "red", "blue", "green"][round(10 * wav.max().item())] for wav in samples["raw_wav"]]
        asks_phones = ["phones" in prompt for prompt in prompts]
        texts = [f"{spelled[word]} D AO G" if p else f"{word} dog" for word, p in zip(heard, asks_phones, strict=True)]
        return [{"text": text, "token_ids": [1], "finished": return_details} for text in texts]

    monkeypatch.setattr(StubModel, "generate", answer)
    entries = [entry(2, text="blue dog", testset_id="a"), entry(3, text="green dog", testset_id="b")]
    for prompt, expected in (("Write the words.", {}), ("Write the phones.", {"a": "phonemes", "b": "phonemes"})):
        config = config_for(stub_world, entries)
        (stub_world / "prompts.json").write_text(json.dumps({"asr": f"<Speech><SpeechHere></Speech> {prompt}"}))
        evaluate(config, "valid_asr")
        report, _ = results(stub_world, "valid_asr")
        assert report["other_forms"] == expected
    assert any(note.startswith("Task confusion: 2 of 2 answers (100.00 %)") for note in report["notes"])
