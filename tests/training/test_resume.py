"""A run goes on where it was: after kill -9, a signal, a restart by torchrun, a full disk, a damaged checkpoint."""

import os
import random
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from salmonn.model import checkpoint
from tests.fixtures.commands import json_lines, run_command
from tests.fixtures.kill_runs import command, command_of, family, run_killed, same_state, start, train_arguments
from tests.fixtures.mini_world import train_options
from tests.fixtures.paths import ROOT
from tests.fixtures.waiting import HANG, n_lines, wait_until

# One process, two short epochs, a checkpoint after each step.
SHORT = ["run.iters_per_epoch=4", "run.optims.max_epoch=2", "run.batch_size_train=2", "run.batch_size_eval=8"]
SHORT += ["run.log_freq=1", "run.save_every_steps=1"]

SMALL_FILES = """
import resource, runpy

resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
runpy.run_path("train.py", run_name="__main__")
"""

IMPATIENT = """
import runpy
from salmonn.training import run_folder

run_folder._LOCK_SECONDS = 0
runpy.run_path("train.py", run_name="__main__")
"""


def arguments(world: Path, output: Path, *options: str) -> list[str]:
    config = ["train.py", "--cfg-path", "configs/mini/stage1.yaml", "--options"]
    return [*config, *train_options(world, output), *SHORT, *options]


def train(world: Path, output: Path, *options: str) -> subprocess.CompletedProcess:
    return run_command(*arguments(world, output, *options))


def log_steps(output: Path, kind: str = "train") -> list[int]:
    lines = json_lines(output / "stage1/log.jsonl")
    return [line["step"] for line in lines if line["kind"] == kind]


@pytest.fixture(scope="module")
def whole(mini_world, tmp_path_factory):
    """A run of 2 ranks that was never disturbed."""
    output = tmp_path_factory.mktemp("whole")
    result = run_command(*train_arguments(mini_world, output), ranks=2)
    assert result.returncode == 0, result.stderr
    return output


@pytest.fixture(scope="module")
def short(mini_world, tmp_path_factory):
    """A run of one process that was never disturbed."""
    output = tmp_path_factory.mktemp("short")
    result = train(mini_world, output)
    assert result.returncode == 0, result.stderr
    return output


def test_a_run_killed_twice_ends_bit_identical(mini_world, whole, tmp_path):
    rows = run_killed(mini_world, tmp_path, kills=2, rng=random.Random(1))
    assert all(row["killed"] != "too late" for row in rows)
    assert all("samples seen" in row["began"] for row in rows[1:])
    assert same_state(whole, tmp_path)
    assert log_steps(tmp_path) == log_steps(whole)  # no step twice, none left out


def test_a_signal_to_every_process_stops_the_run_after_saving(mini_world, tmp_path):
    process = start(command(mini_world, tmp_path))
    log = tmp_path / "stage1/log.jsonl"
    wait_until(lambda: n_lines(log) >= 3, process)
    for pid in family(process.pid)[1:]:  # of all ranks and their loaders' workers, as Slurm does
        os.kill(pid, signal.SIGTERM)
    message = process.communicate(timeout=HANG)[1]
    assert process.returncode == 0, message
    assert "the same command goes on from there" in message
    stopped = checkpoint.read(tmp_path / "stage1/checkpoint_last.pth")["progress"]
    assert 0 < stopped["epoch"] * 20 + stopped["epoch_iteration"] < 40
    assert stopped["iteration"] == log_steps(tmp_path)[-1]  # nothing that was done is lost


def test_when_torchrun_alone_is_killed_its_ranks_save_and_go(mini_world, tmp_path):
    process = start(command(mini_world, tmp_path))
    log = tmp_path / "stage1/log.jsonl"
    wait_until(lambda: n_lines(log) >= 3, process)
    ranks = family(process.pid)[1:]
    process.kill()  # torchrun can tell nobody
    message = process.communicate(timeout=HANG)[1]  # the ranks hold its stderr until they end
    assert "torchrun has ended" in message
    assert "the same command goes on from there" in message
    assert not any(command_of(pid) for pid in ranks)
    stopped = checkpoint.read(tmp_path / "stage1/checkpoint_last.pth")["progress"]
    assert stopped["iteration"] == log_steps(tmp_path)[-1]


