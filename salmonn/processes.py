"""Many calls in parallel processes, some of which may die."""

import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any


def in_processes(function: Callable, arguments: Iterable[tuple], jobs: int = 0) -> Iterator[tuple[tuple, Any]]:
    """Yield (arguments, result) of calls in parallel processes; result None where the process died.

    In the order of the arguments, except that calls under way when a process dies come back with
    None, though another call may have killed it. `jobs` 0 is one per core.
    """
    jobs = jobs or n_cores()
    todo, more = iter(arguments), True
    while more:
        running: deque[tuple[tuple, Future | None]] = deque()
        with ProcessPoolExecutor(jobs, multiprocessing.get_context("fork"), _start, (os.getpid(),)) as pool:
            try:
                while more or running:
                    while more and len(running) < 4 * jobs:
                        if more := (args := next(todo, None)) is not None:
                            running.append((args, None))
                            running[-1] = args, pool.submit(function, *args)
                    if running:
                        args, future = running[0]
                        result = future.result()
                        running.popleft()
                        yield args, result
            except BrokenProcessPool:
                pass
        yield from ((args, None) for args, _ in running)


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
