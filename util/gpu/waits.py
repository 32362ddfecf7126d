"""Where the host waits for the device in a training step, and how long the step waits for its data."""

import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from util.benchmarks.data_wait import data_wait
from util.benchmarks.sizes import build, make_batch
from util.benchmarks.training import our_step
from util.gpu.fast import BATCH, run_section
from util.gpu.rows import MODELS, Row, Setup, row, seconds_of

# What is known to wait, by function: the step's one look at losses and gradient norm.
KNOWN = {"finish"}
OURS = ("salmonn", "transformers", "peft", "bitsandbytes")
DATA_BAR = 2.0  # % of a step


def rows(setup: Setup) -> Iterator[Row]:
    """Each place that waits, with how often; milliseconds and share of a step that data is waited for."""
    device, size = setup
    where = torch.device(device)
    model = build(MODELS[size], where, "bfloat16").train()
    batch = BATCH[size]
    step = our_step(model, run_section(batch), make_batch(model, batch))
    seconds = seconds_of(step, where, warm_up=2)
    yield row(f"{MODELS[size]}, bfloat16, batch {batch}: a step", 1000 * seconds, "ms")
    if device == "cuda":
        places = synchronisations(step)
        for place, times in places.items():
            yield row(f"   waits at {place}", times, "times a step", "known", place.split()[-1] in KNOWN)
        yield row("   places that wait", len(places), "in a step")
    wait = data_wait(step, batch, model.max_seconds)
    share = 100 * wait / seconds
    yield row("   waiting for data (FLAC of 30 s at 44.1 kHz)", 1000 * wait, "ms")
    bar = f"{DATA_BAR:g} %" if size == "full" else ""
    yield row("   share of a step that waits for data", share, "%", bar, share <= DATA_BAR)


def synchronisations(step: Any) -> Counter[str]:
    """Places, as "file:line function", at which a step waits for the GPU, each with how often."""
    places: Counter[str] = Counter()

    def note(message: Any, *_: Any, **__: Any) -> None:
        if "called a synchronizing" in str(message):
            places[_place(traceback.extract_stack()[:-1])] += 1

    with warnings.catch_warnings(), mock.patch.object(warnings, "showwarning", note):
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return places


def _place(stack: traceback.StackSummary) -> str:
    """The innermost frame of the libraries that make the step; without one, the innermost of all."""
    inside = [frame for frame in stack if any(f"/{name}/" in frame.filename for name in OURS)]
    frame = inside[-1] if inside else stack[-1]
    parts = Path(frame.filename).parts
    first = max((i for i, part in enumerate(parts) if part in OURS), default=len(parts) - 1)
    return f"{'/'.join(parts[first:])}:{frame.lineno} {frame.name}"
