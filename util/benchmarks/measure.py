"""Two ways of the same work, timed in turns; memory; the speed of the machine itself."""

import ctypes
import gc
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from tqdm import trange

from salmonn.common.device import now
from salmonn.common.errors import UserError

MATMUL_SIZES = {"cpu": 2048, "cuda": 8192}
SMALLEST, MATMUL_REPEATS, LONG = 256, 10, 0.1  # s of a product: larger ones are left out
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # malloc.h
Clock = Callable[[], float]


def spent(device: torch.device) -> float:
    """Seconds so far that work has cost: CPU seconds of this process, or the clock once a GPU has done its work.

    CPU seconds do not count what others do on the same cores.
    """
    return time.process_time() if device.type == "cpu" else now(device)


def in_turns(
    ways: Sequence[Callable[[], object]],
    repeats: int,
    clock: Clock = time.perf_counter,
    of: Callable[[Sequence[float]], float] = statistics.median,
) -> list[float]:
    """Median seconds of each way, run in turns so that a noisy machine disturbs all alike; a first round warms up.

    `of`: what is taken of the repeats, where not the median.
    """
    times: list[list[float]] = [[] for _ in ways]
    for repeat in trange(repeats + 1, desc="rounds", leave=False, disable=None):
        for way, measured in zip(ways, times, strict=True):
            started = clock()
            way()
            if repeat:
                measured.append(clock() - started)
    return [of(measured) for measured in times]


def chosen_sides(benchmark: str, given: Sequence[str] | None, there: Sequence[str]) -> tuple[str, ...]:
    """Those of the sides that are there which `--sides` names; all where it names none.

    Raises UserError for one that this benchmark does not have.
    """
    if missing := sorted(set(given or ()) - set(there)):
        raise UserError(f"{benchmark}: --sides {' '.join(missing)}: here there are {', '.join(there)}")
    return tuple(side for side in there if side in (given or there))


def keep_freed_memory() -> None:
    """Let this process keep what it frees for what comes next, as PyTorch does on a GPU (Linux, glibc).

    Else every large tensor comes from the kernel page by page, which on a virtual machine costs more than the
    work on it, and never twice the same: one softmax took 0.23 to 0.83 s.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)


def row(what: str, seconds: tuple[float, float], **more: float) -> dict:
    """One line of the table: seconds of ours and of the plain way, and their ratio."""
    return {"what": what, "ours": seconds[0], "plain": seconds[1], "ratio": seconds[1] / seconds[0], **more}


def family(pid: int) -> list[int]:
    """A process and those that it has started itself (Linux); nobody where it has ended."""
    try:
        return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split())]
    except OSError:
        return []


def proportional_memory(pid: int) -> int:
    """Bytes of a process, shared pages divided among those that share them (Linux)."""
    return _bytes(f"/proc/{pid}/smaps_rollup", "Pss")


def peak_growth(work: Callable[[], object], device: torch.device) -> int:
    """Bytes that work takes at its highest beyond what is held before it, as `held_and_peak`."""
    before, peak = held_and_peak(work, device)
    return peak - before


def held_and_peak(work: Callable[[], object], device: torch.device) -> tuple[int, int]:
    """Bytes that are held before some work, and in all at its highest: of the GPU, or of this process.

    On a CPU (Linux, glibc) for a process that is there for nothing else: its allocations become slower.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return before, torch.cuda.max_memory_allocated(device)
    # What is freed goes back at once: kept for later, it would count beside what comes then.
    ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 16)
    # The kernel forgets the highest value so far: building the weights may have taken more than the work will.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _bytes("/proc/self/status", "VmRSS")
    work()
    return before, _bytes("/proc/self/status", "VmHWM")


def in_own_process(function: Callable, *args: Any) -> Any:
    """What a function returns in a new process, which has nothing of this one's memory."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *args).result()


def _bytes(path: str, name: str) -> int:
    """What a file of /proc says in kB; 0 for a process that has just ended."""
    lines = Path(path).read_text(encoding="ascii").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


def matmul_peak(device: torch.device, dtype: torch.dtype, largest: int = 0) -> float:
    """FLOP per second (of `spent`) of the fastest of some products of large square matrices, up to [largest, largest].

    Of smaller ones where the processor has no instructions for them: in float16 a large one takes half a minute.
    """
    n, fastest = SMALLEST, product_seconds(SMALLEST, device, dtype)
    while n < (largest or MATMUL_SIZES[device.type]) and fastest < LONG:
        n *= 2
        fastest = product_seconds(n, device, dtype)
    return 2 * n**3 / fastest


def product_seconds(n: int, device: torch.device, dtype: torch.dtype) -> float:
    """Of the fastest of some products of two matrices [n, n]."""
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    times = []
    for _ in range(MATMUL_REPEATS):
        began = spent(device)
        a @ b
        times.append(spent(device) - began)
    return min(times)
