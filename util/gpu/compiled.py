"""A training step at full size with its layers compiled (`run.compile`), against the same step as it is."""

import time
from collections.abc import Iterator

import torch

from salmonn.common.device import now
from salmonn.model.compilation import compile_blocks
from util.benchmarks.measure import matmul_peak
from util.benchmarks.sizes import build, make_batch
from util.benchmarks.training import our_step
from util.gpu.fast import BATCH, SECONDS, run_section, step_rows
from util.gpu.rows import MODELS, Row, Setup, row


def rows(setup: Setup) -> Iterator[Row]:
    """The step as it is, the first compiled step, and a compiled step once all is compiled; the losses of both."""
    device, size = setup
    where = torch.device(device)
    peak = matmul_peak(where, torch.bfloat16)
    model = build(MODELS[size], where, "bfloat16").train()
    batch, share = BATCH[size], SECONDS[size][-1] / model.max_seconds
    samples = make_batch(model, batch, (share, share))
    what = f"{MODELS[size]}, bfloat16, {SECONDS[size][-1]:g} s, ours"
    yield from step_rows(what, model, our_step, samples, peak)
    plain_loss = _loss(model, samples)
    began = time.perf_counter()
    if not compile_blocks(model, where):
        yield row("compiled", "no compiler works here")
        return
    our_step(model, run_section(batch), samples)()
    yield row("   first compiled step", now(where) - began, "s")
    yield from step_rows(f"{what}, compiled", model, our_step, samples, peak)
    apart = abs(_loss(model, samples) / plain_loss - 1)
    yield row("   loss, dropout off, compiled against not", 100 * apart, "% apart", "1 %", apart < 0.01)


def _loss(model, samples) -> float:
    model.eval()
    with torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16):
        loss = model(samples)["loss"].item()
    model.train()
    return loss
