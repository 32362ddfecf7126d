"""util/make_activation_data.py: which stories are kept, which clips are asked, and stage 3 on what it wrote."""

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from salmonn import SALMONN
from salmonn.activation_tuning import (
    choose_clips,
    read_clips,
    repetition,
    select_stories,
    story_text,
    tell_stories,
    why_dropped,
    words_of,
)
from salmonn.audio.decode import load_clip
from salmonn.config.loading import load_config
from salmonn.evaluation.requests import Prediction
from tests.fixtures.checkpoints import save_checkpoint
from tests.fixtures.commands import json_lines, run_command
from tests.fixtures.mini_world import mini_options
from tests.fixtures.paths import ROOT

COMMAND = "util/make_activation_data.py"
TALE = "Once a dog barked at the moon. The moon did not answer, and the dog went home to sleep."  # 19 words


def clip(path: str, **values) -> dict:
    return {"path": path, "text": "", "task": "asr", "Q": "", "expand_wav": [], **values}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0.0),
        ("too short here", 0.0),
        ("one two three four five", 0.0),
        ("a b c d e a b c d", 1 / 6),  # abcd bcde cdea deab eabc abcd
        ("The dog. THE dog, the dog the dog!", 3 / 5),  # only two different sequences of five
        ("la " * 103, 99 / 100),
    ],
)
def test_repetition_is_the_share_of_four_word_sequences_that_occurred_before(text: str, expected: float):
    assert repetition(words_of(text)) == pytest.approx(expected)


def test_words_are_counted_without_punctuation():
    assert words_of("Don't -- go, well-known “Anna”! 7") == ["don't", "go", "well-known", "anna", "7"]


@pytest.mark.parametrize(
    ("unfinished", "expected"),
    [
        ("It rained. She ran home. Then the", "It rained. She ran home."),
        ('"Run!" he said. "Where to?" she', '"Run!" he said. "Where to?"'),
        ("It rained. Pi is 3.14 and so", "It rained."),
        ("It rained. There she met Mr. Smith and", "It rained."),
        ("It rained...", "It rained..."),
        ("a story without any end", ""),
    ],
)
def test_a_story_that_did_not_end_is_cut_back_to_its_last_whole_sentence(unfinished: str, expected: str):
    assert story_text(Prediction(unfinished, 200, finished=False)) == expected
    assert story_text(Prediction(unfinished, 200, finished=True)) == unfinished


def test_a_story_at_the_limits_is_kept_and_one_beyond_them_is_not():
    assert why_dropped(TALE, [], min_words=19, max_repetition=0.0) == ""
    assert why_dropped(TALE, [], min_words=20, max_repetition=0.0) == "19 words, fewer than 20"
    twice = f"{TALE} {TALE}"  # 35 sequences, 16 of which come twice
    assert why_dropped(twice, [], 19, 16 / 35) == ""
    assert why_dropped(twice, [], 19, 0.45) == "repetition 0.457, above 0.45"
    marked = why_dropped(f"{TALE}</Speech>", [], 19, 0.0)  # no stage 3 would train on it
    assert marked == "it holds '</Speech>', which prompts have where the audio stands"
    same = why_dropped(TALE.upper(), [{"path": "/a.wav", "text": TALE}], 19, 0.0)
    assert same == "the same story as /a.wav"


def test_stories_are_kept_until_there_are_enough_and_every_other_one_has_its_reason(capsys: pytest.CaptureFixture):
    other = TALE.replace("dog", "cat")
    told = iter(
        [
            (clip("/short.wav"), Prediction("A dog.", 4, finished=True)),
            (clip("/first.wav", text="a dog", Q="?"), Prediction(TALE, 30, finished=True)),
            (clip("/broken.wav"), Prediction(unreadable="is empty")),
            (clip("/loop.wav"), Prediction("the dog barks " * 20, 60, finished=True)),
            (clip("/same.wav"), Prediction(TALE, 30, finished=True)),
            (clip("/cut.wav", expand_wav=["/more.wav"]), Prediction(f"{other} And then the", 33, finished=False)),
            (clip("/not needed.wav"), Prediction(TALE.replace("dog", "cow"), 30, finished=True)),
        ]
    )
    stories = select_stories(told, n=2, min_words=10, max_repetition=0.2)
    assert stories == [
        {"path": "/first.wav", "text": TALE, "task": "audio_story_telling"},
        {"path": "/cut.wav", "expand_wav": ["/more.wav"], "text": other, "task": "audio_story_telling"},
    ]
    assert next(told)[0]["path"] == "/not needed.wav"  # was not generated for nothing
    assert capsys.readouterr().out.splitlines() == [
        'dropped /short.wav: 2 words, fewer than 10: "A dog."',
        f'kept /first.wav: 19 words, repetition 0.000: "{TALE[:80]}"',
        "unreadable /broken.wav: is empty",
        f'dropped /loop.wav: repetition 0.947, above 0.2: "{("the dog barks " * 20)[:80]}"',
        f'dropped /same.wav: the same story as /first.wav: "{TALE[:80]}"',
        f"kept /cut.wav: 19 words, repetition 0.000 (not ended after 33 tokens: only its whole sentences count): "
        f'"{other[:80]}"',
        "6 clips tried: 2 kept, 3 dropped, 1 unreadable",
    ]


