"""Kill a 2-rank run at random moments, start it again by the same command, and compare it with one never killed.

  python tests/kill_runs.py WORLD --kills 10      WORLD: a folder of util/make_mini_world.py

Prints a table of the moments and whether the final state is the same bit for bit.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from conftest import torchrun, train_options  # noqa: E402

STEPS = ["run.iters_per_epoch=20", "run.optims.max_epoch=2", "run.batch_size_train=2", "run.batch_size_eval=4"]
STEPS += ["run.accum_grad_iters=2", "run.log_freq=1", "run.save_every_steps=1", "run.num_workers=1"]


def command(world: Path, output: Path, processes: int = 2, *options: str) -> list[str]:
    """The same for the first start and for every other."""
    config = ["train.py", "--cfg-path", "configs/mini/stage1.yaml", "--options"]
    return [sys.executable, *torchrun(processes), *config, *train_options(world, output), *STEPS, *options]


def start(arguments: list[str], **kwargs) -> subprocess.Popen:
    """Start a run as a shell would."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        arguments, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **kwargs
    )


def run_killed(world: Path, output: Path, kills: int, rng: random.Random, *options: str) -> list[dict]:
    """Start the run and kill it `kills` times, then let it end; returns a row per start."""
    rows = []
    for number in range(kills + 1):
        process = start(command(world, output, 2, *options))
        moment = "ran to its end"
        if number < kills:
            moment = _wait_for_moment(output / "stage1", process, rng, during_save=number % 2 == 1)
            kill_all(process.pid)
        message = process.communicate(timeout=300)[1]
        going_on = [line.partition(": ")[2] for line in message.splitlines() if "going on with" in line]
        rows.append({"start": number, "began": (going_on or ["from the start"])[0], "killed": moment})
        if number == kills and process.returncode:
            raise RuntimeError(message)
    return rows


def kill_all(pid: int) -> None:
    """Kill -9 a process and all below it; torchrun gives each rank a session of its own."""
    for member in family(pid):
        try:
            os.kill(member, signal.SIGKILL)
        except ProcessLookupError:
            continue


def family(pid: int) -> list[int]:
    """A process and all below it, the lowest last."""
    members = [pid]
    for member in members:
        try:
            members += map(int, Path(f"/proc/{member}/task/{member}/children").read_text().split())
        except OSError:  # it has just ended
            continue
    return members


def _wait_for_moment(folder: Path, process: subprocess.Popen, rng: random.Random, during_save: bool) -> str:
    """Wait until the run has made some steps of its own, then for a random time or for a checkpoint being written."""
    log = folder / "log.jsonl"
    before = log.read_text().count("\n") if log.exists() else 0
    wanted, began = before + rng.randint(1, 3), time.monotonic()
    while process.poll() is None and time.monotonic() - began < 120:
        n_lines = log.read_text().count("\n") if log.exists() else 0
        if n_lines >= wanted:
            if not during_save:
                time.sleep(rng.random())
                return f"after log line {n_lines}"
            if any(folder.glob(".checkpoint_*.tmp")):
                return f"while a checkpoint was written, after log line {n_lines}"
        time.sleep(0.0005 if during_save else 0.02)
    return "too late"


def same_state(one: Path, other: Path) -> bool:
    """Whether two runs ended with the same parameters and optimiser, bit for bit."""
    states = [torch.load(folder / "stage1/checkpoint_last.pth", weights_only=True) for folder in (one, other)]
    first, second = ({**state["model"], **_flat(state["optimizer"]["state"])} for state in states)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def _flat(state: dict) -> dict:
    return {(i, name): value for i, values in state.items() for name, value in values.items()}


def main() -> None:
    """Run the comparison that the command line describes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world", type=Path)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        long_enough = f"run.optims.max_epoch={args.kills // 2 + 1}"
        message = start(command(args.world, whole, 2, long_enough)).communicate()[1]
        if not (whole / "stage1/checkpoint_last.pth").exists():
            raise SystemExit(message)
        for row in run_killed(args.world, killed, args.kills, random.Random(args.seed), long_enough):
            print(f"{row['start']:3}  {row['killed']:55}  {row['began']}", flush=True)
        same = same_state(whole, killed)
    print("final parameters and optimiser:", "the same, bit for bit" if same else "DIFFERENT")
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
