"""Several processes: Slurm without torchrun, a rank that dies or hangs, another number of ranks, evaluation shared."""

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from salmonn.common.errors import UserError
from salmonn.config.loading import load_config
from salmonn.data.loader import TrainBatches
from salmonn.model import checkpoint
from tests.common.test_slurm import STEP
from tests.fixtures.commands import json_lines, run_command, torchrun
from tests.fixtures.kill_runs import family, kill_all, start
from tests.fixtures.mini_world import train_options
from tests.fixtures.waiting import HANG, wait_until

SHORT = ["run.iters_per_epoch=6", "run.optims.max_epoch=1", "run.batch_size_train=2", "run.log_freq=1"]

# train.py of which each rank writes down its batches, and meets a fate at the start of one: "RANK BATCH FATE".
TRAIN = """
import json, os, runpy, signal, sys
sys.path.insert(0, os.getcwd())
from salmonn.data.loader import TrainBatches

signals = {"hang": signal.SIGSTOP, "stop": signal.SIGTERM, "die": signal.SIGKILL}
rank = os.environ.get("RANK", "0")
doomed, number, fate = os.environ.get("FATE", "none 0 raise").split()
batches = TrainBatches.__iter__

def recorded(self):
    with open(os.path.join(os.environ["RECORDS"], rank), "w", buffering=1) as record:
        for i, batch in enumerate(batches(self)):
            if (rank, i) == (doomed, int(number)):
                if fate == "raise":
                    raise ValueError("the", "reactor", "melted")
                os.kill(os.getpid(), signals[fate])
            print(json.dumps({"n": self.n, "batch": batch}), file=record)
            yield batch

TrainBatches.__iter__ = recorded
runpy.run_path("train.py", run_name="__main__")
"""


def arguments(world: Path, output: Path, *options: str) -> list[str]:
    return ["--cfg-path", "configs/mini/stage1.yaml", "--options", *train_options(world, output), *SHORT, *options]


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("script") / "run.py"
    path.write_text(TRAIN)
    return str(path)


@pytest.fixture(scope="module", autouse=True)
def hanging(mini_world, script, tmp_path_factory) -> Iterator[subprocess.Popen]:
    """A run whose rank 1 stops answering; torchrun alone takes 30 s to end it, so it starts before the other tests."""
    output = tmp_path_factory.mktemp("hanging")
    command = [sys.executable, *torchrun(), script, *arguments(mini_world, output, "run.timeout_minutes=0.5")]
    process = start(command, {"RECORDS": str(output), "FATE": "1 2 hang"})
    yield process
    kill_all(process.pid)


# ---- Slurm


def test_processes_that_srun_starts_train_together(mini_world, tmp_path):
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    step = {**STEP, "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_NODEID": "0"}
    step |= {"SLURM_STEP_NODELIST": "localhost", "MASTER_PORT": str(port)}
    command = [sys.executable, "train.py", *arguments(mini_world, tmp_path, "run.iters_per_epoch=2")]
    ranks = [start(command, {**step, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}) for i in range(2)]
    messages = [rank.communicate(timeout=HANG)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], messages
    assert "effective batch 4 (2 x accumulation 1 x 2 processes)" in messages[0]
    assert messages[1] == ""
    lines = json_lines(tmp_path / "stage1/log.jsonl")
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2]


# ---- a rank that fails


def test_a_rank_that_raises_ends_the_run_and_its_traceback_is_shown_once_and_last(mini_world, script, tmp_path):
    command = [*torchrun(), script, *arguments(mini_world, tmp_path)]
    result = run_command(*command, RECORDS=str(tmp_path), FATE="1 2 raise")
    error = str(ValueError("the", "reactor", "melted"))
    assert result.returncode == 1
    assert result.stderr.count(error) == 1
    assert result.stderr.count("in run_cli") == 1  # the traceback of the culprit, not of the rank that lost it
    assert "gloo" not in result.stderr
    assert f"ValueError: {error}" in "\n".join(result.stderr.splitlines()[-4:])


def test_a_rank_that_is_killed_ends_the_run_without_a_traceback_of_the_other(mini_world, script, tmp_path):
    command = [*torchrun(), script, *arguments(mini_world, tmp_path)]
    result = run_command(*command, RECORDS=str(tmp_path), FATE="1 2 die")
    assert result.returncode == 1
    assert "Signal 9 (SIGKILL)" in result.stderr.partition("Root Cause")[2]
    assert "in run_cli" not in result.stderr


def test_the_time_that_ranks_wait_is_checked():
    for minutes in ("0", "-1", "inf"):
        with pytest.raises(UserError, match=r"run\.timeout_minutes"):
            load_config("configs/mini/stage1.yaml", [f"run.timeout_minutes={minutes}"])


# ---- another number of ranks


def seen(folder: Path) -> list[int]:
    """What the ranks of a run trained on, in the order of the stream."""
    ranks = [json_lines(path) for path in sorted(folder.iterdir())]
    # a rank may have drawn a batch more when it hears that another is to stop
    return [index for step in zip(*ranks, strict=False) for line in step for index in line["batch"]]


def test_a_run_goes_on_with_another_number_of_ranks_and_sees_the_same_samples(mini_world, script, tmp_path):
    """2 ranks x 2, stopped after 3 of 6 steps, gone on with 1 rank x 4 and with 1 rank x 2."""
    records = {name: tmp_path / "records" / name for name in ("two", "as_before", "half")}
    for folder in records.values():
        folder.mkdir(parents=True)
    command = [script, *arguments(mini_world, tmp_path / "two")]
    result = run_command(*command, ranks=2, RECORDS=str(records["two"]), FATE="0 2 stop")
    assert result.returncode == 0, result.stderr
    n = json.loads((records["two"] / "0").read_text().splitlines()[0])["n"]
    stream = [batch[0] for batch in islice(TrainBatches(n, 1, 0, 1, seed=42), 24)]
    assert seen(records["two"]) == stream[:12]
    for name, batch in (("as_before", 4), ("half", 2)):
        shutil.copytree(tmp_path / "two", tmp_path / name)
        options = arguments(mini_world, tmp_path / name, f"run.batch_size_train={batch}", "run.resume=auto")
        gone_on = run_command(script, *options, RECORDS=str(records[name]))
        assert gone_on.returncode == 0, gone_on.stderr
        assert "iteration 3, 12 samples seen" in gone_on.stderr
        assert "number of processes: 1 instead of 2; the samples go on where they were" in gone_on.stderr
        assert seen(records[name]) == stream[12 : 12 + 3 * batch]
        progress = checkpoint.read(tmp_path / name / "stage1/checkpoint_last.pth")["progress"]
        assert progress["samples"] == 12 + 3 * batch


# ---- a rank that hangs: last, for it takes the longest


def test_a_rank_that_hangs_ends_the_run_and_is_named(hanging: subprocess.Popen):
    members: set[int] = set()
    wait_until(lambda: members.update(family(hanging.pid)), hanging)
    assert hanging.returncode == 1
    message = hanging.communicate()[1]
    root_cause = message.partition("Root Cause")[2]
    assert "rank 0: no contact any more with rank 1." in root_cause
    assert "run.timeout_minutes = 0.5" in root_cause
    assert "in run_cli" not in message
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in members))
