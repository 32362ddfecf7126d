"""Whether the configurations for cards of 32 GB fit them, and whether `benchmark.py memory` predicts what they need.

A step is taken as their runs take it: by DDP, several micro-batches whose gradients stay, clips of full length, the
longest answers. Weights are random, of the configuration's sizes, or on a CPU of the miniature world's.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from omegaconf import DictConfig

from salmonn.common.distributed import in_ddp
from salmonn.common.files import GB
from salmonn.common.samples import Samples
from salmonn.config.loading import llm_quantization, load_config
from salmonn.model.activation_memory import set_gradient_checkpointing
from salmonn.model.llm import llm_dtype
from salmonn.model.llm_input import tokenize
from salmonn.model.salmonn import SALMONN
from salmonn.training.step import TrainingStep
from util.benchmarks.measure import held_and_peak
from util.benchmarks.memory import META, batch_of, case_of, largest_batch, predicted
from util.benchmarks.memory_parts import Case
from util.benchmarks.sizes import build, make_batch
from util.benchmarks.training import accumulated_step
from util.gpu.one_rank import one_rank_group
from util.gpu.right import scaler_rows
from util.gpu.rows import Row, Setup, release, row, unless_too_big

ROOT = Path(__file__).resolve().parents[2]
BAR = 5.0  # % between predicted and measured
CARD = 32 * GB  # the reference machine's
CARDS = (24, 48, 80)  # GB, by prediction
CONFIGS = {  # with the size of their models
    "full": {"configs/stage1.yaml": "13b", "configs/7b/stage1.yaml": "7b"},
    "mini": {"configs/stage1.yaml": "mini", "configs/7b/stage1.yaml": "mini"},
}
KEYS = ("encoder_dtype", "lora", "lora_rank", "lora_alpha", "lora_dropout", "lora_target_modules", "max_txt_len")
STEPS, MICRO_BATCHES = 2, 2  # in the second step the optimiser's state, in each second micro-batch the gradients stay
# Times the configuration's batch, without and with gradient checkpointing
CLIPS: dict[str, dict[bool, tuple[float, ...]]] = {
    "full": {False: (0.25, 1), True: (1, 4)},
    "mini": {False: (0.25,), True: (0.25,)},
}


@dataclass(frozen=True)
class Subject:
    """A configuration's model, with values and without, and its conditions."""

    name: str
    config: DictConfig
    model: SALMONN
    shape: SALMONN
    case: Case

    def with_checkpointing(self, mode: bool) -> "Subject":
        """The same with or without gradient checkpointing, to which the model is set."""
        set_gradient_checkpointing(self.model.llama_model, mode)
        return replace(self, case=replace(self.case, checkpointing=mode))

    def batch(self, clips: int) -> Samples:
        """Clips that fill what the model hears, with the longest answers."""
        return longest_batch(self.model, clips, self.config.model.max_txt_len)

    def what(self, clips: int) -> str:
        """A batch of it, as the rows name it."""
        recomputed = ", LLM recomputed" if self.case.checkpointing else ""
        return f"{self.name}{recomputed}, batch {clips} of {self.model.max_seconds:g} s"


def rows(setup: Setup) -> Iterator[Row]:
    """Predicted against measured peak of each configuration; whether it fits 32 GB, and the largest batch that does."""
    device = torch.device(setup.device)
    total = torch.cuda.mem_get_info(device)[1] if setup.device == "cuda" else 0
    with one_rank_group(device):
        for file, size in CONFIGS[setup.size].items():
            yield from unless_too_big(f"{file}, {size}", config_rows(file, size, CLIPS[setup.size], device, total))
            release(device)


def config_rows(
    file: str, size: str, of_batch: dict[bool, tuple[float, ...]], device: torch.device, total: int
) -> Iterator[Row]:
    """Rows of one configuration on a card of `total` bytes; `of_batch`: as `CLIPS`."""
    config = load_config(ROOT / file)
    dtype = str(llm_dtype(config.model, device)).removeprefix("torch.")
    keys = {key: config.model[key] for key in KEYS}
    shape = build(size, META, dtype, **keys)
    case = case_of(config, device.type)
    name = f"{file}, {size}"
    one = batch_of(shape, longest_batch(shape, 1, config.model.max_txt_len))
    least = sum(predicted(shape, replace(case, checkpointing=True), one).values())
    if device.type == "cuda" and least > total:
        yield row(
            name, f"skipped: one clip needs {least / GB:.1f} GB with recomputation, this card has {total / GB:.1f}"
        )
        return
    quantization = llm_quantization(config.model)
    model = build(size, device, dtype, quantization, gradient_checkpointing=True, **keys).train()
    subject = Subject(name, config, model, shape, case)
    for checkpointing, shares in of_batch.items():
        for share in shares:
            clips = max(1, round(share * config.run.batch_size_train))
            yield from compared(subject.with_checkpointing(checkpointing), clips)
    if device.type == "cpu":  # where no memory can be set apart; fp16's scaler is looked at in `right`
        return
    yield from on_smaller_cards(subject, total)
    if config.run.amp and config.run.amp_dtype == "fp16":
        subject = subject.with_checkpointing(case.checkpointing)
        yield from scaler_rows(f"{name}, fp16", model, config.run, subject.batch(1))


