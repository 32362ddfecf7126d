"""What util/small.py refuses at once, before hours are spent."""

import shutil
import subprocess
from pathlib import Path

import pytest

from salmonn.common.errors import UserError
from salmonn.model import encoder_cache
from tests.fixtures.paths import GOLDEN, ROOT
from tests.fixtures.small import EVERY_SOURCE, arguments, ending
from util import jobs
from util.small_model import checks, job, parts, sources

pytestmark = pytest.mark.usefixtures("installed_packages")


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


@pytest.mark.parametrize(
    "option", ["model.max_seconds=20", "model.lora_rank=4", "model={second_stride: 0.3}", "model.sound_seconds=2"]
)
def test_what_would_make_the_stages_hear_otherwise_is_refused_for_one_alone(option, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "PARTS", never_begun("models"))
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=r"--options: model\.\w+ would be .* in stage1 and .*: write all:model\."):
        parts.run_all(arguments(monkeypatch, "--out", tmp_path / "out", "--options", f"stage1:{option}"))
