"""Everything that only a GPU can tell, in some minutes: right, fast, fits, waits, answers, one rank.

  python util/gpu_check.py                              on this machine's GPU, with models of 13B size
  python util/gpu_check.py --device cpu --size mini     the same script where there is no GPU

Each part runs in a process of its own with a time limit, the most important first, and tells a line as it ends;
time that one does not need is the next one's, and all of them end inside --minutes. DIR/gpu_check.json is written
as it goes: a run that is killed keeps what it has. The table is DIR/gpu_check.md. Random weights, made on the
device: nothing is downloaded.
Exit code 0 where every part ran and met its bars, else 1.
"""

import argparse
import contextlib
import datetime
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from salmonn.common.cli import above_zero, command_parser, run_cli  # noqa: E402
from salmonn.common.errors import UserError  # noqa: E402

LOOK = 0.2  # s between looks at a part
TO_END = 30.0  # s that a part and what it has started have for it, within the time of all parts
ON_A_CPU = "skipped on a CPU"  # as a part ends that could not be expected to run
HAS_GPU = "import sys, torch; sys.exit(not torch.cuda.is_available())"
LEAST = 45.0  # s that a part has in any case while there are as many: the first one loads the libraries from disk
# By what they are imported as; tests/util/test_gpu_check.py runs each part with all others away.
LEAST_NEEDED = ("torch", "numpy", "omegaconf", "tqdm")
MODEL = (*LEAST_NEEDED, "transformers", "accelerate", "safetensors", "peft", "soundfile", "soxr", "filelock", "msgspec")
TOKENIZER = ("sentencepiece", "google.protobuf")  # of LLaMA's own files


class Part(NamedTuple):
    """A module of util/gpu whose `rows(setup, *arguments)` measures, in a process of its own."""

    module: str
    share: float  # of the time
    arguments: tuple[str, ...] = ()
    needs: tuple[str, ...] = MODEL  # packages without which it is skipped


# First what no card was there for long enough to tell, and what the rest is worth nothing without.
PARTS = {
    "environment": Part("environment", 2, needs=(*LEAST_NEEDED, "packaging")),
    "right": Part("right", 2, needs=(*MODEL, *TOKENIZER)),
    "fast-8bit": Part("fast", 3, ("8bit",), needs=(*MODEL, "bitsandbytes", "torchaudio")),
    "fast-int8": Part("fast", 3, ("int8",), needs=(*MODEL, "torchaudio")),
    "fast-bfloat16": Part("fast", 4, ("none",), needs=(*MODEL, "torchaudio")),
    "fits": Part("fits", 4, needs=(*MODEL, "bitsandbytes")),
    "tokens": Part("tokens", 3),
    "answers": Part("answers", 3, needs=(*MODEL, "torchaudio")),
    "one-rank": Part("one_rank", 4, needs=(*MODEL, *TOKENIZER, "espeakng_loader", "tensorboardX", "editdistance")),
    "waits": Part("waits", 2),
    "fast-nf4": Part("fast", 3, ("nf4",), needs=(*MODEL, "bitsandbytes", "torchaudio")),
    "compile": Part("compiled", 3),
}
INT8_BAR = 1.5  # times bitsandbytes' samples/s at full size


def main() -> None:
    """Run the parts one after the other, or, as a process of its own, the one that --part names."""
    args = parse_arguments()
    if args.part:
        measure(args)
        return
    began = time.monotonic()
    ends = began + 60 * args.minutes
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the part that runs ends, too
    if args.device == "cuda" and subprocess.run([sys.executable, "-c", HAS_GPU], check=False).returncode:
        raise UserError("--device cuda: PyTorch finds no GPU here; --device cpu --size mini goes without")
    os.chdir(ROOT)
    args.out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        "command": shlex.join(["python", "util/gpu_check.py", *sys.argv[1:]]),
        "minutes": args.minutes,
        "seconds": 0.0,
        "parts": {},
    }
    names = list(args.parts or PARTS)
    process = start(names[0], args)
    for i, name in enumerate(names):
        # a GPU's host has cores to load the next part's libraries meanwhile
        ahead = start(names[i + 1], args) if i + 1 < len(names) and args.device == "cuda" else None
        seconds = limit(names[i:], ends - time.monotonic())
        print(name, flush=True)
        for result in finish(name, process or start(name, args), seconds, args):
            report["parts"][name] = result
            report["seconds"] = time.monotonic() - began
            write_report(args.out, report)
        if name == "fast-int8":  # of two processes, so neither of them can tell
            for line in against_8bit(report["parts"], args.size):
                result["rows"].append(line)
                print(f"   {text_line(line)}", flush=True)
            write_report(args.out, report)
        print(f"   {result['ended']}, {result['seconds']:.0f} s of {seconds:.0f}", flush=True)
        process = ahead
    print(f"\n{markdown(report)}\n{args.out}/gpu_check.json and .md hold it")
    met = all(row.get("ok", True) for result in report["parts"].values() for row in result["rows"])
    ran = all(result["ended"].startswith(("done", ON_A_CPU)) for result in report["parts"].values())
    sys.exit(0 if met and ran else 1)


