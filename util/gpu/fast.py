"""A training step at full size: ours beside the plain published one, at the published 30 s and at 10 s of audio."""

from collections.abc import Callable, Iterator

import torch
from omegaconf import DictConfig, OmegaConf

from salmonn.common.samples import Samples
from salmonn.config.schema import RunConfig
from salmonn.model.activation_memory import set_gradient_checkpointing
from salmonn.model.salmonn import SALMONN
from util.benchmarks.flops import audio_tokens
from util.benchmarks.measure import matmul_peak
from util.benchmarks.memory import batch_of
from util.benchmarks.plain_step import Step, plain_step
from util.benchmarks.sizes import build, make_batch
from util.benchmarks.training import batch_flops, our_step
from util.gpu.kernels import kernel_rows
from util.gpu.rows import MODELS, Row, Setup, release, row, seconds_of

SECONDS = {"full": (30.0, 10.0), "mini": (5.0,)}
BATCH = {"full": 8, "mini": 2}
LARGER = {"full": 16, "mini": 4}
RECOMPUTED = {"full": 32, "mini": 4}
MFU_BAR = 50.0  # % in bfloat16 at full size


def rows(setup: Setup, quantization: str) -> Iterator[Row]:
    """Samples and tokens per second, peak memory, share of the measured matmul peak."""
    device, size = setup
    where = torch.device(device)
    peak = matmul_peak(where, torch.bfloat16)
    yield row("products of large matrices in bfloat16", peak / 1e12, "TFLOP/s")
    model = build(MODELS[size], where, "bfloat16", quantization, gradient_checkpointing=True).train()
    bar = MFU_BAR if quantization == "none" and size == "full" else 0.0
    for seconds in SECONDS[size]:
        named = f"{MODELS[size]}, {'' if quantization == 'none' else f'{quantization} LLM, '}bfloat16, {seconds:g} s"
        shares = (seconds / model.max_seconds,) * 2
        small, large, largest = (make_batch(model, batch[size], shares) for batch in (BATCH, LARGER, RECOMPUTED))
        set_encoders(model, torch.bfloat16)
        set_gradient_checkpointing(model.llama_model, False)
        yield from step_rows(f"{named}, ours", model, our_step, large, peak, bar)
        yield from step_rows(f"{named}, ours", model, our_step, small, peak)
        set_gradient_checkpointing(model.llama_model, True)
        yield from step_rows(f"{named}, ours, LLM recomputed", model, our_step, largest, peak)
        set_gradient_checkpointing(model.llama_model, False)
        set_encoders(model, torch.float32)  # as published
        yield from step_rows(f"{named}, ours, encoders in float32", model, our_step, small, peak)
        log_mel = model.log_mel(small["raw_wav"].to(where))  # published: made by the loader's processes
        plain = small | {"spectrogram": log_mel}
        yield from step_rows(f"{named}, plain published, its log-mel from the loader", model, plain_step, plain, peak)
    if device == "cuda":
        set_encoders(model, torch.bfloat16)
        yield from kernel_rows(our_step(model, run_section(BATCH[size]), small))


def set_encoders(model: SALMONN, dtype: torch.dtype) -> None:
    """Both encoders in that precision."""
    for encoder in (model.speech_encoder, model.beats):
        encoder.to(dtype)


def run_section(batch: int, amp_dtype: str = "bf16") -> DictConfig:
    """A `run` section with mixed precision."""
    return OmegaConf.structured(RunConfig(amp=True, amp_dtype=amp_dtype, batch_size_train=batch))


def step_rows(
    what: str, model: SALMONN, of: Callable[..., Step], samples: Samples, peak: float, bar: float = 0.0
) -> Iterator[Row]:
    """Rows of one way of taking a step; one row where it does not fit the memory."""
    batch = len(samples["text"])
    release(model.device)
    try:
        seconds = seconds_of(of(model, run_section(batch), samples), model.device, warm_up=2)
    except torch.OutOfMemoryError:
        yield row(f"{what}, batch {batch}", "out of memory")
        return
    finally:
        model.zero_grad(set_to_none=True)
    tokens = batch_of(model, samples).tokens
    flops = batch * sum(map(sum, batch_flops(model, samples).values()))
    yield row(f"{what}, batch {batch}", batch / seconds, "samples/s")
    yield row(f"   rows of {tokens} tokens ({audio_tokens(model)} of audio)", batch * tokens / seconds, "tokens/s")
    share = 100 * flops / seconds / peak
    yield row("   share of the matmul peak (MFU)", share, "%", f"{bar:g} %" if bar else "", share >= bar)
    if model.device.type == "cuda":
        yield row("   peak memory, allocated", torch.cuda.max_memory_allocated() / 1e9, "GB")
