"""Disturb the product at random moments, start the same command again, and compare with what was never disturbed.

  python tests/chaos.py WORLD --minutes 20               WORLD: a folder of util/make_mini_world.py
  python tests/chaos.py WORLD --only convert,split --seed 7

A round starts a job up to three times and each time kills all of its processes, one rank, torchrun alone or a worker,
stops one for some seconds (SIGSTOP), or lets the disk be full; then, half of the time, it cuts or flips bytes of a file
that the product wrote. At last the same command runs to its end. Prints each round and a table of counts: the same
result, told (exit code 2: no whole checkpoint is left), or WRONG, of which there may be none (else exit code 1).
"""

import argparse
import hashlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from salmonn.common.files import read_json_lines
from salmonn.data.integrity import VerdictList
from salmonn.model import checkpoint
from tests.fixtures import kill_runs
from tests.fixtures.kill_runs import command_of, family, kill_all, same_state, start, workers_of
from tests.fixtures.paths import ROOT
from tests.fixtures.waiting import HANG
from util.mini_world.use import mini_options

ANNOTATION = "stage1_train.json"
TOLD = ("none of the checkpoints in", "No other checkpoint in")  # nothing is left that could be gone on with
_NOT_DAMAGED = ("ann", "tensorboard")  # folders with input; what only people read
_FROZEN = 5.0  # s


@dataclass(frozen=True)
class Job:
    """A command that writes to a folder, and what must be the same in the end."""

    name: str
    command: Callable[[Path], list[str]]
    differs: Callable[[Path, Path], str]  # what is otherwise in a second folder; "" where nothing is
    is_done: Callable[[Path], bool] = lambda _: False  # where a second call would be refused
    is_damaged: bool = True  # whether damage to what it wrote is to be mended by the same command


def jobs(world: Path, shared: Path) -> list[Job]:
    """All that is disturbed; `shared`: a folder for what several rounds use."""
    python, inspector = sys.executable, ["util/anns_inspector.py", "--prefix", f"{world}/audio", "--jobs", "2", "--ann"]

    def inspect(folder: Path, *arguments: str) -> list[str]:
        return [python, *inspector, f"{folder}/ann/{ANNOTATION}", *arguments]

    def train(folder: Path) -> list[str]:
        own = (f"datasets.{part}_ann_path={folder}/ann/stage1_{part}.json" for part in ("train", "valid"))
        return kill_runs.command(world, folder, 2, *own)

    return [
        Job("training", train, _differs_training),
        Job("table3", partial(_table3, world, shared), partial(_differs, "results/table3/*/predictions.jsonl")),
        Job(
            "inspector",
            lambda folder: inspect(folder, "--check-integrity", "--verdicts", f"{folder}/verdicts.jsonl"),
            _differs_verdicts,
        ),
        Job("convert", lambda folder: inspect(folder, "--convert", f"{folder}/out"), partial(_differs, "out/**/[!.]*")),
        Job(
            "split",
            lambda folder: inspect(folder, "--split", ".8", ".1", ".1", "--out", f"{folder}/split", "--force"),
            partial(_differs, "split/[!.]*"),
        ),
        Job(
            "to-folder",
            lambda folder: [python, "util/convert.py", "to-folder", str(_checkpoint(world, shared)), f"{folder}/model"],
            partial(_differs, "model/*"),
            is_done=lambda folder: (folder / "model").exists(),
            is_damaged=False,
        ),
    ]


def _checkpoint(world: Path, shared: Path) -> Path:
    """A checkpoint of random weights, made at the first call."""
    path = shared / "random.pth"
    if not path.exists():
        from omegaconf import OmegaConf

        from salmonn.config.loading import load_config
        from salmonn.model.salmonn import SALMONN
        from tests.fixtures.checkpoints import save_checkpoint

        config = load_config("configs/mini/evaluate.yaml", [*mini_options(world, shared), "model.ckpt="])
        save_checkpoint(path, SALMONN.from_config(config.model), config=OmegaConf.to_container(config), epoch=0, step=0)
    return path


