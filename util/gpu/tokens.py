"""Micro-batches by tokens (`run.batch_tokens`) at full size: what `auto` finds, that nothing needs more, the speed.

A CPU has no memory to be asked about: there the budget is a number, and what follows from it is the same.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, cast

import torch

from salmonn.common.files import GB
from salmonn.common.samples import Samples
from salmonn.model.salmonn import SALMONN
from salmonn.training.progress import Progress
from salmonn.training.token_batches import micro_batches
from salmonn.training.token_budget import input_tokens, probe_clips, token_budget
from util.benchmarks.sizes import build, make_batch, rows_of
from util.gpu.fast import run_section
from util.gpu.fits import STEPS, step_by_ddp
from util.gpu.one_rank import one_rank_group
from util.gpu.rows import MODELS, Row, Setup, named, quantisation_for, release, row, seconds_of, unless_too_big

CLIPS = {"full": 64, "mini": 8}  # of a step
BATCH = {"full": 8, "mini": 2}  # of its micro-batches where clips are counted
SHARES = (0.05, 1.0)  # of what the model hears: the lengths of a step's clips
ROWS_ON_CPU = 3  # of the longest


def rows(setup: Setup) -> Iterator[Row]:
    """The budget; peak memory of steps that fill it; samples/s by tokens and by clips."""
    device = torch.device(setup.device)
    quantization = quantisation_for(device)
    with one_rank_group(device):
        yield from unless_too_big(named(setup.size, quantization), _rows(setup, quantization))


def _rows(setup: Setup, quantization: str) -> Iterator[Row]:
    device, what = torch.device(setup.device), named(setup.size, quantization)
    model = build(MODELS[setup.size], device, "bfloat16", quantization).train()
    run, longest = run_section(BATCH[setup.size]), input_tokens(model)
    run.batch_tokens = "auto" if device.type == "cuda" else str(ROWS_ON_CPU * longest)
    budget = token_budget(model, run, device, Progress())
    assert budget is not None
    yield row(f"{what}: run.batch_tokens={run.batch_tokens}", budget.tokens, "tokens")
    clips = max(1, min(budget.clips, budget.tokens // longest))  # one that has more than the budget comes alone
    yield row(f"   of the longest clips, {longest} tokens each", clips, "in a micro-batch")
    longest_ones = probe_clips(model, clips)
    longest_ones["id"] = ["longest"] * clips
    yield from fullest_rows(model, [longest_ones] * 2)  # the second one while the first one's gradients are held
    step = clips_of(model, CLIPS[setup.size])
    by_clips = [rows_of(step, slice(i, i + BATCH[setup.size])) for i in range(0, CLIPS[setup.size], BATCH[setup.size])]
    by_tokens = micro_batches(model, [step], budget)
    speeds = {}
    for name, batches in (("by tokens", by_tokens), (f"by {BATCH[setup.size]} clips", by_clips)):
        release(device)
        with suppress(torch.OutOfMemoryError):
            speeds[name] = CLIPS[setup.size] / seconds_of(step_by_ddp(model, run, batches), device)
        model.zero_grad(set_to_none=True)
        told = f"   a step of {CLIPS[setup.size]} clips {name}, {len(batches)} micro-batches"
        yield row(told, speeds[name], "samples/s") if name in speeds else row(told, "out of memory")
    if len(speeds) == 2:
        yield row("   by tokens against by clips", speeds["by tokens"] / speeds[f"by {BATCH[setup.size]} clips"], "x")


def fullest_rows(model: SALMONN, batches: Sequence[Samples]) -> Iterator[Row]:
    """Whether steps of micro-batches that fill the budget run, and on a GPU what share of its memory they take."""
    device = model.device
    release(device)
    runs = False
    with suppress(torch.OutOfMemoryError):
        step = step_by_ddp(model, run_section(len(batches[0]["text"])), batches)
        for _ in range(STEPS):
            step()
        runs = True
    model.zero_grad(set_to_none=True)
    yield row("   steps that fill it", "run" if runs else "out of memory", "", "run", runs)
    if device.type == "cuda" and runs:
        total = torch.cuda.mem_get_info(device)[1]
        yield row("   peak memory, reserved", torch.cuda.max_memory_reserved(device) / GB, f"of {total / GB:.1f} GB")


def clips_of(model: SALMONN, n: int) -> Samples:
    """A step's clips of many lengths, as the loader gives them, in no order: the lengths of `make_batch` rise."""
    samples = make_batch(model, n, SHARES)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0)).tolist()
    mixed = {key: values[order] if isinstance(values, torch.Tensor) else [values[i] for i in order]
             for key, values in cast(dict[str, Any], samples).items()}  # fmt: skip
    return {**mixed, "index": list(range(n)), "testset_id": [0] * n}  # type: ignore[typeddict-item]
