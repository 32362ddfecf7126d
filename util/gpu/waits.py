"""Where the host waits for the device in a training step, and how long the step waits for its data."""

import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch

from util.benchmarks.data_wait import data_wait
from util.benchmarks.sizes import build
from util.gpu.fast import BATCH, step_that_fits
from util.gpu.rows import MODELS, Row, Setup, named, quantisation_for, row, seconds_of, unless_too_big

KNOWN = {("salmonn/training/step.py", "finish"): 2}  # a step's one look at its losses, one at the gradients' norm
PACKAGES = ("salmonn", "transformers", "peft", "bitsandbytes")  # that make a step
DATA_BAR = 2.0  # % of a step


class Place(NamedTuple):
    """Where a step waits for the GPU."""

    file: str
    line: int | None
    function: str


def rows(setup: Setup) -> Iterator[Row]:
    """Each place that waits, with how often; milliseconds and share of a step that data is waited for."""
    quantization = quantisation_for(torch.device(setup.device))
    yield from unless_too_big(named(setup.size, quantization), _rows(setup, quantization))


def _rows(setup: Setup, quantization: str) -> Iterator[Row]:
    device, size = setup
    where = torch.device(device)
    model = build(MODELS[size], where, "bfloat16", quantization).train()
    batch, step = step_that_fits(model, BATCH[size])
    seconds = seconds_of(step, where, warm_up=2)
    yield row(f"{named(size, quantization)}, batch {batch}: a step", 1000 * seconds, "ms")
    if device == "cuda":
        yield from place_rows(synchronisations(step))
    wait = data_wait(step, batch, model.max_seconds)
    share = 100 * wait / seconds
    yield row("   waiting for data (FLAC of full length at 44.1 kHz)", 1000 * wait, "ms")
    bar = f"{DATA_BAR:g} %" if size == "full" else ""
    yield row("   share of a step that waits for data", share, "%", bar, share <= DATA_BAR)


def place_rows(places: Counter[Place]) -> Iterator[Row]:
    """Each place, and whether its function waits no more often than is known."""
    functions: Counter[tuple[str, str]] = Counter()
    for place, times in places.items():
        functions[place.file, place.function] += times
    for place, times in places.items():
        known = KNOWN.get((place.file, place.function), 0)
        what = f"   waits at {place.file}:{place.line} {place.function}"
        ok = functions[place.file, place.function] <= known
        yield row(what, times, "times a step", f"{known} known in this function", ok)
    yield row("   places that wait", len(places), "in a step")


def synchronisations(step: Callable[[], object]) -> Counter[Place]:
    """Places at which a step waits for the GPU, each with how often."""
    places: Counter[Place] = Counter()

    def note(message: Any, *_: Any, **__: Any) -> None:
        if "called a synchronizing" in str(message):
            places[place_of(traceback.extract_stack()[:-1])] += 1

    with warnings.catch_warnings(), mock.patch.object(warnings, "showwarning", note):
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return places


def place_of(stack: Sequence[traceback.FrameSummary]) -> Place:
    """The innermost frame of the packages that make the step; without one, the innermost of all."""
    folders = [Path(spec.origin).parent for name in PACKAGES if (spec := find_spec(name)) and spec.origin]
    for frame in reversed(stack):
        for folder in folders:
            if Path(frame.filename).is_relative_to(folder):
                return Place(str(Path(frame.filename).relative_to(folder.parent)), frame.lineno, frame.name)
    return Place(stack[-1].filename, stack[-1].lineno, stack[-1].name)
