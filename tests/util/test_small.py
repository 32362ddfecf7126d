"""util/small.py from end to end on tiny models and a tiny corpus."""

import json
import shlex
import shutil
import subprocess
import sys

import pytest

from tests.fixtures.commands import run_command
from tests.fixtures.ctranslate2 import tiny_whisper, write_ctranslate2
from tests.fixtures.lightweight import write_llm
from tests.fixtures.paths import ROOT
from util import small
from util.conversion.from_ctranslate2 import convert_ctranslate2
from util.small_model import parts

pytestmark = pytest.mark.usefixtures("installed_packages")


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
    command += ["--options", *short, "evaluate:generate.max_new_tokens=4", "all:run.encoder_cache_gb=0.5"]
    monkeypatch.setattr(parts, "run_command", run_warm)
    monkeypatch.setattr(sys, "argv", ["small.py", *command])
    monkeypatch.chdir(ROOT)
    small.main()
    said = capfd.readouterr().out
    assert said.count("=== training, stage") == 4
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
    [chat] = [line for line in said.splitlines() if "salmonn.chat" in line]
    _, *as_printed = shlex.split(chat)
    heard = f"{out}/data/{tested[0]['path']}"
    answer = run_command(*as_printed, "generate.max_new_tokens=4", "--task", "asr", "--audio", heard)
    assert answer.returncode == 0, answer.stderr
    assert len(answer.stdout.splitlines()) == 1
    again = run_command("util/small.py", *command)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("done before") >= 10
    assert "===" not in again.stdout  # nothing was trained again
    other = run_command("util/small.py", *command, "--recordings", "packages")
    assert other.returncode == 2
    assert "was made with --recordings none" in other.stderr