def against_8bit(parts: dict[str, Any], size: str) -> list[dict[str, Any]]:
    """Of each step of ours with int8 that ran with bitsandbytes' 8 bits, too: how many times its speed and memory."""
    int8, eight = (_of_steps(parts.get(f"fast-{how}", {"rows": []})["rows"], how) for how in ("int8", "8bit"))
    lines = []
    for (step, unit), value in int8.items():
        if (step, unit) in eight:
            ratio = value / eight[step, unit]
            lines.append({"what": f"   int8 against 8bit, {step}: {unit}", "value": ratio, "unit": "x"})
            if size == "full" and unit == "samples/s" and ", ours, batch" in step:
                lines[-1] |= {"bar": f"{INT8_BAR:g} x", "ok": ratio >= INT8_BAR}
    return lines


def _of_steps(rows: list[dict[str, Any]], quantization: str) -> dict[tuple[str, str], float]:
    """Samples/s and GB of each step of ours, by its name without the quantisation."""
    found, step = {}, ""
    for row in rows:
        if row["unit"] == "samples/s":
            step = row["what"].replace(f"{quantization} LLM, ", "")
        if row["unit"] in ("samples/s", "GB") and ", ours, " in step:
            found[step, row["unit"]] = row["value"]
    return found


def limit(names: list[str], left: float) -> float:
    """Seconds that the first of the parts may take of those that are left to all; ending it is within what is left."""
    usable = max(0.0, left - TO_END)
    share = PARTS[names[0]].share / sum(PARTS[name].share for name in names)
    return min(usable, max(LEAST, usable * share))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--minutes", type=above_zero, default=8.0, metavar="M", help="time for all of it (default 8)")
    add("--out", type=Path, default=ROOT / "output/gpu_check", metavar="DIR", help="results (default %(default)s)")
    add("--device", choices=("cuda", "cpu"), default="cuda", help="where it runs (default cuda)")
    add("--size", choices=("full", "mini"), default="full", help="13B, or what a CPU takes (default full)")
    add("--parts", nargs="+", choices=PARTS, metavar="NAME", help=f"only these: {', '.join(PARTS)}")
    add(
        "--part",
        choices=PARTS,
        metavar="NAME",
        help="measure this one here, at a line on stdin (what the script itself does)",
    )
    args = parser.parse_args()
    if 60 * args.minutes <= TO_END:
        parser.error(f"--minutes must be more than {TO_END / 60:g}")
    args.out = args.out.absolute()
    if args.device == "cpu" and args.size == "full":
        parser.error("--device cpu needs --size mini: a 13B step takes an hour there")
    return args


# ---- the process of a part


def measure(args: argparse.Namespace) -> None:
    """Load what a part needs, wait for its turn, then append each row to its file as soon as it is known."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    part = PARTS[args.part]
    module = import_module(f"util.gpu.{part.module}")
    from util.gpu.rows import Setup  # with it come the libraries

    if not sys.stdin.readline():
        return  # the check is over
    with rows_file(args.out, args.part).open("a", encoding="utf-8") as file:
        for row in module.rows(Setup(args.device, args.size), *part.arguments):
            file.write(json.dumps(row) + "\n")
            file.flush()


def _end_with(script: int) -> None:
    """Once the script is gone, also by a kill, end what it has started: the next check wants the GPU's memory."""
    while os.getppid() == script:
        time.sleep(LOOK)
    os.killpg(0, signal.SIGTERM)


def skipped(name: str, device: str) -> str:
    """Why a part does not run here; "" where it does."""
    missing = [package for package in PARTS[name].needs if not is_there(package)]
    if missing:
        return f"skipped: {', '.join(missing)} not installed"
    if device == "cpu" and name == "compile":
        return f"{ON_A_CPU}, where compiling takes minutes"
    return ""


def is_there(package: str) -> bool:
    """Whether a package can be found, and, for one inside another, that one."""
    with contextlib.suppress(ModuleNotFoundError):
        return find_spec(package) is not None
    return False


