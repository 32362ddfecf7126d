"""The small model's annotation files: what of recordings and of a corpus is trained and tested on."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from omegaconf import OmegaConf

from salmonn.common.errors import UserError
from salmonn.common.files import make_folder
from tests.fixtures.paths import ROOT
from tests.fixtures.small import arguments
from util.small_model import job, parts, recordings, records, report, voices

pytestmark = pytest.mark.usefixtures("installed_packages")


def annotated(small: job.Small) -> dict[str, list[dict[str, str]]]:
    """The entries of each annotation file."""
    parts.annotate(small)
    return {file.stem: json.loads(file.read_text())["annotation"] for file in (small.out / "ann").glob("*.json")}


@pytest.fixture
def spoken_world(tmp_path, monkeypatch):
    """What the parts before have left, with these recordings."""
    monkeypatch.chdir(ROOT)

    def make(*found: recordings.Recording) -> job.Small:
        made = job.Small(arguments(monkeypatch, "--out", tmp_path / "out"))
        said = {"train": ["one red car", "please hold on now"], "valid": ["a blue car"], "test": ["hold on now"]}
        for split, some in said.items():
            clips = [voices.Spoken(f"{i}.flac", text, "joe", 1.0) for i, text in enumerate(some)]
            make_folder(made.data)
            records.write_records(made.data / f"spoken_{split}.json", clips)
        records.write_records(made.data / "recordings.json", found)
        return made

    return make


def test_no_recorded_prompt_that_says_a_sentence_of_the_test_is_trained_on(spoken_world, capsys):
    said = {
        "train": ("please try again later", "try again", "you have one new message", "a blue car and a red one"),
        "test": ("please try again", "again"),
        "valid": ("one new message",),
    }
    found = [
        recordings.Recording(f"english/{split}_{i}.flac", split, 2.0, "prompt", text, "english", "woman")
        for split, some in said.items()
        for i, text in enumerate(some)
    ]
    files = annotated(spoken_world(*found))
    assert {entry["text"] for entry in files["stage1_train"]} == {"one red car", "try again"}
    assert {entry["text"] for entry in files["stage2_train"] if entry["task"] == "asr"} == {"one red car", "try again"}
    assert [entry["text"] for entry in files["test_prompt"]] == list(said["test"])
    assert files["test_agreement"] == []
    assert "recordings: 3 of 4 training clips say a sentence of validation or test, left out" in capsys.readouterr().out


def test_prompts_that_nobody_has_written_down_are_compared_with_what_whisper_hears(spoken_world, monkeypatch):
    asked = []

    def whisper_answers(folder: Path, paths: list[str]) -> list[str]:
        asked.extend([folder, *paths])
        return [" Please hold.", " "]

    monkeypatch.setattr(report, "whisper_answers", whisper_answers)
    found = [
        recordings.Recording(f"{language}/{i}.flac", split, seconds, "speech", "", language, "woman")
        for i, (language, split, seconds) in enumerate(
            [("english", "test", 2.0), ("english", "test", 3.0), ("english", "train", 2.0), ("english", "test", 13.0),
             ("french", "test", 2.0)]
        )
    ]  # fmt: skip
    world = spoken_world(*found)
    files = annotated(world)
    assert files["test_agreement"] == [{"path": "english/0.flac", "text": "Please hold.", "task": "asr"}]
    assert files["test_prompt"] == []
    assert asked == [world.out / "models/whisper-tiny.en", *(str(world.data / f"english/{i}.flac") for i in (0, 1))]
    report.write_eval_tasks(world.out, world.out / "ann")
    told = OmegaConf.load(world.out / "eval_tasks.yaml").agreement
    assert (told.metrics, told.accepts) == (["wer"], ["asr"])
    assert "agreement with it, not correctness" in told.title
    asked.clear()
    files = annotated(spoken_world(*found, replace(found[0], kind="prompt", text="please hold")))
    assert (files["test_agreement"], asked) == ([], [])


def test_what_whisper_hears_in_those_prompts_is_not_trained_on(spoken_world, monkeypatch):
    monkeypatch.setattr(report, "whisper_answers", lambda *_: ["Hold on, please."])
    world = spoken_world(recordings.Recording("english/0.flac", "test", 2.0, "speech", "", "english", "woman"))
    said = [voices.Spoken("0.flac", "and hold on please", "joe", 1.0), voices.Spoken("1.flac", "go on", "joe", 1.0)]
    records.write_records(world.data / "spoken_train.json", said)
    assert [entry["text"] for entry in annotated(world)["stage1_train"]] == ["go on"]


def write_libri(root: Path, spoken: dict[str, dict[str, float]]) -> None:
    """{split: {"SPEAKER text": seconds}} in LibriSpeech's layout, silent."""
    for split, clips in spoken.items():
        for i, (said, seconds) in enumerate(clips.items()):
            speaker, _, text = said.partition(" ")
            folder = root / split / speaker / str(i)
            folder.mkdir(parents=True)
            soundfile.write(folder / f"{speaker}-{i}-0.flac", np.zeros(int(8000 * seconds)), 8000)
            (folder / f"{speaker}-{i}.trans.txt").write_text(f"{speaker}-{i}-0 {text.upper()}\n")


