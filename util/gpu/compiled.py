"""A training step with its layers compiled (`run.compile`) against the same step as it is, at full width.

One layer of each kind: all of a kind share what is compiled, so more of them would only take longer. Of a whole model
of 13B the first compiled step had not ended after 67 s on an H100.
"""

from collections.abc import Iterator

import torch

from salmonn.common.device import now
from salmonn.common.samples import Samples
from salmonn.model.compilation import Backend, compile_blocks
from salmonn.model.salmonn import SALMONN
from util.benchmarks.sizes import build, make_batch
from util.benchmarks.training import our_step
from util.gpu.fast import BATCH, SECONDS, run_section
from util.gpu.rows import MODELS, Row, Setup, named, row, seconds_of, unless_too_big

LAYERS = 1


def rows(setup: Setup, backend: Backend = "inductor") -> Iterator[Row]:
    """The step as it is, the first compiled step, and a compiled step once all is compiled; the losses of both."""
    yield from unless_too_big(f"{named(setup.size)}, compiled", _rows(setup, backend))


def _rows(setup: Setup, backend: Backend) -> Iterator[Row]:
    where, batch = torch.device(setup.device), BATCH[setup.size]
    model = build(MODELS[setup.size], where, "bfloat16", layers=LAYERS).train()
    share = SECONDS[setup.size][-1] / model.max_seconds
    samples = make_batch(model, batch, (share, share))
    run = run_section(batch)
    run.optims.init_lr = 0.0  # for the losses before and after to be of the same weights
    step = our_step(model, run, samples)
    what = f"{named(setup.size)}, {LAYERS} layer of each kind, {SECONDS[setup.size][-1]:g} s, batch {batch}"
    plain, plain_loss = seconds_of(step, where, warm_up=2), _loss(model, samples)
    yield row(f"{what}: a step", 1000 * plain, "ms")
    began = now(where)
    if not compile_blocks(model, where, backend):
        yield row("   compiled", "no compiler works here")
        return
    step()
    yield row("   first compiled step", now(where) - began, "s")
    compiled = seconds_of(step, where, warm_up=2)
    yield row("   a compiled step", 1000 * compiled, "ms")
    yield row("   compiled against not", plain / compiled, "x")
    apart = abs(_loss(model, samples) / plain_loss - 1)
    yield row("   loss, dropout off, compiled against not", 100 * apart, "% apart", "1 %", apart < 0.01)


def _loss(model: SALMONN, samples: Samples) -> float:
    model.eval()
    with torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16):
        loss = model(samples)["loss"].item()
    model.train()
    return loss