def start(name: str, args: argparse.Namespace) -> subprocess.Popen | None:
    """The process of a part, which loads its libraries and waits for its turn; None for one that does not run here."""
    path = rows_file(args.out, name)
    path.unlink(missing_ok=True)
    if skipped(name, args.device):
        return None
    command = [sys.executable, str(ROOT / "util/gpu_check.py"), "--part", name]
    command += ["--device", args.device, "--size", args.size, "--out", str(args.out)]
    with path.with_suffix(".log").open("w", encoding="utf-8") as log:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True)


def finish(
    name: str, process: subprocess.Popen | None, seconds: float, args: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Let a part begin: how it stands after each of its rows, which are shown, and at last how it ended."""
    began = time.monotonic()
    rows: list[dict[str, Any]] = []
    if process is None:
        yield {"ended": skipped(name, args.device), "seconds": 0.0, "rows": rows}
        return
    if not seconds:
        end_all(process)
        yield {"ended": "not begun: no time was left", "seconds": 0.0, "rows": rows}
        return
    path, ended = rows_file(args.out, name), ""
    with contextlib.suppress(BrokenPipeError), its_turn_of(process) as its_turn:  # broken: it has failed already
        its_turn.write(b"go\n")
    try:
        while not ended:
            time.sleep(LOOK)
            passed = time.monotonic() - began
            ended = _how_it_ended(process, path.with_suffix(".log"), passed, seconds)
            known = whole_rows(path)
            for row in known[len(rows) :]:
                print(f"   {text_line(row)}", flush=True)
            if ended or len(known) > len(rows):
                rows = known
                yield {"ended": ended or "begun", "seconds": passed, "rows": rows}
    finally:
        end_all(process)


def its_turn_of(process: subprocess.Popen) -> IO[bytes]:
    """Where a part hears that it may begin."""
    assert process.stdin is not None  # as `start` makes it
    return process.stdin


def end_all(process: subprocess.Popen) -> None:
    """End a part and what it has started: torchrun hears a SIGTERM and ends its ranks, which are in other groups."""
    with contextlib.suppress(ProcessLookupError):  # once nobody is left
        os.killpg(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + TO_END
        while time.monotonic() < deadline:
            process.poll()
            os.killpg(process.pid, 0)
            time.sleep(LOOK)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _how_it_ended(process: subprocess.Popen, log: Path, passed: float, seconds: float) -> str:
    """done, failed with the last thing that it said, or stopped; "" while it runs and may."""
    if (code := process.poll()) is not None:
        return f"failed: {last_line(log)} ({log})" if code else "done"
    return f"stopped at its limit of {seconds:.0f} s" if passed > seconds else ""


def whole_rows(path: Path) -> list[dict[str, Any]]:
    """The rows that a part has written, but for a line that it is writing."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line[-1] == "\n"]


def rows_file(out: Path, name: str) -> Path:
    """Where a part writes its rows."""
    return out / f"{name}.jsonl"


def last_line(log: Path) -> str:
    """What a process said last."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


# ---- what is shown


def write_report(out: Path, report: dict[str, Any]) -> None:
    """Both files, whole at any time."""
    for name, text in (("gpu_check.json", json.dumps(report, indent=1)), ("gpu_check.md", markdown(report))):
        part = out / f".{name}"
        part.write_text(text + "\n", encoding="utf-8")
        part.replace(out / name)


def text_line(row: dict[str, Any]) -> str:
    """A row for the screen."""
    return f"{row['what']:76}{shown_value(row):>22}  {shown_bar(row)}".rstrip()


def shown_value(row: dict[str, Any]) -> str:
    """The value with its unit."""
    value = row["value"]
    return f"{value:.4g} {row['unit']}".strip() if isinstance(value, float) else f"{value} {row['unit']}".strip()


def shown_bar(row: dict[str, Any]) -> str:
    """What was wanted, and whether it is so; "" where nothing was."""
    return f"{'ok' if row['ok'] else 'NOT MET'}: {row['bar']}" if "bar" in row else ""


def markdown(report: dict[str, Any]) -> str:
    """The table of a report."""
    return "\n".join(_markdown_lines(report))


def _markdown_lines(report: dict[str, Any]) -> Iterator[str]:
    of = f"{report['seconds']:.0f} s of {60 * report['minutes']:g}"
    yield f"`{report['command']}`, {report['date']}, {of}"
    yield ""
    yield "| part | what | measured | wanted |"
    yield "|---|---|---|---|"
    for name, result in report["parts"].items():
        for row in result["rows"]:
            yield f"| {name} | {row['what'].strip()} | {shown_value(row)} | {shown_bar(row)} |"
        yield f"| {name} | {result['ended']}, {result['seconds']:.0f} s | | |"


if __name__ == "__main__":
    run_cli(main)
