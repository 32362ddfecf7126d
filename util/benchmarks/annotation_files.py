"""An annotation file of millions of entries: the inspector against a plain reader."""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from salmonn.data.clip_paths import ClipPaths
from util.benchmarks.big_file import entries, write_big_file
from util.benchmarks.measure import family, proportional_memory, row
from util.inspector.readiness import count_ready

REAL_FILES = 5000


def bench_inspector(args: argparse.Namespace) -> list[dict]:
    """Readiness of a file like the released one of stage 2, with no clip there and with some thousand.

    The plain way streams with ijson and asks os.path.exists for each entry's path, in one process.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path, prefix = _big_file(args, Path(folder)), Path(folder) / "media"
        for what in ("no file there", f"{REAL_FILES} files there"):
            repeats = [(_ours(path, prefix), _plain(path, prefix)) for _ in range(args.repeats)]
            seconds = tuple(statistics.median(times) for times in zip(*repeats, strict=True))
            rows.append(row(f"readiness of {args.entries} entries, {what}", seconds))
            _make_files(prefix, args.entries)
        rows.append({"what": "peak memory of the inspector, all processes", "mb": _peak_memory(path, prefix)})
    return rows


def _ours(path: Path, prefix: Path) -> float:
    started = time.perf_counter()
    readiness = count_ready(path, ClipPaths(str(prefix)))
    _show("ours", readiness.ready.total(), readiness.total.total())
    return time.perf_counter() - started


def _plain(path: Path, prefix: Path) -> float:
    import ijson

    started, ready, total = time.perf_counter(), 0, 0
    with path.open("rb") as file:
        for entry in ijson.items(file, "annotation.item"):
            ready += os.path.exists(f"{prefix}{entry['path']}")
            total += 1
    _show(f"ijson ({ijson.backend})", ready, total)
    return time.perf_counter() - started


def _show(way: str, ready: int, total: int) -> None:
    print(f"   {way}: {ready} of {total} ready", file=sys.stderr)


def _big_file(args: argparse.Namespace, folder: Path) -> Path:
    path = folder / "stage2.json"
    print(f"   writing {args.entries} entries ...", file=sys.stderr)
    write_big_file(path, args.entries)
    return path


def _make_files(prefix: Path, n_entries: int) -> None:
    """The clips of the first few thousand entries (their content does not matter here)."""
    for entry in entries(min(REAL_FILES, n_entries), seed=0):
        file = Path(f"{prefix}{entry['path']}")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")


def _peak_memory(path: Path, prefix: Path) -> float:
    """MB of the command and its processes together, sampled while it runs."""
    command = [sys.executable, "util/anns_inspector.py", "--ann", str(path), "--prefix", str(prefix)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = 0
    finished = threading.Event()

    def wait() -> None:
        process.wait()
        finished.set()

    threading.Thread(target=wait, daemon=True).start()
    while not finished.wait(0.02):
        peak = max(peak, sum(_memory_of(pid) for pid in family(process.pid)))
    return peak / 1e6


def _memory_of(pid: int) -> int:
    try:
        return proportional_memory(pid)
    except OSError:
        return 0