def test_each_clip_is_chosen_once_by_the_seed_and_absent_ones_are_named(tmp_path: Path):
    for number in range(20):
        (tmp_path / f"{number}.wav").touch()
    (tmp_path / "as.mp3").touch()
    datasets = load_config(ROOT / "configs/base.yaml", [f"datasets.prefix={tmp_path}"]).datasets
    entries = [clip(f"/{number % 20}.wav") for number in range(60)]
    entries += [clip("/as.wav"), clip("/gone.wav"), clip("/gone.wav"), clip("/0.mp3", expand_wav=["/0.wav"])]
    entries += [clip("/pair.wav", expand_wav=["/gone.wav"])]

    chosen, absent = choose_clips(entries, datasets, at_most=100, seed=0)
    paths = [entry["path"] for entry in chosen]
    assert sorted(paths) == sorted(["/as.wav", *(f"/{number}.wav" for number in range(20))])
    assert sorted(absent) == ["/0.mp3", "/gone.wav", "/pair.wav"]

    first = [entry["path"] for entry in choose_clips(entries, datasets, at_most=5, seed=0)[0]]
    assert first == paths[:5]
    assert first != [entry["path"] for entry in choose_clips(entries, datasets, at_most=5, seed=1)[0]]


def test_clips_of_a_text_file_are_its_lines(tmp_path: Path):
    (tmp_path / "clips.txt").write_text("/a/1.wav\n\n  /b/2.flac \n")
    entries = read_clips(tmp_path / "clips.txt")
    assert [(entry["path"], entry["expand_wav"]) for entry in entries] == [("/a/1.wav", []), ("/b/2.flac", [])]


def test_everything_that_is_wrong_is_told_at_once(tmp_path: Path):
    out = tmp_path / "there.json"
    out.write_text("precious")
    options = ["model.llama_path=/nowhere/llama", "model.whisper_path=/nowhere/whisper", "model.ckpt="]
    options += ["generate.max_new_tokens=300", "model.lora=False"]
    arguments = ["--clips", "/nowhere/clips.json", "--out", str(out), "--n", "0", "--lora-scaling", "nan"]
    result = run_command(COMMAND, *arguments, "--options", *options)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    for expected in (
        "--clips /nowhere/clips.json does not exist", f"--out {out} is there already", "--n 0", "--lora-scaling nan",
        "model.ckpt is not set", "model.lora = False", "generate.max_new_tokens = 300", "/nowhere/llama",
        "/nowhere/whisper",
    ):  # fmt: skip
        assert expected in result.stderr
    assert out.read_text() == "precious"


# ---- with a model: random weights that sample random words


