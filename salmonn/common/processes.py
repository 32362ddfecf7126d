"""Many calls in parallel processes, some of which may die."""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any


def in_processes(function: Callable, arguments: Iterable[tuple], jobs: int = 0) -> Iterator[tuple[tuple, Any]]:
    """Yield (arguments, result) of calls in parallel processes as they end; result None where the process died.

    All calls under way when a process dies come back with None, though only one killed it. Left
    early, calls that have not begun are not made. `jobs` 0 is one per core.
    """
    jobs = jobs or n_cores()
    todo, more = iter(arguments), True
    while more:
        running: dict[Future, tuple] = {}
        args: tuple | None = None
        pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("fork"), _start, (os.getpid(),))
        try:
            while more or running:
                while more and len(running) < 2 * jobs:
                    if more := (args := next(todo, None)) is not None:
                        running[pool.submit(function, *args)] = args
                        args = None
                for future in wait(running, return_when=FIRST_COMPLETED).done if running else ():
                    result = future.result()
                    yield running.pop(future), result
        except BrokenProcessPool:
            pass
        finally:
            pool.shutdown(cancel_futures=True)
        yield from ((died, None) for died in (*running.values(), *([args] if args else ())))


def n_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start(parent: int) -> None:
    """What each process does first.

    Decoders write their complaints to stderr, where a result says it better; errors of ours travel
    to the parent. A pool's processes would wait for ever for a parent that was killed.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