def _table3(world: Path, shared: Path, folder: Path) -> list[str]:
    from omegaconf import OmegaConf

    tasks = OmegaConf.load(ROOT / "configs/mini/eval_tasks.yaml")
    for task in tasks.values():
        task.annotation = f"{world}/ann/{Path(task.annotation).name}"
    OmegaConf.save(tasks, shared / "tasks.yaml")
    options = [*mini_options(world, folder), f"evaluate.tasks_file={shared}/tasks.yaml", "generate.max_new_tokens=8"]
    options += [f"model.ckpt={_checkpoint(world, shared)}", f"evaluate.results_dir={folder}/results"]
    command = ["evaluate.py", "--mode", "table3", "--cfg-path", "configs/mini/evaluate.yaml", "--tasks", "asr,er,story"]
    return [sys.executable, *command, "--options", *options]


# ---- the same in the end?


def _differs(pattern: str, one: Path, other: Path) -> str:
    """Files of a pattern that are absent, too many or otherwise."""

    def found(folder: Path) -> dict[str, str]:
        files = (path for path in folder.glob(pattern) if path.is_file() and path.suffix != ".lock")
        return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    first, second = found(one), found(other)
    return ", ".join(sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name)))


def _differs_training(one: Path, other: Path) -> str:
    if not same_state(one, other):
        return "parameters or optimiser"
    best, other_best = (checkpoint.read(folder / "stage1/checkpoint_best.pth") for folder in (one, other))
    is_same = all(torch.equal(other_best["model"][name], value) for name, value in best["model"].items())
    if not is_same or best["progress"]["best"] != other_best["progress"]["best"]:
        return "the best checkpoint"
    log = read_json_lines(other / "stage1/log.jsonl", "a line of the log")
    steps = [(line["kind"], line["step"]) for line in log]
    return "" if len(steps) == len(set(steps)) else "lines of the log, twice"


def _differs_verdicts(one: Path, other: Path) -> str:
    verdicts = [{v.path: (v.ok, v.reason) for v in VerdictList(f / "verdicts.jsonl").read()} for f in (one, other)]
    names = verdicts[0].keys() | verdicts[1].keys()
    return ", ".join(sorted(name for name in names if verdicts[0].get(name) != verdicts[1].get(name)))


# ---- disturbances


def _ranks(pid: int) -> list[int]:
    """The processes that torchrun started; the command itself where it is alone."""
    return [member for member in family(pid)[1:] if b"train.py" in command_of(member)] or [pid]


def _kill_one(members: Sequence[int], rng: random.Random) -> None:
    if members:
        try:
            os.kill(rng.choice(members), signal.SIGKILL)
        except ProcessLookupError:  # it has just ended
            return


def _freeze(pid: int, rng: random.Random) -> None:
    member = rng.choice(family(pid))
    try:
        os.kill(member, signal.SIGSTOP)
        time.sleep(_FROZEN)
        os.kill(member, signal.SIGCONT)
    except ProcessLookupError:
        return


DISTURBANCES: dict[str, Callable[[int, random.Random], None]] = {
    "all killed": lambda pid, _: kill_all(pid),
    "a rank killed": lambda pid, rng: _kill_one(_ranks(pid), rng),
    "the first alone killed": lambda pid, rng: _kill_one([pid], rng),  # torchrun, where there is one
    "a worker killed": lambda pid, rng: _kill_one(workers_of(pid), rng),
    "one stopped": _freeze,
}
FULL_DISK = "disk full"


def disturb(command: Sequence[str], seconds: float, rng: random.Random) -> str:
    """Start a command and disturb it at a moment of the `seconds` that it takes; returns how, once all has ended."""
    how = rng.choice([*DISTURBANCES, FULL_DISK])
    if how == FULL_DISK:  # files that grow beyond a size are refused, as by a disk without room
        size = int(10 ** rng.uniform(3, 6))
        process = start(command, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)))
    else:
        process = start(command)
        try:
            process.wait(rng.uniform(0, seconds))
        except subprocess.TimeoutExpired:
            DISTURBANCES[how](process.pid, rng)
    _end(process)
    return how


def _end(process: subprocess.Popen) -> str:
    """Wait until nobody writes to its stderr any more: ranks that outlive torchrun do so until they end."""
    try:
        return process.communicate(timeout=HANG)[1]
    except subprocess.TimeoutExpired:
        kill_all(process.pid)
        raise


