"""The pieces of a training step one by one: each as it is here against what it took the place of."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from salmonn.model import beats
from salmonn.model.features import FBANK_BINS
from salmonn.model.loss import target_loss, vocabulary_logits
from salmonn.model.salmonn import SALMONN
from util.benchmarks.measure import alternate, row
from util.benchmarks.memory import batch_of
from util.benchmarks.plain_step import ALL_AT_ONCE, matmul_attention
from util.benchmarks.sizes import build, make_batch
from util.benchmarks.training import BATCH

Pair = tuple[Callable[[], object], Callable[[], object]]


def bench_parts(args: argparse.Namespace) -> Iterator[dict]:
    """Rows: seconds of each piece, ours and the other way, for clips of full length and one batch's targets."""
    torch.manual_seed(0)
    model = build(args.size, torch.device(args.device), args.dtype)
    clips = args.batch or BATCH
    yield {"what": f"parts of {args.size}, {args.dtype}, {clips} clips of {model.max_seconds:g} s"}
    for what, (ours, plain) in {**_encoders(model, clips), **_vocabulary(model, clips), **_adamw(model)}.items():
        yield row(f"   {what}", alternate(ours, plain, args.repeats))


def _encoders(model: SALMONN, clips: int) -> dict[str, Pair]:
    whisper, dtype, device = model.speech_encoder, model.beats.dtype, model.device
    frames = 2 * whisper.config.max_source_positions
    mel = torch.randn(clips, whisper.config.num_mel_bins, frames, dtype=dtype, device=device)
    fbank = torch.randn(clips, frames - 2, FBANK_BINS, dtype=dtype, device=device)

    @torch.no_grad()
    def encode(encoder: Callable, x: Tensor, matmul: bool = False, queries: int = beats.QUERIES) -> None:
        with mock.patch.object(beats, "QUERIES", queries), matmul_attention(model) if matmul else nullcontext():
            encoder(x)

    hears, listens = partial(encode, whisper, mel), partial(encode, model.beats, fbank)
    return {
        "Whisper: SDPA, matmul and softmax": (hears, partial(hears, matmul=True)),
        "BEATs: SDPA of 256 queries, of all": (listens, partial(listens, queries=ALL_AT_ONCE)),
        "BEATs: SDPA of 256, matmul and softmax of all": (listens, partial(listens, matmul=True, queries=ALL_AT_ONCE)),
    }


def _vocabulary(model: SALMONN, clips: int) -> dict[str, Pair]:
    """Forward and backward behind the LLM's blocks."""
    llm, batch = model.llama_model.get_base_model(), batch_of(model, make_batch(model, clips))
    positions, targets = batch.clips * batch.tokens, batch.targets
    hidden = torch.randn(positions, llm.config.hidden_size, dtype=llm.dtype, device=model.device, requires_grad=True)
    ids = torch.randint(llm.config.vocab_size, (targets,), device=model.device)
    ignored = F.pad(ids, (positions - targets, 0), value=-100)

    def chunked() -> None:
        target_loss(llm, hidden[-targets:], ids).loss.backward()

    def whole(states: Tensor, labels: Tensor) -> None:
        F.cross_entropy(vocabulary_logits(llm, states), labels).backward()

    return {
        f"logits of {targets} targets, of {positions} positions": (chunked, lambda: whole(hidden, ignored)),
        f"logits of {targets} targets in chunks, at once": (chunked, lambda: whole(hidden[-targets:], ids)),
    }


def _adamw(model: SALMONN) -> dict[str, Pair]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    for p in parameters:
        p.grad = torch.randn_like(p)
    fused, foreach, loop = (
        torch.optim.AdamW([torch.nn.Parameter(p.detach().clone()) for p in parameters], **how)
        for how in ({"fused": True}, {"foreach": True}, {"foreach": False})
    )
    for optimizer in (fused, foreach, loop):
        for copy, p in zip(optimizer.param_groups[0]["params"], parameters, strict=True):
            copy.grad = p.grad
    return {
        "AdamW: fused, foreach": (fused.step, foreach.step),
        "AdamW: fused, one by one": (fused.step, loop.step),
    }
