"""A training step whose clips are in the encoder cache, against one that encodes them."""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from salmonn.common.files import GB
from salmonn.evaluation.efficiency import now
from salmonn.training.encoder_cache import EncoderCache, fingerprint, folder_bytes
from util.benchmarks.measure import alternate, row
from util.benchmarks.step_split import split_step
from util.benchmarks.training import BATCH, Setup, loss_and_gradient_norm


def bench_cache(args: argparse.Namespace) -> Iterator[dict]:
    """Rows: a step's seconds, those of finding its clips, the difference of loss and gradient norm, the clips' size."""
    setup = Setup(args.size, args.device, args.dtype, args.quant, args.batch or BATCH)
    device = torch.device(setup.device)
    model = setup.model("ours")
    step = setup.step("ours", model)
    with tempfile.TemporaryDirectory() as folder:
        cache = EncoderCache(Path(folder), fingerprint(model), max_bytes=100 * GB)

        def cached(work: Callable[..., Any], *values: Any) -> Any:
            with mock.patch.object(model, "encoder_cache", cache):
                return work(*values)

        def take() -> None:
            step()
            now(device)  # waits for the device

        cached(loss_and_gradient_norm, model, step)  # fills it
        found, encoded = cached(loss_and_gradient_norm, model, step), loss_and_gradient_norm(model, step)
        yield row(
            f"step {setup.size}, {setup.dtype}, batch {setup.batch}: clips in the cache",
            alternate(partial(cached, take), take, args.repeats),
        )
        split = cached(split_step, step, {"cache": [(cache, "encode")]}, args.repeats, device)
        yield {"what": "   finding them", "seconds": split["cache"]}
        for name, ours, plain in zip(("loss", "gradient norm"), found, encoded, strict=True):
            what = f"   {name}, dropout off"
            yield {"what": what, "ours": ours, "plain": plain, "difference": abs(ours - plain) / plain, "unit": ""}
        yield {"what": "   size of a clip", "mb": folder_bytes(Path(folder)) / setup.batch / 1e6}