def compared(subject: Subject, clips: int) -> Iterator[Row]:
    """The peak of some steps, measured and predicted."""
    device, samples = subject.model.device, subject.batch(clips)
    parts = predicted(subject.shape, subject.case, batch_of(subject.shape, samples))
    what = subject.what(clips)
    release(device)
    held = peak = 0
    with suppress(torch.OutOfMemoryError):
        held, peak = held_and_peak(lambda: take_steps(subject, samples), device)
    subject.model.zero_grad(set_to_none=True)
    if not peak:
        yield row(what, "out of memory", f"predicted {sum(parts.values()) / GB:.1f} GB")
        return
    grown = sum(parts.values()) - parts["margin"] - parts["weights"] - parts["trained"]
    yield row(f"{what}: peak above the model", (peak - held) / GB, "GB")
    libraries = "" if device.type == "cuda" else " and some 30 to 60 MB of libraries"
    yield row(f"   predicted, without its margin{libraries}", grown / GB, "GB")
    if device.type == "cuda":
        yield from peak_rows(parts, peak)
        yield row("   reserved by the allocator", torch.cuda.max_memory_reserved() / GB, "GB")


def peak_rows(parts: dict[str, float], peak: int) -> Iterator[Row]:
    """Bytes allocated on a GPU at most, against what was predicted by part."""
    expected = sum(parts.values()) - parts["margin"]
    apart = 100 * (expected / peak - 1)
    yield row("   peak in all, allocated", peak / GB, "GB")
    yield row("   predicted, without its margin", apart, "% of it apart", f"{BAR:g} %", abs(apart) <= BAR)
    yield row("   predicted with its margin", sum(parts.values()) / GB, "GB")


def take_steps(subject: Subject, samples: Samples) -> None:
    """Steps whose micro-batches are all the same."""
    step = step_by_ddp(subject.model, subject.config.run, [samples] * MICRO_BATCHES)
    for _ in range(STEPS):
        step()


def step_by_ddp(model: SALMONN, run: DictConfig, batches: Sequence[Samples]) -> Callable[[], None]:
    """A step of these micro-batches as the runner takes it; DDP's buckets are there for as long."""
    wrapped, step = in_ddp(model, model.device), TrainingStep(model, run, model.device)
    return lambda: accumulated_step(step, wrapped, run, batches, len(batches))


def on_smaller_cards(subject: Subject, total: int) -> Iterator[Row]:
    """The configuration's own batch and the largest one when PyTorch may have no more than 32 GB; others predicted."""
    free, _ = torch.cuda.mem_get_info()
    outside = total - free - torch.cuda.memory_reserved()
    yield row(f"{subject.name}: taken by CUDA beside tensors", outside / GB, "GB")
    card = min(CARD, total)
    share = (card - outside) / total
    own, as_configured = subject.config.run.batch_size_train, subject.case.checkpointing
    subject = subject.with_checkpointing(as_configured)
    runs = fits(subject, own, share)
    what = f"{subject.what(own)}, within {card / GB:.0f} GB"
    yield row(what, "runs" if runs else "out of memory", "", "runs" if card == CARD else "", runs)
    for checkpointing in (False, True):
        yield from _largest_rows(subject.with_checkpointing(checkpointing), card, share)


def _largest_rows(subject: Subject, card: float, share: float) -> Iterator[Row]:
    answer = subject.config.model.max_txt_len
    expected = largest_batch(subject.shape, subject.case, answer, card)
    start = max(1, expected)
    stride = max(1, start // 8)
    found = largest_that_fits(lambda clips: fits(subject, clips, share), start, stride)
    what = subject.name + (", LLM recomputed" if subject.case.checkpointing else "")
    told = f"{what}: largest batch within {card / GB:.0f} GB, {answer} tokens each, in strides of {stride}"
    yield row(told, found, "clips of full length", f"predicted {expected}", found >= expected)
    for size in CARDS:
        clips = largest_batch(subject.shape, subject.case, answer, size * GB)
        yield row(f"   in {size} GB, PREDICTED", clips, "clips of full length")


def largest_that_fits(fits: Callable[[int], bool], start: int, stride: int) -> int:
    """The largest number that fits, looked for upwards and downwards from `start`, none twice; 0 where 1 does not."""
    if fits(start):
        while fits(start + stride):
            start += stride
        return start
    below = [*range(start - stride, 1, -stride), 1] if start > 1 else []
    return next(filter(fits, below), 0)


def fits(subject: Subject, clips: int, share: float) -> bool:
    """Whether steps run when PyTorch may have that share of the GPU's memory."""
    release(subject.model.device)
    torch.cuda.set_per_process_memory_fraction(min(1.0, share))
    try:
        with suppress(torch.OutOfMemoryError):
            take_steps(subject, subject.batch(clips))
            return True
        return False
    finally:
        subject.model.zero_grad(set_to_none=True)
        torch.cuda.set_per_process_memory_fraction(1.0)


def longest_batch(model: SALMONN, clips: int, answer: int) -> Samples:
    """Clips that fill what the model hears, with answers of that many tokens."""
    samples = make_batch(model, clips, (1.0, 1.0))
    word, text = " a", ""
    while len(tokenize(model.tokenizer, [text + word + model.config.end_sym])[0]) <= answer:
        text += word
    return samples | {"text": [text] * clips}
