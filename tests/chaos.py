"""Disturb the product at random moments, start the same command again, and compare with what was never disturbed.

  python tests/chaos.py WORLD --minutes 20               WORLD: a folder of util/make_mini_world.py
  python tests/chaos.py WORLD --only convert,split --seed 7

A round starts a job up to three times and each time kills all of its processes, one rank, torchrun alone or a worker,
stops one for some seconds (SIGSTOP), or lets the disk be full; then, half of the time, it cuts or flips bytes of a file
that the product wrote. At last the same command runs to its end. Prints each round and a table of counts: the same
result, told (exit code 2: no whole checkpoint is left), or WRONG, of which there may be none (else exit code 1).
A blow that came when all was over, or that found nothing to hit, is not counted.
"""

import argparse
import hashlib
import json
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
from tests.fixtures.commands import torchrun
from tests.fixtures.kill_runs import command_of, family, kill_all, same_state, start, workers_of
from tests.fixtures.paths import ROOT
from tests.fixtures.waiting import HANG
from util.mini_world.use import mini_options

ANNOTATION = "stage1_train.json"
TASKS = {"asr": "test_asr.json", "gr": "test_gender_recognition.json"}  # of table3, and their annotation files
CLIPS = 6  # of each
LAUNCHER = "torch.distributed.run"
TOLD = ("none of the checkpoints in", "No other checkpoint in")  # nothing is left that could be gone on with
_INPUT = "ann"  # folder of which the product wrote the indices alone
_FROZEN = 5.0  # s


@dataclass(frozen=True)
class Job:
    """A command that writes to a folder, and what must be the same in the end."""

    name: str
    command: Callable[[Path], list[str]]
    differs: Callable[[Path, Path], str]  # what is otherwise in a second folder; "" where nothing is
    is_done: Callable[[Path], bool] = lambda _: False  # where a second call would be refused


def jobs(world: Path, shared: Path) -> list[Job]:
    """All that is disturbed; `shared`: a folder for what several rounds use."""
    python, inspector = sys.executable, ["util/anns_inspector.py", "--prefix", f"{world}/audio", "--jobs", "2", "--ann"]

    def inspect(folder: Path, *arguments: str) -> list[str]:
        return [python, *inspector, f"{folder}/ann/{ANNOTATION}", *arguments]

    def train(folder: Path) -> list[str]:
        own = (f"datasets.{part}_ann_path={folder}/ann/stage1_{part}.json" for part in ("train", "valid"))
        return kill_runs.command(world, folder, 2, *own, f"run.encoder_cache={folder}/cache")

    def convert(command: str) -> Job:
        return Job(
            command,
            lambda folder: [python, "util/convert.py", command, str(_checkpoint(world, shared)), f"{folder}/model"],
            partial(_differs, "model/*"),
            is_done=lambda folder: (folder / "model").exists(),
        )

    return [
        Job("training", train, _differs_training),
        Job("table3", partial(_table3, world, shared), _differs_table3),
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
        *map(convert, ("to-folder", "export-lora", "export-merged")),
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
    """Two tasks of few clips and short answers, by two ranks: most of its time a round is to kill, not to wait."""
    from omegaconf import OmegaConf

    tasks = OmegaConf.load(ROOT / "configs/mini/eval_tasks.yaml")
    chosen = {name: tasks[name] for name in TASKS}
    for task in chosen.values():
        task.annotation = f"{folder}/ann/{Path(task.annotation).name}"
    OmegaConf.save(OmegaConf.create(chosen), folder / "ann/tasks.yaml")
    options = [*mini_options(world, folder), f"evaluate.tasks_file={folder}/ann/tasks.yaml", "run.num_workers=1"]
    options += ["run.batch_size_eval=1", "generate.num_beams=1", "generate.max_new_tokens=4"]
    options += [f"model.ckpt={_checkpoint(world, shared)}", f"evaluate.results_dir={folder}/results"]
    command = ["evaluate.py", "--mode", "table3", "--cfg-path", "configs/mini/evaluate.yaml"]
    return [sys.executable, *torchrun(2), *command, "--options", *options]


# ---- the same in the end?


def _differs(pattern: str, one: Path, other: Path) -> str:
    """Files of a pattern that are absent, too many or otherwise."""

    def found(folder: Path) -> dict[str, str]:
        files = (path for path in folder.glob(pattern) if path.is_file() and path.suffix != ".lock")
        return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    first, second = found(one), found(other)
    return ", ".join(sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name)))