@pytest.fixture(scope="module")
def options(mini_world: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A checkpoint as of stage 2, with adapters that do something, and a model that talks nonsense."""
    folder = tmp_path_factory.mktemp("stage2")
    paths = mini_options(mini_world, folder)
    torch.manual_seed(0)
    model = SALMONN.from_config(load_config(ROOT / "configs/mini/evaluate.yaml", [*paths, "model.ckpt="]).model)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    save_checkpoint(folder / "stage2.pth", model)
    sampling = ["generate.do_sample=True", "generate.temperature=3.0", "generate.num_beams=1"]
    return [*paths, f"model.ckpt={folder / 'stage2.pth'}", *sampling]


def make(out: Path, options: list[str], *arguments: str):
    arguments = ("--cfg-path", "configs/mini/evaluate.yaml", "--out", str(out), *arguments)
    return run_command(COMMAND, *arguments, "--options", *options)


def lines(stdout: str, fate: str) -> list[str]:
    return [line for line in stdout.splitlines() if line.startswith(f"{fate} /")]


def test_stage_3_trains_on_the_stories_one_a_step(mini_world: Path, options: list[str], tmp_path: Path):
    out = tmp_path / "new folder" / "stories.json"
    clips = str(mini_world / "ann/stage2_train.json")
    result = make(out, options, "--clips", clips, "--n", "4", "--min-words", "2", "--max-repetition", "1")
    assert result.returncode == 0, result.stderr
    assert "LoRA scaling 2, trained with 4" in result.stdout
    stories = json.loads(out.read_text())["annotation"]
    assert len({story["path"] for story in stories}) == len(stories) == 4
    assert [line.split()[1].rstrip(":") for line in lines(result.stdout, "kept")] == [s["path"] for s in stories]
    for story in stories:
        assert story["task"] == "audio_story_telling"
        assert len(words_of(story["text"])) >= 2

    ann = [f"datasets.{split}_ann_path={out}" for split in ("train", "valid")]
    steps = ["run.batch_size_train=1", "run.iters_per_epoch=4", "run.optims.max_epoch=1", "run.log_freq=1"]
    own = [option for option in options if not option.startswith("run.output_dir=")]
    trained = run_command(
        "train.py", "--cfg-path", "configs/mini/stage3.yaml", "--options", *own, *ann, *steps,
        f"run.output_dir={tmp_path}",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    log = json_lines(tmp_path / "stage3/log.jsonl")
    assert [line["step"] for line in log if line["kind"] == "train"] == [1, 2, 3, 4]
    summary = json.loads((tmp_path / "stage3/summary.json").read_text())
    assert (summary["tried"], summary["bad"]) == (4, 0)


def test_nonsense_is_dropped_with_reasons_and_no_file_is_written(mini_world: Path, options: list[str], tmp_path: Path):
    clips = str(mini_world / "ann/stage2_train.json")
    result = make(tmp_path / "stories.json", options, "--clips", clips, "--max-clips", "8")
    assert result.returncode == 2
    assert "none of 8 clips gave a usable story" in result.stderr
    dropped, unreadable = lines(result.stdout, "dropped"), lines(result.stdout, "unreadable")
    assert len(dropped) + len(unreadable) == 8
    assert len(dropped) > 4
    assert all("words, fewer than 50 (not ended after 60 tokens" in line for line in dropped)
    assert list(tmp_path.iterdir()) == []


def test_fewer_stories_than_asked_for_are_saved_and_told(mini_world: Path, options: list[str], tmp_path: Path):
    there = sorted(path for path in (mini_world / "audio/speech").glob("test_*"))[:8]
    (mini_world / "audio/activation_broken.wav").write_text("this is not audio")
    named = [f"/speech/{path.name}" for path in there] + ["/activation_broken.wav", "/activation_gone.wav"]
    (tmp_path / "clips.txt").write_text("\n".join(named))
    (tmp_path / "stories.json").write_text("of before")
    limits = ["--min-words", "1", "--max-repetition", "1", "--overwrite"]
    finished = [*options, "generate.max_new_tokens=119"]  # room for a sentence end in each
    result = make(tmp_path / "stories.json", finished, "--clips", str(tmp_path / "clips.txt"), *limits)
    assert result.returncode == 1, result.stderr
    assert "1 clips of" in result.stdout
    assert "/activation_gone.wav" in result.stdout
    assert len(lines(result.stdout, "unreadable")) == 1
    assert "unreadable /activation_broken.wav: " in result.stdout
    stories = json.loads((tmp_path / "stories.json").read_text())["annotation"]
    assert 0 < len(stories) <= len(there)
    assert f"{12 - len(stories)} of 12 stories are missing, all {len(there) + 1} clips were tried" in result.stderr


def test_stories_are_told_at_the_scaling_that_was_asked_for(mini_world: Path, options: list[str]):
    greedy = [*options, "generate.do_sample=False"]
    config = load_config(ROOT / "configs/mini/evaluate.yaml", greedy)
    path = next(path for path in sorted((mini_world / "audio/sound").glob("test_*.wav")))
    prompt = "USER: <Speech><SpeechHere></Speech> Tell a story.\nASSISTANT:"

    def told(scaling: float) -> str:
        [(_, output)] = tell_stories([clip(f"/sound/{path.name}")], prompt, config.copy(), scaling)
        return output.text

    # a model that was built with half the alpha, and is not touched, says what is right
    half = OmegaConf.merge(config.model, {"lora_alpha": config.model.lora_alpha / 2})
    model = SALMONN.from_config(half).eval()
    wav = torch.from_numpy(load_clip([path], model.max_seconds))[None]
    expected = model.generate({"raw_wav": wav}, config.generate, prompts=[prompt])[0]
    assert told(2.0) == expected
    assert told(4.0) != expected
