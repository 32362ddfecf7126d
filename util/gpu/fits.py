"""Whether a step needs the memory that `benchmark.py memory` predicts, and what fits a smaller card."""

from collections.abc import Iterator
from dataclasses import replace

import torch

from salmonn.common.files import GB
from salmonn.common.samples import Samples
from salmonn.model.activation_memory import set_gradient_checkpointing
from salmonn.model.llm_input import tokenize
from salmonn.model.salmonn import SALMONN
from util.benchmarks.memory import (
    META,
    batch_of,
    largest_batch,
    predicted,
    step_growth,
)
from util.benchmarks.memory_parts import Case, phases, trained_weights
from util.benchmarks.sizes import build, make_batch
from util.benchmarks.training import our_step
from util.gpu.fast import run_section
from util.gpu.rows import Row, Setup, release, row

MB = 1e6
BAR = 5.0  # % between predicted and measured
CARD = 32 * GB  # the reference machine's
CARDS = (24, 48, 80)  # GB, by prediction
QUANTISED = "8bit"  # as configs/stage1.yaml has it
ANSWER = 300  # tokens: the longest
BATCHES = {False: (1, 4), True: (4, 16)}  # with gradient checkpointing or not


def rows(setup: Setup) -> Iterator[Row]:
    """Predicted against measured peak; the largest batch within 32 GB, tried; those of other cards, predicted."""
    yield from _on_gpu(torch.device(setup.device)) if setup.device == "cuda" else _on_cpu()


def _on_gpu(device: torch.device) -> Iterator[Row]:
    model = build("13b", device, "float16", QUANTISED, encoder_dtype="float32", gradient_checkpointing=True).train()
    shape = build("13b", META, "float16", encoder_dtype="float32")
    case = Case("cuda", 2, QUANTISED, amp=True)
    free, total = torch.cuda.mem_get_info(device)
    outside = total - free - torch.cuda.memory_reserved(device)
    yield row("taken by CUDA beside tensors", outside / GB, "GB")
    for checkpointing, batches in BATCHES.items():
        set_gradient_checkpointing(model.llama_model, checkpointing)
        case = replace(case, checkpointing=checkpointing)
        for clips in batches:
            yield from _compared(model, shape, case, longest_batch(model, clips))
    for checkpointing in BATCHES:
        set_gradient_checkpointing(model.llama_model, checkpointing)
        case = replace(case, checkpointing=checkpointing)
        yield from _within(model, shape, case, CARD - outside, total)
    for checkpointing in BATCHES:
        for size in CARDS:
            clips = largest_batch(shape, replace(case, checkpointing=checkpointing), ANSWER, size * GB)
            yield row(
                f"13b, {QUANTISED}{_how(checkpointing)}: largest batch in {size} GB, PREDICTED", clips, "clips of 30 s"
            )


def _compared(model: SALMONN, shape: SALMONN, case: Case, samples: Samples) -> Iterator[Row]:
    parts = predicted(shape, case, batch_of(shape, samples))
    expected = sum(parts.values()) - parts["margin"]
    what = f"13b, {QUANTISED}{_how(case.checkpointing)}, batch {len(samples['text'])} of 30 s and {ANSWER} tokens"
    if not _fits(model, samples):
        yield row(what, "out of memory", f"predicted {expected / GB:.1f} GB")
        return
    peak = torch.cuda.max_memory_allocated()
    apart = 100 * (expected / peak - 1)
    yield row(f"{what}: peak, allocated", peak / GB, "GB")
    yield row("   predicted, without its margin", apart, "% of it apart", f"{BAR:g} %", abs(apart) <= BAR)
    yield row("   reserved by the allocator", torch.cuda.max_memory_reserved() / GB, "GB")
    yield row("   predicted with its margin", sum(parts.values()) / GB, "GB")


def _within(model: SALMONN, shape: SALMONN, case: Case, allowed: float, total: int) -> Iterator[Row]:
    """The largest batch that runs when PyTorch may have no more: tried upwards and downwards from the predicted one."""
    expected = largest_batch(shape, case, ANSWER, CARD)
    torch.cuda.set_per_process_memory_fraction(allowed / total)
    stride = max(1, expected // 8)
    clips = expected
    if _fits(model, longest_batch(model, clips)):
        while _fits(model, longest_batch(model, clips + stride)):
            clips += stride
    else:
        while clips > 0 and not _fits(model, longest_batch(model, clips)):
            clips -= stride
    torch.cuda.set_per_process_memory_fraction(1.0)
    what = f"13b, {QUANTISED}{_how(case.checkpointing)}: largest batch in {CARD / GB:g} GB, {ANSWER} tokens each"
    yield row(
        f"{what}, in strides of {stride}", max(clips, 0), "clips of 30 s", f"predicted {expected}", clips >= expected
    )


def _fits(model: SALMONN, samples: Samples) -> bool:
    """Whether two steps run; in the second one the optimiser's state is there from the beginning."""
    release(model.device)
    step = our_step(model, run_section(len(samples["text"]), "fp16"), samples)
    try:
        step()
        step()
    except torch.OutOfMemoryError:
        return False
    finally:
        model.zero_grad(set_to_none=True)
    return True


def longest_batch(model: SALMONN, clips: int) -> Samples:
    """Clips that fill what the model hears, with answers of `ANSWER` tokens."""
    samples = make_batch(model, clips, (1.0, 1.0))
    word, text = " a", ""
    while len(tokenize(model.tokenizer, [text + word + model.config.end_sym])[0]) <= ANSWER:
        text += word
    return samples | {"text": [text] * clips}


def _how(checkpointing: bool) -> str:
    return ", LLM recomputed" if checkpointing else ""


def _on_cpu() -> Iterator[Row]:
    """What the formula says of a CPU; what libraries take beside tensors is as much there, so there is no bar."""
    model, clips = build("mini", META), 4
    batch = batch_of(model, make_batch(model, clips))
    for checkpointing in (False, True):
        by_phase = phases(model, Case("cpu", 4, checkpointing=checkpointing), batch)
        expected = 2 * trained_weights(model) + max(sum(parts.values()) for parts in by_phase.values())
        what = f"mini, float32 on this CPU{_how(checkpointing)}, batch {clips}"
        yield row(f"{what}: peak above the model", step_growth("mini", clips, checkpointing) / MB, "MB")
        yield row("   predicted, without some 30 to 60 MB of libraries", expected / MB, "MB")
