"""A loader that cannot go on never leaves a run standing: it says what is wrong, after saving what was done."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from salmonn.data.loader import LoadingError
from salmonn.model import checkpoint
from tests.fixtures import kill_runs
from tests.fixtures.commands import json_lines, run_command, torchrun
from tests.fixtures.kill_runs import command_of, kill_all, workers_of
from tests.fixtures.mini_world import train_options
from tests.fixtures.paths import ROOT
from tests.fixtures.waiting import HANG, n_lines, wait_until

LONG = ["run.num_workers=1", "run.iters_per_epoch=100000", "run.optims.max_epoch=1", "run.batch_size_train=1"]
LONG += ["run.log_freq=1", "run.save_every_minutes=0"]


def arguments(world: Path, output: Path, *options: str) -> list[str]:
    config = ["train.py", "--cfg-path", "configs/mini/stage1.yaml", "--options"]
    return [*config, *train_options(world, output), *LONG, *options]


@pytest.fixture
def start(mini_world, tmp_path):
    """Starts a run that would take for ever, and gives it when it has made some steps."""
    started = []

    def begin(ranks: int = 1) -> subprocess.Popen:
        launcher = torchrun(ranks) if ranks > 1 else []
        process = kill_runs.start([sys.executable, *launcher, *arguments(mini_world, tmp_path)])
        started.append(process)
        wait_until(lambda: n_lines(tmp_path / "stage1/log.jsonl") >= 3, process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            kill_all(process.pid)
            process.communicate()


def steps_saved_and_logged(output: Path) -> tuple[int, int]:
    log = [line["step"] for line in json_lines(output / "stage1/log.jsonl")]
    return checkpoint.read(output / "stage1/checkpoint_last.pth")["progress"]["iteration"], log[-1]


def wait_until_still(log: Path) -> None:
    """Until a run makes no more steps, as it has none of the batches left that were loaded before."""
    before, since = n_lines(log), time.monotonic()
    while time.monotonic() - since < 3:
        time.sleep(0.1)
        if (now := n_lines(log)) != before:
            before, since = now, time.monotonic()


def test_a_signal_is_heard_while_a_batch_is_waited_for_and_the_run_saves(start, tmp_path):
    process = start()
    [loader] = workers_of(process.pid)
    os.kill(loader, signal.SIGSTOP)
    wait_until_still(tmp_path / "stage1/log.jsonl")
    process.terminate()
    message = process.communicate(timeout=HANG)[1]
    assert process.returncode == 0, message
    assert "stopped by SIGTERM" in message
    saved, logged = steps_saved_and_logged(tmp_path)
    assert saved == logged > 0
    assert command_of(loader) == b""  # nothing is left behind


def test_a_loader_process_that_is_killed_ends_the_run_with_one_message_and_what_was_done_is_saved(start, tmp_path):
    process = start()
    os.kill(*workers_of(process.pid), signal.SIGKILL)
    message = process.communicate(timeout=HANG)[1]
    assert process.returncode == 2, message
    assert message.count("error: loader process") == 1
    assert "was killed by signal SIGKILL" in message
    assert "the same command goes on from there" in message
    assert "Traceback" not in message
    saved, logged = steps_saved_and_logged(tmp_path)
    assert saved == logged > 0


def test_of_several_ranks_all_save_and_the_one_whose_loader_died_is_named(start, tmp_path):
    process = start(ranks=2)
    os.kill(workers_of(process.pid)[-1], signal.SIGKILL)
    message = process.communicate(timeout=HANG)[1]
    assert process.returncode == 1  # torchrun's
    root_cause = message.partition("Root Cause")[
        2
    ]  # all ranks say it; torchrun shows the others' above, if they come to it
    assert root_cause.count("was killed by signal SIGKILL") == 1
    assert "error: rank " in root_cause
    assert "Traceback" not in root_cause
    saved, logged = steps_saved_and_logged(tmp_path)
    assert saved == logged > 0


@pytest.mark.parametrize("which", ["train_loader", "eval_loader"])
def test_trouble_in_training_and_in_validation_is_told_after_saving(make_runner, monkeypatch, which: str):
    import salmonn.training.runner as module

    real = getattr(module, which)

    def failing(*args, **kwargs):
        yield next(real(*args, **kwargs))
        raise LoadingError(f"loader process 7 stands still: for {kwargs['timeout_minutes']:g} minutes")

    monkeypatch.setattr(module, which, failing)
    options = ["run.iters_per_epoch=4", "run.valid_every_steps=2", "run.batch_size_eval=1"]
    runner = make_runner(*options, "run.loader_timeout_minutes=7")
    with pytest.raises(LoadingError, match=r"(?s)stands still: for 7 minutes\nWhat was done .* is saved"):
        runner.train()
    runner.close()
    saved = checkpoint.read(runner.folder / "checkpoint_last.pth")["progress"]
    assert saved["iteration"] == (1 if which == "train_loader" else 2)


def test_trouble_of_a_run_that_only_validates_is_told(make_runner, monkeypatch):
    import salmonn.training.runner as module

    def failing(*_args, **_kwargs):
        raise LoadingError("loader process 7 was killed")
        yield

    monkeypatch.setattr(module, "eval_loader", failing)
    runner = make_runner()
    monkeypatch.setattr(runner, "_load", lambda: None)
    runner.datasets["test_ann_path"] = runner.datasets["valid_ann_path"]
    with pytest.raises(LoadingError, match=r"loader process 7 was killed$"):
        runner.evaluate()
    runner.close()


# ---- nothing forks, nothing needs /dev/shm

# A command in which every fork is an error, as Python calls it before any is made.
NO_FORK = """
import runpy, sys

def refuse(event, _):
    if event in ("os.fork", "os.forkpty"):
        raise RuntimeError("this process forks")

sys.addaudithook(refuse)
sys.argv = sys.argv[1:]
sys.path.insert(0, ".")
runpy.run_path(sys.argv[0], run_name="__main__")
"""

SHORT = ["run.num_workers=1", "run.iters_per_epoch=2", "run.optims.max_epoch=1", "datasets.integrity=decode"]


@pytest.fixture
def no_fork(tmp_path) -> str:
    path = tmp_path / "no_fork.py"
    path.write_text(NO_FORK)
    return str(path)


@pytest.mark.parametrize("command", ["train", "inspector"])
def test_no_process_is_forked(mini_world, tmp_path, no_fork, command: str):
    train = arguments(mini_world, tmp_path, *SHORT)
    inspect = [
        "util/anns_inspector.py",
        "--prefix",
        f"{mini_world}/audio",
        "--ann",
        f"{mini_world}/ann/stage1_train.json",
    ]
    inspect += ["--check-integrity", "--verdicts", f"{tmp_path}/v.jsonl"]
    result = run_command(no_fork, *(train if command == "train" else inspect))
    assert result.returncode == 0, result.stderr
    assert "forks" not in result.stderr


def _small_shm(size: str) -> list[str]:
    """The beginning of a command that sees a small /dev/shm, as in a container; empty where that is not allowed."""
    command = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"', "sh"]
    if not shutil.which("unshare") or subprocess.run([*command, "true"], capture_output=True).returncode:
        return []
    return command


def test_a_run_needs_nothing_of_dev_shm(mini_world, tmp_path):
    if not (small := _small_shm("64k")):
        pytest.skip("only root may mount")
    process = subprocess.run(
        [*small, sys.executable, *arguments(mini_world, tmp_path, *SHORT)], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=HANG,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