def _differs_table3(one: Path, other: Path) -> str:
    """Answers, scores and page; a report also holds when, and for how long."""
    pages = [json.loads((folder / "results/table3/report.json").read_text(encoding="utf-8")) for folder in (one, other)]
    scores = [str([(page[name]["scores"], page[name]["intervals"]) for name in TASKS]) for page in pages]
    return _differs("results/table3/*/predictions.jsonl", one, other) or ("" if scores[0] == scores[1] else "scores")


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
    scripts = (b"train.py", b"evaluate.py")
    return [member for member in family(pid)[1:] if any(map(command_of(member).count, scripts))] or [pid]


def _kill_one(members: Sequence[int], rng: random.Random) -> bool:
    """Kill one of them, if there are any; whether one was."""
    if not members:
        return False
    try:
        os.kill(rng.choice(members), signal.SIGKILL)
    except ProcessLookupError:  # it has just ended
        return False
    return True


def _kill_all(pid: int, _: random.Random) -> bool:
    kill_all(pid)
    return True


def _freeze(pid: int, rng: random.Random) -> bool:
    member = rng.choice(family(pid))
    try:
        os.kill(member, signal.SIGSTOP)
        time.sleep(_FROZEN)
        os.kill(member, signal.SIGCONT)
    except ProcessLookupError:
        return False
    return True


DISTURBANCES: dict[str, Callable[[int, random.Random], bool]] = {  # whether they hit somebody
    "all killed": _kill_all,
    "a rank killed": lambda pid, rng: _kill_one(_ranks(pid), rng),
    "the first alone killed": lambda pid, rng: _kill_one([pid], rng),  # torchrun, where there is one
    "a worker killed": lambda pid, rng: _kill_one(workers_of(pid), rng),
    "one stopped": _freeze,
}
FULL_DISK = "disk full"


def disturb(command: Sequence[str], seconds: float, rng: random.Random) -> str:
    """Start a command and disturb it at a moment of the `seconds` that it takes; returns how, once all has ended.

    "" where it ended before, or there was no such process. Raises AssertionError where a full disk was no message.
    """
    how = rng.choice([*DISTURBANCES, FULL_DISK])
    if how == FULL_DISK:  # files that grow beyond a size are refused, as by a disk without room
        size = int(10 ** rng.uniform(3, 6))
        process = start(command, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)))
    else:
        process = start(command)
        try:
            process.wait(rng.uniform(0, seconds))
            how = ""
        except subprocess.TimeoutExpired:
            how = how if DISTURBANCES[how](process.pid, rng) else ""
    message = _end(process)
    if how == FULL_DISK and "Traceback" in message and LAUNCHER not in command:  # which shows one of its own
        raise AssertionError(f"a full disk gave a traceback: {message[-2000:]}")
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
        and (path.name.startswith(".") or path.relative_to(folder).parts[0] != _INPUT)
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
    for name in TASKS.values():
        entries = json.loads((world / "ann" / name).read_text(encoding="utf-8"))["annotation"][:CLIPS]
        (folder / "ann" / name).write_text(json.dumps({"annotation": entries}), encoding="utf-8")
    return folder


def run_round(job: Job, world: Path, whole: Path, seconds: float, rng: random.Random) -> tuple[str, list[str]]:
    """Disturb a job up to three times, then let it end; returns (same | told | WRONG: why, what was done to it)."""
    done: list[str] = []
    with tempfile.TemporaryDirectory() as place:
        folder = prepared(Path(place) / "disturbed", world)
        for _ in range(rng.randint(1, 3)):
            if job.is_done(folder):
                break
            try:
                done.append(disturb(job.command(folder), seconds, rng))
            except AssertionError as error:
                return f"WRONG: {error}", [*done, FULL_DISK]
            if rng.random() < 0.5 and not job.is_done(folder):
                done.append(damage(folder, rng))
        done = [what for what in done if what]
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
