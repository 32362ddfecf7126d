"""Files of the code before it was moved into packages are what they were: a run goes on, a folder and a file load.

They were made by the code of then, on a machine of then: see tests/golden/before_house/NOTES.md.
"""

import shutil
from pathlib import Path

import pytest
import torch

from salmonn import SALMONN
from salmonn.model import checkpoint
from tests.fixtures.commands import json_lines, run_command
from tests.fixtures.paths import GOLDEN, ROOT

BEFORE = GOLDEN / "before_house"
LAST = BEFORE / "run" / "checkpoint_last.pth"  # after step 5 of 6
MEASURED = {"samples_per_second", "memory_gb", "hours_left"}  # of the machine, not of the run


def flat(line: dict) -> dict:
    """A log line with what it says of each task on one level."""
    tasks = {f"{task} {name}": value for task, of in line.get("tasks", {}).items() for name, value in of.items()}
    return {**line, **tasks, "tasks": sorted(line.get("tasks", {}))}


@pytest.fixture(scope="module")
def gone_on(tmp_path_factory) -> Path:
    """The folder of a copy of the run that today's code has taken to its end, by the command and paths of then."""
    here = tmp_path_factory.mktemp("before")
    config = BEFORE.relative_to(ROOT) / "config.yaml"
    shutil.copytree(BEFORE, here / config.parent)  # a run writes an index beside its annotation files
    (here / config.parent.parent / "base").symlink_to(GOLDEN / "base")
    folder = here / "output/before_house/run"
    shutil.copytree(BEFORE / "run", folder)
    result = run_command(str(ROOT / "train.py"), "--cfg-path", str(config), cwd=here)
    assert result.returncode == 0, result.stderr
    assert "checkpoint_last.pth: epoch 1, iteration 2, 10 samples seen" in result.stderr
    assert "the configuration has changed" not in result.stderr
    return folder


def test_a_run_goes_on_as_it_would_have_then(gone_on: Path):
    before, after = json_lines(BEFORE / "run/log.jsonl"), json_lines(gone_on / "log.jsonl")
    kept = [line for line in before if line["step"] <= 5]
    assert after[: len(kept)] == kept
    assert len(after) == len(before)
    for then, now in zip(map(flat, before[len(kept) :]), map(flat, after[len(kept) :]), strict=True):
        assert then.keys() <= now.keys()
        for name, value in then.items():
            if name.rpartition(" ")[2].startswith(("loss", "accuracy", "grad_norm")):
                assert now[name] == pytest.approx(value, rel=1e-4), name
            elif name not in MEASURED:
                assert now[name] == value, name  # the learning rate to the bit


def test_the_run_is_whole_in_the_end(gone_on: Path):
    progress = checkpoint.read(gone_on / "checkpoint_last.pth")["progress"]
    assert (progress["epoch"], progress["samples"], progress["tried"], progress["unreadable"]) == (2, 12, 14, 2)
    assert progress["best"]["epoch"] == 1  # the second validation is as accurate, at a lower loss
    listed = [line["path"] for line in json_lines(gone_on / "quarantine.jsonl")]
    assert listed == [line["path"] for line in json_lines(BEFORE / "run/quarantine.jsonl")]


def test_a_folder_loads_with_its_parameters(monkeypatch):
    monkeypatch.chdir(ROOT)  # its paths begin there
    model = SALMONN.from_pretrained(BEFORE / "folder")
    stored = checkpoint.read(BEFORE / "folder/model.safetensors")["model"]
    own = checkpoint.own_parameters(model)
    assert own.keys() == stored.keys()
    assert all(torch.equal(own[name], value) for name, value in stored.items())


def test_a_checkpoint_is_said_to_be_complete(command):
    printed = command("inspect", LAST)
    assert printed.splitlines()[-1] == "complete: no key is missing, none is unexpected"
    assert "goes on       yes, optimiser and position are in it" in printed
