"""A training step at full size: ours beside the plain published one, at the published 30 s and at 10 s of audio."""

from collections.abc import Callable, Generator, Iterator
from contextlib import suppress

import torch
from omegaconf import DictConfig, OmegaConf

from salmonn.common.samples import Samples
from salmonn.config.schema import RunConfig
from salmonn.model.activation_memory import set_gradient_checkpointing
from salmonn.model.salmonn import SALMONN
from util.benchmarks.flops import audio_tokens
from util.benchmarks.memory import batch_of
from util.benchmarks.plain_step import Step, plain_step
from util.benchmarks.sizes import build, make_batch
from util.benchmarks.training import batch_flops, our_step
from util.gpu.kernels import kernel_rows
from util.gpu.rows import MODELS, Row, Setup, named, peak_of, release, row, seconds_of, unless_too_big

SECONDS = {"full": (30.0, 10.0), "mini": (5.0,)}
BATCH = {"full": 8, "mini": 2}
LARGER = {"full": 16, "mini": 4}
RECOMPUTED = {"full": (16, 32), "mini": (4,)}  # as large as without recomputing, and what only fits with it
MFU_BAR = 50.0  # % in bfloat16 at full size


def rows(setup: Setup, quantization: str) -> Iterator[Row]:
    """Samples and tokens per second, peak memory, share of the measured matmul peak; what the kernels take."""
    yield from unless_too_big(named(setup.size, quantization), _rows(setup, quantization))


def _rows(setup: Setup, quantization: str) -> Iterator[Row]:
    device, size = setup
    where = torch.device(device)
    peak = peak_of(where, torch.bfloat16)
    yield row("products of large matrices in bfloat16", peak / 1e12, "TFLOP/s")
    model = build(MODELS[size], where, "bfloat16", quantization, gradient_checkpointing=True).train()
    bar = MFU_BAR if quantization == "none" and size == "full" else 0.0
    for seconds in SECONDS[size][-1:] if quantization != "none" else SECONDS[size]:  # of these the time is short
        what = f"{named(size, quantization)}, {seconds:g} s"
        yield from _ways(what, model, size, (seconds / model.max_seconds,) * 2, peak, bar)
    if quantization == "none":
        batch, step = step_that_fits(model, BATCH[size])
        yield from kernel_rows(f"{named(size)}, batch {batch}", step, where)


def _ways(what: str, model: SALMONN, size: str, shares: tuple[float, float], peak: float, bar: float) -> Iterator[Row]:
    """Ours by batch, with the LLM recomputed or not, with encoders in float32; the plain step, and the ratio."""
    small, large = (make_batch(model, batch[size], shares) for batch in (BATCH, LARGER))
    set_gradient_checkpointing(model.llama_model, False)
    yield from step_rows(f"{what}, ours", model, our_step, large, peak, bar)
    ours = yield from step_rows(f"{what}, ours", model, our_step, small, peak)
    set_gradient_checkpointing(model.llama_model, True)
    for batch in RECOMPUTED[size]:
        samples = make_batch(model, batch, shares)
        yield from step_rows(f"{what}, ours, LLM recomputed", model, our_step, samples, peak)
    set_gradient_checkpointing(model.llama_model, False)
    set_encoders(model, torch.float32)  # as published
    yield from step_rows(f"{what}, ours, encoders in float32", model, our_step, small, peak)
    log_mel = model.log_mel(small["raw_wav"].to(model.device))  # published: made by the loader's processes
    spelled = f"{what}, plain published, its log-mel from the loader"
    plain = yield from step_rows(spelled, model, plain_step, small | {"spectrogram": log_mel}, peak)
    if ours and plain:
        yield row("   ours against the plain step", ours / plain, "x")
    set_encoders(model, torch.bfloat16)


def set_encoders(model: SALMONN, dtype: torch.dtype) -> None:
    """Both encoders in that precision."""
    for encoder in (model.speech_encoder, model.beats):
        encoder.to(dtype)


def run_section(batch: int) -> DictConfig:
    """A `run` section with mixed precision in bfloat16."""
    return OmegaConf.structured(RunConfig(amp=True, amp_dtype="bf16", batch_size_train=batch))


def step_that_fits(model: SALMONN, batch: int) -> tuple[int, Step]:
    """Our step on a batch, on half of it, on a quarter ...: the largest that fits.

    Raises torch.OutOfMemoryError where one clip does not.
    """
    while batch > 1:
        release(model.device)
        step = our_step(model, run_section(batch), make_batch(model, batch))
        with suppress(torch.OutOfMemoryError):
            step()
            return batch, step
        model.zero_grad(set_to_none=True)
        batch //= 2
    step = our_step(model, run_section(1), make_batch(model, 1))
    step()
    return 1, step


def step_rows(
    what: str, model: SALMONN, of: Callable[..., Step], samples: Samples, peak: float, bar: float = 0.0
) -> Generator[Row, None, float]:
    """Rows of one way of taking a step; one row where it does not fit the memory.

    Returns samples/s, 0 where it does not fit.
    """
    batch, seconds = len(samples["text"]), 0.0
    release(model.device)
    with suppress(torch.OutOfMemoryError):
        seconds = seconds_of(of(model, run_section(batch), samples), model.device, warm_up=2)
    model.zero_grad(set_to_none=True)
    if not seconds:
        yield row(f"{what}, batch {batch}", "out of memory")
        return 0.0
    tokens = batch_of(model, samples).tokens
    flops = batch * sum(map(sum, batch_flops(model, samples).values()))
    yield row(f"{what}, batch {batch}", batch / seconds, "samples/s")
    yield row(f"   rows of {tokens} tokens ({audio_tokens(model)} of audio)", batch * tokens / seconds, "tokens/s")
    share = 100 * flops / seconds / peak
    yield row("   share of the matmul peak (MFU)", share, "%", f"{bar:g} %" if bar else "", share >= bar)
    if model.device.type == "cuda":
        yield row("   peak memory, allocated", torch.cuda.max_memory_allocated() / 1e9, "GB")
    return batch / seconds
