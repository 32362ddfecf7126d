"""Two ways of the same work, timed in turns; memory; the speed of the machine itself."""

import ctypes
import gc
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from tqdm import trange

from salmonn.evaluation.efficiency import now

MATMUL_SIZES = {"cpu": 2048, "cuda": 8192}
MATMUL_REPEATS = 10
_M_MMAP_THRESHOLD = -3  # malloc.h


def alternate(ours: Callable[[], object], plain: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median seconds of both, run in turns so that a noisy machine disturbs both alike; a first round warms up."""
    times: tuple[list[float], list[float]] = ([], [])
    for repeat in trange(repeats + 1, desc="rounds", leave=False, disable=None):
        for way, measured in zip((ours, plain), times, strict=True):
            started = time.perf_counter()
            way()
            if repeat:
                measured.append(time.perf_counter() - started)
    return statistics.median(times[0]), statistics.median(times[1])


def row(what: str, seconds: tuple[float, float], **more: float) -> dict:
    """One line of the table: seconds of ours and of the plain way, and their ratio."""
    return {"what": what, "ours": seconds[0], "plain": seconds[1], "ratio": seconds[1] / seconds[0], **more}


def proportional_memory(pid: int) -> int:
    """Bytes of a process, shared pages divided among those that share them (Linux)."""
    return _bytes(f"/proc/{pid}/smaps_rollup", "Pss")


def peak_growth(work: Callable[[], object], device: torch.device) -> int:
    """Bytes that work takes at its highest beyond what is held before it: of the GPU, or of this process.

    On a CPU (Linux, glibc) for a process that is there for nothing else: its allocations become slower.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    # What is freed goes back at once: kept for later, it would count beside what comes then.
    ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 16)
    # The kernel forgets the highest value so far: building the weights may have taken more than the work will.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _bytes("/proc/self/status", "VmRSS")
    work()
    return _bytes("/proc/self/status", "VmHWM") - before


def in_own_process(function: Callable, *args: Any) -> Any:
    """What a function returns in a new process, which has nothing of this one's memory."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *args).result()


def _bytes(path: str, name: str) -> int:
    """What a file of /proc says in kB; 0 for a process that has just ended."""
    lines = Path(path).read_text(encoding="ascii").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of some products of large square matrices."""
    n = MATMUL_SIZES[device.type]
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    times = []
    for _ in range(MATMUL_REPEATS):
        began = now(device)
        a @ b
        times.append(now(device) - began)
    return 2 * n**3 / min(times)