def test_torchrun_restarts_a_run_that_lost_a_rank_from_its_last_checkpoint(mini_world, whole, tmp_path):
    launched = command(mini_world, tmp_path)
    launched.insert(launched.index("--standalone"), "--max-restarts=1")
    process = start(launched)
    last = tmp_path / "stage1/checkpoint_last.pth"
    wait_until(last.exists, process)
    ranks = [pid for pid in family(process.pid)[1:] if b"train.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(ranks[0], signal.SIGKILL)
    message = process.communicate(timeout=HANG)[1]
    assert process.returncode == 0, message
    assert "going on with" in message
    assert same_state(whole, tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_torchrun_or_ctrl_c_saves_first(mini_world, tmp_path, number):
    """torchrun itself then ends with 1, whatever its ranks do; Ctrl-C reaches the whole group of processes."""
    process = start(command(mini_world, tmp_path), start_new_session=True)
    log = tmp_path / "stage1/log.jsonl"
    wait_until(lambda: n_lines(log) >= 3, process)
    os.kill(process.pid, number) if number == signal.SIGTERM else os.killpg(process.pid, number)
    message = process.communicate(timeout=HANG)[1]
    assert "the same command goes on from there" in message
    stopped = checkpoint.read(tmp_path / "stage1/checkpoint_last.pth")["progress"]
    assert stopped["iteration"] == log_steps(tmp_path)[-1]  # nothing that was done is lost


def test_a_finished_run_has_nothing_left_to_do(mini_world, tmp_path):
    first = train(mini_world, tmp_path, "run.optims.max_epoch=1")
    assert first.returncode == 0, first.stderr
    state = checkpoint.read(tmp_path / "stage1/checkpoint_last.pth")
    assert (state["epoch"], state["progress"]["epoch"], state["progress"]["samples"]) == (0, 1, 8)
    second = train(mini_world, tmp_path, "run.optims.max_epoch=1")
    assert second.returncode == 0, second.stderr
    assert "training is done, 1 epoch:" in second.stderr  # nothing left to do is no error
    assert log_steps(tmp_path) == [1, 2, 3, 4]
    harmless = train(mini_world, tmp_path, "run.optims.max_epoch=1", "run.num_workers=1")
    assert harmless.returncode == 0, harmless.stderr
    other = train(mini_world, tmp_path, "run.optims.max_epoch=1", "run.optims.init_lr=0.002")
    assert other.returncode == 2
    assert "run.optims.init_lr: 0.003 -> 0.002" in other.stderr
    assert "a run that is done, with another configuration" in other.stderr
    assert "Nothing was trained: choose another run.exp_name" in other.stderr
    dry = run_command(
        *arguments(mini_world, tmp_path, "run.optims.max_epoch=1", "run.optims.init_lr=0.002"), "--dry-run"
    )
    assert (dry.returncode, dry.stderr) == (2, other.stderr)  # the same is said


def test_another_experiment_in_the_folder_is_gone_on_with_only_where_that_is_said(mini_world, short, tmp_path):
    assert train(mini_world, tmp_path, "run.optims.max_epoch=1").returncode == 0
    refused = train(mini_world, tmp_path, "run.optims.init_lr=0.002")
    assert refused.returncode == 2
    assert "stage1 holds another experiment:\n    run.optims.init_lr: 0.003 -> 0.002\n" in refused.stderr
    assert "choose another run.exp_name, go on with it by these settings (run.resume=auto)" in refused.stderr
    result = train(mini_world, tmp_path, "run.optims.init_lr=0.002", "run.resume=auto")
    assert result.returncode == 0, result.stderr
    assert "the configuration has changed: run.optims.init_lr: 0.003 -> 0.002" in result.stderr
    assert log_steps(tmp_path) == log_steps(short)


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(mini_world, tmp_path):
    assert train(mini_world, tmp_path, "run.optims.max_epoch=1").returncode == 0
    folder = tmp_path / "stage1"
    last, before = folder / "checkpoint_last.pth", folder / "checkpoint_last-1.pth"
    assert checkpoint.read(before)["progress"]["epoch_iteration"] == 4  # of the moment before validation
    last.write_bytes(last.read_bytes()[:-5000])
    result = train(mini_world, tmp_path, "run.optims.max_epoch=1")
    assert result.returncode == 0, result.stderr
    assert "checkpoint_last.pth is not a SALMONN checkpoint, or damaged" in result.stderr
    assert "going on with" in result.stderr
    assert "checkpoint_last-1.pth: epoch 0, iteration 4, 8 samples seen" in result.stderr
    assert log_steps(tmp_path) == [1, 2, 3, 4]
    for path in (last, before):
        path.write_bytes(b"foreign")
    result = train(mini_world, tmp_path)
    assert result.returncode == 2
    assert "none of the checkpoints" in result.stderr
    assert "run.overwrite=True" in result.stderr


def test_a_full_disk_loses_no_checkpoint_and_is_told(mini_world, short, tmp_path):
    assert train(mini_world, tmp_path, "run.optims.max_epoch=1").returncode == 0
    last = tmp_path / "stage1/checkpoint_last.pth"
    before = last.read_bytes()
    script = tmp_path / "train.py"
    script.write_text(SMALL_FILES)
    result = run_command(str(script), *arguments(mini_world, tmp_path)[1:], PYTHONPATH=str(ROOT))
    assert "NO CHECKPOINT WAS WRITTEN" in result.stderr
    assert "could not be written" in result.stderr
    assert result.returncode == 2
    assert last.read_bytes() == before
    assert not list(last.parent.glob("*.tmp")) + list(last.parent.glob(".*.tmp"))
    assert train(mini_world, tmp_path).returncode == 0
    assert log_steps(tmp_path) == log_steps(short)


def test_a_run_can_go_on_from_a_named_checkpoint_elsewhere(mini_world, short, tmp_path):
    result = train(mini_world, tmp_path, f"run.resume={short}/stage1/checkpoint_last-1.pth")
    assert result.returncode == 0, result.stderr
    one, two = (checkpoint.read(folder / "stage1/checkpoint_last.pth")["model"] for folder in (short, tmp_path))
    assert all(torch.equal(one[name], two[name]) for name in one)
    wrong = train(mini_world, tmp_path / "x", f"run.resume={tmp_path}/nowhere.pth")
    assert wrong.returncode == 2
    assert "nowhere.pth: choose auto, none, or a checkpoint" in wrong.stderr


def test_two_runs_never_write_to_one_folder(mini_world, tmp_path):
    """Not after the minute either that the second waits for the first, here a moment."""
    script = tmp_path / "train.py"
    script.write_text(IMPATIENT)
    (tmp_path / "stage1").mkdir()
    with FileLock(tmp_path / "stage1/.lock"):
        result = run_command(str(script), *arguments(mini_world, tmp_path)[1:], PYTHONPATH=str(ROOT))
    assert result.returncode == 2
    assert "waiting up to 0 s: another process is training in" in result.stderr
    assert result.stderr.count("another process is training in") == 2
