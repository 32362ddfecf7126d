"""How soon a command shows something, and how long it takes to its end or, of a server, until it can be visited.

On the miniature world's final model, which `make quickstart` makes. Each command has a terminal, as a person has.
"""

import os
import pty
import resource
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from salmonn.common.errors import UserError
from util.benchmarks.measure import family
from util.jobs import ROOT

MODEL = "output/mini/stage3/checkpoint_best.pth"
CLIP = "output/mini/world/audio/speech/test_00011.ogg"  # the README's
WORLD = ["--cfg-path", "configs/mini/decode.yaml"]
COMMANDS = {  # name: arguments
    "train.py --help": ["train.py", "--help"],
    "train.py --keys run.optims": ["train.py", "--keys", "run.optims"],
    "evaluate.py --tasks UNKNOWN": [
        "evaluate.py", "--mode", "table3", "--cfg-path", "configs/mini/evaluate.yaml", "--tasks", "unknown",
    ],
    "anns_inspector.py --help": ["util/anns_inspector.py", "--help"],
    "train.py --dry-run": ["train.py", "--cfg-path", "configs/mini/stage1.yaml", "--dry-run"],
    "convert.py inspect": ["util/convert.py", "inspect", MODEL],
    "salmonn.doctor": ["-m", "salmonn.doctor"],
    "salmonn.chat, one answer": ["-m", "salmonn.chat", *WORLD, "--audio", CLIP, "--task", "asr"],
    "salmonn.web": ["-m", "salmonn.web", *WORLD],
    "salmonn.serve": ["-m", "salmonn.serve", *WORLD],
}  # fmt: skip
READY = b"http://"  # what a server shows when it can be visited
SERVERS = ("salmonn.web", "salmonn.serve")
COLUMNS = ("screen s", "end s", "CPU s")


def bench_start(args: Namespace) -> Iterator[dict[str, Any]]:
    """Rows of seconds: until something is on the screen, until the end, and of all cores until then."""
    del args
    if not Path(MODEL).exists():
        raise UserError(f"start: {MODEL} is not there: make quickstart makes it")
    yield {"what": "", "columns": COLUMNS}
    for name, arguments in COMMANDS.items():
        seconds = started(arguments, is_server=name in SERVERS)
        yield {"what": name, "numbers": dict(zip(COLUMNS, seconds, strict=True))}


def started(arguments: list[str], is_server: bool) -> tuple[float, float, float]:
    """Seconds until something is on the screen, until the end or the server is ready, and CPU seconds until then."""
    before, began = _cpu_of_ended(), time.monotonic()
    screen, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=terminal, stderr=terminal
    )
    os.close(terminal)
    first, shown = 0.0, b""
    try:
        while not (is_server and READY in shown) and (more := _read(screen)):
            first = first or time.monotonic() - began
            shown += more
        end = time.monotonic() - began
        cpu = sum(map(_cpu_of, family(process.pid))) if is_server else 0.0
    finally:
        if is_server:
            process.send_signal(signal.SIGTERM)
        process.wait()
        os.close(screen)
    if is_server and READY not in shown:
        raise UserError(f"start: {' '.join(arguments)} ended:\n{shown.decode(errors='replace')}")
    return first, end, cpu if is_server else _cpu_of_ended() - before


def _read(screen: int) -> bytes:
    """What came on the screen; nothing once nobody writes to it any more."""
    try:
        return os.read(screen, 65536)
    except OSError:
        return b""


def _cpu_of(pid: int) -> float:
    """CPU seconds of a process that runs, with the children that have ended (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _cpu_of_ended() -> float:
    """CPU seconds of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
