"""Two ways of the same work, timed in turns."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path


def alternate(ours: Callable[[], object], plain: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median seconds of both, run in turns so that a noisy machine disturbs both alike; a first round warms up."""
    times: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats + 1):
        for way, measured in zip((ours, plain), times, strict=True):
            started = time.perf_counter()
            way()
            if repeat:
                measured.append(time.perf_counter() - started)
    return statistics.median(times[0]), statistics.median(times[1])


def row(what: str, seconds: tuple[float, float], **more: float) -> dict:
    """One line of the table: seconds of ours and of the plain way, and their ratio."""
    return {"what": what, "ours": seconds[0], "plain": seconds[1], "ratio": seconds[1] / seconds[0], **more}


def unique_memory(pid: int | str = "self") -> int:
    """Bytes that no other process shares (Linux: private pages of /proc/PID/smaps_rollup)."""
    return sum(_smaps(pid, "Private_Clean", "Private_Dirty", "Private_Hugetlb"))


def proportional_memory(pid: int | str = "self") -> int:
    """Bytes of a process, shared pages divided among those that share them."""
    return sum(_smaps(pid, "Pss"))


def _smaps(pid: int | str, *names: str) -> list[int]:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
    values = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
    return [values[name] for name in names if name in values]