def annotate_libri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *given: str) -> dict[str, list[dict[str, str]]]:
    monkeypatch.chdir(ROOT)
    command = ["--corpus", tmp_path / "libri", "--out", tmp_path / "out", "--train-split", "train"]
    world = job.Small(arguments(monkeypatch, *command, "--valid-split", "dev", *given))
    make_folder(world.data)
    records.write_records(world.data / "recordings.json", [])
    return annotated(world)


# speakers whose numbers fall into validation and into test
VALIDATES, TESTS = (
    next(s for s in map(str, range(99)) if (recordings.split_of(s) == "test") == is_test) for is_test in (0, 1)
)


def test_clips_of_a_corpus_that_would_be_cut_are_left_out_and_told(tmp_path, monkeypatch, capsys):
    said = {"1 a red dog": 11.9, "1 a long sentence": 13.0, "2 we heard the bell rings today": 2.0}
    tested = {f"{VALIDATES} it rains": 2.0, f"{TESTS} the bell rings": 2.0, f"{TESTS} a long story": 12.5}
    write_libri(tmp_path / "libri", {"train": said, "dev": tested})
    files = annotate_libri(tmp_path, monkeypatch)
    assert [entry["text"] for entry in files["stage1_train"]] == ["a red dog"]
    assert [entry["text"] for entry in files["stage1_valid"]] == ["it rains"]
    assert [entry["text"] for entry in files["test_corpus"]] == ["the bell rings"]
    told = capsys.readouterr().out
    assert "train: 1 of 3 clips last over 12 s, left out; --options all:model.max_seconds=N and another --out" in told
    assert "test: 1 of 2 clips last over 12 s, left out" in told
    assert "corpus: 1 of 2 training clips say a sentence of validation or test, left out" in told


@pytest.mark.parametrize(
    ("speakers", "told"),
    [
        ((TESTS,), "nothing is left for valid of clips of at most 12 s; the speakers of --valid-split are divided"),
        ((VALIDATES,), "nothing is left for test of clips"),
        ((), r"no SPEAKER/CHAPTER/\*.trans.txt"),
    ],
)
def test_a_corpus_that_leaves_nothing_to_test_or_validate_on_is_told(speakers, told, tmp_path, monkeypatch):
    (tmp_path / "libri/dev").mkdir(parents=True)
    tested = {f"{speaker} it rains": 2.0 for speaker in speakers}
    write_libri(tmp_path / "libri", {"train": {f"{VALIDATES} a dog": 2.0, f"{TESTS} a cat": 2.0}, "dev": tested})
    with pytest.raises(UserError, match=told):
        annotate_libri(tmp_path, monkeypatch)
