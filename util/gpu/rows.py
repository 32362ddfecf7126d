"""What a part of util/gpu_check.py gives, how it takes times, and what it does where memory is short."""

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch

from salmonn.common.device import now
from salmonn.common.files import GB
from util.benchmarks.measure import matmul_peak

Row = dict[str, Any]  # what, value, unit; bar and ok where something is wanted

MODELS = {"full": "13b", "mini": "mini"}  # names of util/benchmarks/sizes.py
LARGEST_ON_CPU = 512  # side of a product
REPEATS, LONGEST = 5, 6.0  # times that a call is repeated, and s at most
ROOM_FOR_HALF = 40 * GB  # of a card that takes steps and answers of a 13B LLM in bfloat16, which is 26 GB


class Setup(NamedTuple):
    """Where a part runs, and with how large models."""

    device: str  # cuda | cpu
    size: str  # full | mini


def row(what: str, value: float | str, unit: str = "", bar: str = "", ok: bool = True) -> Row:
    """A line of the table; `bar`: what is wanted, `ok`: whether it is so."""
    return {"what": what, "value": value, "unit": unit} | ({"bar": bar, "ok": bool(ok)} if bar else {})


def largest(differences: Iterable[float]) -> float:
    """The largest of some numbers; NaN where one of them is, which `max` may pass over."""
    return float(np.max(list(differences)))


def peak_of(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP per second of products of large matrices; on a CPU of smaller ones, whose speed nobody asks this script."""
    return matmul_peak(device, dtype, LARGEST_ON_CPU if device.type == "cpu" else 0)


def seconds_of(work: Callable[[], object], device: torch.device, warm_up: int = 1) -> float:
    """Median seconds of a call, the device's work done; fewer repeats where they would take more than `LONGEST`.

    On a CPU of a single call: there only that it runs is of interest.
    """
    repeats, warm_up = (REPEATS, warm_up) if device.type == "cuda" else (1, 0)
    for _ in range(warm_up):
        work()
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < repeats and (not times or time.perf_counter() - began < LONGEST):
        started = now(device)
        work()
        times.append(now(device) - started)
    return statistics.median(times)


def release(device: torch.device) -> None:
    """Give back what nothing holds any more, and forget the peak so far."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def unless_too_big(what: str, rows: Iterator[Row]) -> Iterator[Row]:
    """The rows of what is measured, and, where the memory does not suffice for it, one that says so."""
    with suppress(torch.OutOfMemoryError):
        yield from rows
        return
    yield row(what, "out of memory")


def quantisation_for(device: torch.device) -> str:
    """How a 13B LLM is held where its quantisation is not what is measured: 8bit on a card that is too small for it."""
    is_small = device.type == "cuda" and torch.cuda.get_device_properties(device).total_memory < ROOM_FOR_HALF
    return "8bit" if is_small and find_spec("bitsandbytes") else "none"


def named(size: str, quantization: str = "none") -> str:
    """A model as the rows name it."""
    return f"{MODELS[size]}, {'' if quantization == 'none' else f'{quantization} LLM, '}bfloat16"
