"""The small model's voices: each clip follows from its text and number, and is spoken once."""

from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from salmonn.common.errors import UserError
from tests.fixtures.small import arguments
from util.small_model import corpus, job, parts, recordings, records, sources, voices


def test_a_clip_follows_from_its_number_and_text_and_is_not_spoken_twice(tmp_path):
    engines = voices.Engines(str(tmp_path), str(tmp_path), "", {"espeak": 1.0})
    [first], [again] = (
        list(voices.speak_all(["hello there", "good morning"], tmp_path / "a", engines, 1)) for _ in "12"
    )
    assert first == again
    [other] = voices.speak_all(["hello there", "good morning"], tmp_path / "b", engines, 1)
    assert other == first
    a, b = (soundfile.read(tmp_path / folder / first[1].path)[0] for folder in "ab")
    assert np.array_equal(a, b)
    assert first[1].text == "good morning"
    assert first[1].seconds == pytest.approx(len(a) / 16_000, abs=1e-3)
    assert 0.05 < np.abs(a).max() <= 1


def test_a_clip_of_another_text_or_voice_is_not_kept_for_this_one(tmp_path, monkeypatch):
    monkeypatch.setattr(voices, "say", lambda text, voice, *_: np.full(16_000, len(text + voice) / 99, np.float32))
    monkeypatch.setattr(voices, "in_a_room", lambda wav, _: wav)
    for text, voice in (("hello there", "espeak"), ("good morning to you", "espeak"), ("hello there", "joe")):
        spoken = voices._speak_one(0, text, tmp_path, voices.Engines("", "", "", {voice: 1.0}))
        assert (spoken.text, spoken.voice) == (text, voice)
        level = soundfile.read(tmp_path / spoken.path)[0].mean()
        assert level == pytest.approx(len(text + voice) / 99, abs=1e-3)


def test_a_clip_that_was_being_written_at_a_kill_is_spoken_again(tmp_path, monkeypatch):
    engines = voices.Engines(str(tmp_path), str(tmp_path), "", {"espeak": 1.0})
    monkeypatch.setattr(voices, "say", lambda *_: np.sin(np.arange(16_000) / 9).astype(np.float32))
    whole = voices._speak_one(0, "hello there", tmp_path, engines)
    path = tmp_path / whole.path
    content = path.read_bytes()
    path.unlink()
    write = soundfile.write

    def killed(file, *args, **more):
        write(file, *args, **more)
        Path(file).write_bytes(content[: len(content) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(voices.soundfile, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        voices._speak_one(0, "hello there", tmp_path, engines)
    monkeypatch.setattr(voices.soundfile, "write", write)
    assert voices._speak_one(0, "hello there", tmp_path, engines) == whole
    assert path.read_bytes() == content


def test_a_voice_that_fails_is_told_in_a_line():
    engines = voices.Engines("", "false", "")
    with pytest.raises(UserError, match=r"^false \(voice slt\) does not say 'hello': exit code 1$"):
        voices._flite("hello", "slt", 1.0, engines)


def test_pipers_voice_reads_the_phonemes_that_it_knows_with_blanks_between(monkeypatch):
    asked = []

    def run(_outputs: None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        asked.append(inputs)
        return [np.zeros((1, 1, 2205), np.float32)]

    ids = {"h": [20], "o": [27], "ʊ": [100]}
    monkeypatch.setattr(voices, "_piper_session", lambda _: (SimpleNamespace(run=run), ids, 22_050))
    monkeypatch.setattr(voices, "engine", lambda: SimpleNamespace(phonemes=lambda *_: "hˈoʊ"))
    wav, rate = voices._piper("ho", 1.25, Random(0), "")
    assert (wav.shape, rate) == ((2205,), 22_050)
    [inputs] = asked
    assert inputs["input"].tolist() == [[1, 0, 20, 0, 27, 0, 100, 0, 2]]  # the stress is none of its phonemes
    assert inputs["input_lengths"].tolist() == [9]
    assert inputs["scales"][1] == 1.25


def test_the_voices_speak_what_is_chosen_without_what_the_recordings_hold_out(tmp_path, monkeypatch):
    asked = []

    def speak_all(said: list[str], folder: Path, engines: voices.Engines, processes: int):
        asked.append((folder.name, engines.flite, engines.libraries, processes))
        folder.mkdir(parents=True)
        for name in ("0.flac", "of_another_choice.flac"):
            (folder / name).touch()
        yield [voices.Spoken(f"{i}.flac", text, "joe", 1.5) for i, text in enumerate(said)]

    def choose(wordnet: Path, n: int, held_out: list[str]) -> dict[str, list[str]]:
        asked.append((wordnet, n, held_out))
        return {"train": ["one", "two"], "test": ["three"]}

    library = tmp_path / "usr/lib/x86_64-linux-gnu/libflite.so.1"
    library.parent.mkdir(parents=True)
    library.touch()
    monkeypatch.setattr(sources, "fetch", lambda *_: tmp_path)
    monkeypatch.setattr(voices, "speak_all", speak_all)
    monkeypatch.setattr(corpus, "choose", choose)
    made = job.Small(arguments(monkeypatch, "--out", tmp_path / "out", "--clips", 2, "--processes", 3))
    found = [recordings.Recording("a.flac", split, 1.0, "word", split) for split in ("train", "valid", "test")]
    records.write_records(made.data / "recordings.json", [*found, recordings.Recording("b.flac", "test", 1.0, "music")])
    parts.speak(made)
    spoken_by = (str(tmp_path / "usr/bin/flite"), str(library.parent), 3)
    chosen = (tmp_path / "usr/share/wordnet", 2, ["valid", "test"])
    assert asked == [chosen, ("spoken_train", *spoken_by), ("spoken_test", *spoken_by)]
    assert [clip.text for clip in made.spoken("train")] == ["one", "two"]
    assert [clip.text for clip in made.spoken("test")] == ["three"]
    assert [path.name for path in (made.data / "spoken_train").iterdir()] == ["0.flac"]