def damage(folder: Path, rng: random.Random) -> str:
    """Cut a file that the product wrote, or flip some of its bytes; returns which and how."""
    files = sorted(
        path for path in folder.rglob("*")
        if path.is_file() and path.stat().st_size and path.suffix != ".lock"
        and (path.name.startswith(".") or not set(path.relative_to(folder).parts) & set(_NOT_DAMAGED))
    )  # fmt: skip
    if not files:
        return ""
    path = rng.choice(files)
    status, content = path.stat(), bytearray(path.read_bytes())
    how = rng.choice(["cut", "one bit flipped", "noise", "zeros"])
    at = rng.randrange(len(content))
    if how == "cut":
        del content[at:]
    elif how == "one bit flipped":
        content[at] ^= 1 << rng.randrange(8)
    else:
        n = min(rng.randint(1, 4096), len(content) - at)
        content[at : at + n] = rng.randbytes(n) if how == "noise" else bytes(n)
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as a disk that forgets does
    return f"{path.relative_to(folder)} {how}"


# ---- rounds


def prepared(folder: Path, world: Path) -> Path:
    """A folder with the annotation files of its own, beside which their indices come to lie."""
    (folder / "ann").mkdir(parents=True)
    for part in ("train", "valid"):
        shutil.copy(world / f"ann/stage1_{part}.json", folder / "ann")
    return folder


def run_round(job: Job, world: Path, whole: Path, seconds: float, rng: random.Random) -> tuple[str, list[str]]:
    """Disturb a job up to three times, then let it end; returns (same | told | WRONG: why, what was done to it)."""
    done: list[str] = []
    with tempfile.TemporaryDirectory() as place:
        folder = prepared(Path(place) / "disturbed", world)
        for _ in range(rng.randint(1, 3)):
            if job.is_done(folder):
                break
            done.append(disturb(job.command(folder), seconds, rng))
            if job.is_damaged and rng.random() < 0.5 and (what := damage(folder, rng)):
                done.append(what)
        if not job.is_done(folder):
            process = start(job.command(folder))
            message = _end(process)
            if process.returncode:
                is_told = process.returncode in (1, 2) and any(words in message for words in TOLD)
                return "told" if is_told else f"WRONG: exit code {process.returncode}: {message[-3000:]}", done
        try:
            difference = job.differs(whole, folder)
        except Exception as error:
            difference = repr(error)
        left = ", ".join(path.name for path in folder.rglob(".*.tmp"))
        return f"WRONG: {difference or f'left over: {left}'}" if difference or left else "same", done


def run(world: Path, minutes: float, only: Sequence[str], seed: int) -> Counter[tuple[str, str]]:
    """Rounds of each job in turn until the time is over, at least one; {(job, outcome or disturbance): how often}."""
    rng, counts = random.Random(seed), Counter[tuple[str, str]]()
    with tempfile.TemporaryDirectory() as place:
        shared = Path(place)
        chosen = [job for job in jobs(world, shared) if not only or job.name in only]
        wholes: dict[str, tuple[Path, float]] = {}
        deadline = time.monotonic() + 60 * minutes
        while True:
            for job in chosen:
                if job.name not in wholes:
                    wholes[job.name] = _undisturbed(job, prepared(shared / job.name, world))
                outcome, done = run_round(job, world, *wholes[job.name], rng)
                print(f"{job.name}: {'; '.join(done)} -> {outcome}", flush=True)
                counts[job.name, outcome.partition(":")[0]] += 1
                for what in done:
                    counts[job.name, what if what in {*DISTURBANCES, FULL_DISK} else "damaged"] += 1
            if time.monotonic() > deadline:
                return counts


def _undisturbed(job: Job, folder: Path) -> tuple[Path, float]:
    command, began = job.command(folder), time.monotonic()
    process = start(command)
    message = _end(process)
    if process.returncode:
        raise SystemExit(f"{job.name} fails undisturbed: {message}")
    return folder, time.monotonic() - began


def table(counts: Counter[tuple[str, str]]) -> str:
    """A row per job, a column per outcome and disturbance."""
    columns = ["same", "told", "WRONG", *DISTURBANCES, FULL_DISK, "damaged"]
    rows = [["", *columns]]
    rows += [[name, *(str(counts[name, column]) for column in columns)] for name in dict.fromkeys(n for n, _ in counts)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def main(arguments: Sequence[str] | None = None) -> Any:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world", type=Path)
    parser.add_argument("--minutes", type=float, default=20, help="0: one round of each job (default: %(default)s)")
    parser.add_argument("--only", type=lambda text: text.split(","), default=[], metavar="JOB,...", help="these jobs")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    counts = run(args.world.resolve(), args.minutes, args.only, args.seed)
    print(f"\n{table(counts)}")
    sys.exit(1 if any(outcome == "WRONG" for _, outcome in counts) else 0)


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
