"""A training step, ours against the published one: speed, where the time goes, memory, operations."""

import argparse
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from salmonn.common.device import autocast
from salmonn.common.files import GB
from salmonn.common.samples import Samples
from salmonn.config.schema import RunConfig
from salmonn.model import salmonn as whole_model
from salmonn.model.features import fbank_lengths
from salmonn.model.salmonn import SALMONN
from salmonn.training.step import TrainingStep
from util.benchmarks import plain_step
from util.benchmarks.data_wait import data_wait
from util.benchmarks.flops import audio_tokens, sample_flops
from util.benchmarks.measure import chosen_sides, held_and_peak, in_own_process, in_turns, matmul_peak, row, spent
from util.benchmarks.plain_step import Step
from util.benchmarks.sizes import build, make_batch, weight_bytes
from util.benchmarks.step_split import split_step

MEMORY_STEPS = 2  # in the second one the optimiser's state is there from the beginning
BATCH = 4
# What ours is measured against: as --sides names it, and as the rows do.
SIDES = {"plain": "plain", "sdpa": "plain with SDPA", "float32": "plain, float32"}


@dataclass(frozen=True)
class Setup:
    """What is measured: ours against the plain step in one or several forms."""

    size: str
    device: str
    dtype: str
    quantization: str
    batch: int
    recompute: bool = False  # ours: gradient checkpointing of the LLM
    silence: float | None = None  # ours hears the clip and so many seconds behind it
    encoder_dtype: str | None = None  # of ours; None: `dtype`
    attention: str = "auto"  # of our LLM
    against: tuple[str, ...] = ("plain",)  # of SIDES

    @property
    def sides(self) -> tuple[str, ...]:
        """Ours first."""
        return ("ours", *self.against)

    def dtype_of(self, side: str) -> str:
        """Precision of the LLM's weights and of autocast."""
        return "float32" if side == "float32" else self.dtype

    def shares_model(self, side: str) -> bool:
        """Whether a side has our model: always on a GPU, which need not hold two, unless ours is another."""
        is_plain = not self.recompute and self.silence is None
        # in half precision ours has its encoders rounded once
        is_alike = self.device != "cpu" or self.dtype == self._our_encoders() == "float32"
        return is_plain and side != "float32" and is_alike

    def model(self, side: str) -> SALMONN:
        """The model of a side, in training mode."""
        how: dict[str, Any] = {"encoder_dtype": self._our_encoders(), "llm_attention": self.attention}
        if side == "ours":
            how["gradient_checkpointing"] = self.recompute
            if self.silence is not None:
                how |= {"only_filled_windows": True, "whisper_silence": self.silence}
        elif not self.shares_model(side):  # the published encoders stay in float32, and autocast rounds them each time
            how = {"encoder_dtype": "float32"}
        model = build(self.size, torch.device(self.device), self.dtype_of(side), self.quantization, **how).train()
        if side == "ours" and not self.shares_model("plain"):
            model.hold_encoders_rounded(self.run(side))
        return model

    def _our_encoders(self) -> str:
        return self.encoder_dtype or self.dtype

    def step(self, side: str, model: SALMONN) -> Step:
        """The step of a side, always on the same batch."""
        step = STEPS["plain" if side == "float32" else side]
        return step(model, self.run(side), make_batch(model, self.batch))

    def run(self, side: str) -> DictConfig:
        """The `run` section of a side."""
        is_amp = self.dtype_of(side) == "bfloat16"
        return OmegaConf.structured(RunConfig(amp=is_amp, amp_dtype="bf16", batch_size_train=self.batch))


def our_step(model: SALMONN, run: DictConfig, samples: Samples) -> Step:
    """A step as the runner takes it."""
    step = TrainingStep(model, run, model.device)

    def forward() -> dict[str, torch.Tensor]:
        with autocast(run, model.device):
            return model(samples, verbose=True)

    return Step(forward, lambda result: step.backward(result, samples["id"], 1), lambda: step.finish(1))


def accumulated_step(
    step: TrainingStep, wrapped: nn.Module, run: DictConfig, batches: Iterable[Samples], n: int
) -> None:
    """A step of `n` micro-batches as the runner takes it: DDP, where it is around the model, averages with the last."""
    device = next(wrapped.parameters()).device
    for i, samples in enumerate(batches, start=1):
        is_apart = i < n and isinstance(wrapped, DistributedDataParallel)
        with wrapped.no_sync() if is_apart else nullcontext():
            with autocast(run, device):
                result = wrapped(samples, verbose=True)
            step.backward(result, samples["id"], n)
    step.finish(n)


STEPS: dict[str, Callable[..., Step]] = {
    "ours": our_step,
    "plain": plain_step.plain_step,
    "sdpa": partial(plain_step.plain_step, sdpa=True),
}


def sides_for(args: argparse.Namespace) -> tuple[str, ...]:
    """What ours is measured against; in float32 where ours is not, on a CPU.

    On a GPU nobody would train in float32 what fits in half of it.
    """
    there = [side for side in SIDES if side != "float32" or (args.device, args.dtype) == ("cpu", "bfloat16")]
    return chosen_sides("train", args.sides, there)


def bench_train(args: argparse.Namespace) -> Iterator[dict]:
    """Rows: seconds of a step, loss, the split of both steps, operations per sample, share of the peak, memory.

    With bfloat16 all sides but float32 have autocast.
    """
    how = (args.recompute, args.whisper_silence, args.encoder_dtype, args.attention)
    setup = Setup(args.size, args.device, args.dtype, args.quant, args.batch or BATCH, *how, sides_for(args))
    device = torch.device(setup.device)
    memory = _memory_rows(setup)  # while this process holds nothing
    models = _models(setup)
    steps = {side: setup.step(side, model) for side, model in models.items()}

    losses = {side: loss_and_gradient_norm(models[side], steps[side]) for side in setup.sides}
    # before and after: beside other work the machine's peak is not always the same
    peaks = [matmul_peak(device, getattr(torch, setup.dtype))]
    seconds = in_turns([steps[side] for side in setup.sides], args.repeats, lambda: spent(device))
    peaks.append(matmul_peak(device, getattr(torch, setup.dtype)))
    quantised = "" if setup.quantization == "none" else f", {setup.quantization}"
    recomputed = ", LLM recomputed" if setup.recompute else ""
    precision = "bfloat16 autocast on both sides" if setup.dtype == "bfloat16" else setup.dtype
    heard = "" if setup.silence is None else f", clips and {setup.silence:g} s heard"
    encoders = "" if setup.encoder_dtype is None else f", our encoders in {setup.encoder_dtype}"
    attention = "" if setup.attention == "auto" else f", our LLM's attention {setup.attention}"
    what = f"train {setup.size}, {precision}{quantised}{recomputed}{heard}{encoders}{attention}, batch {setup.batch}"
    unit = "CPU s a step" if device.type == "cpu" else "s a step"
    for side, of_side in zip(setup.against, seconds[1:], strict=True):
        yield row(what if side == "plain" else _against(side), (seconds[0], of_side)) | {"unit": unit}
    for side in setup.against:
        for name, ours, plain in zip(("loss", "gradient norm"), losses["ours"], losses[side], strict=True):
            yield {
                "what": f"   {name}, dropout off" if side == "plain" else f"{_against(side)}: {name}",
                "ours": ours,
                "plain": plain,
                "difference": abs(ours - plain) / plain,
                "unit": "",
            }
    wait = data_wait(steps["ours"], setup.batch, models["ours"].max_seconds)
    yield {"what": "   data wait of ours", "seconds": wait}
    yield from _split_rows(models, steps, args.repeats, device)
    if setup.silence is None:  # all windows are counted
        yield from _flops_rows(models["ours"], setup, seconds[0], max(peaks))
    yield from memory


def loss_and_gradient_norm(model: SALMONN, step: Step) -> tuple[float, float]:
    """Loss of the step's batch and the norm of all gradients, without dropout; the model stays as it was."""
    model.eval()
    loss = step.forward()["loss"]
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients).item()
    model.zero_grad(set_to_none=True)
    model.train()
    return loss.item(), norm


def _models(setup: Setup) -> dict[str, SALMONN]:
    """Of each side; the same one for sides that differ in nothing but the step."""
    models = {"ours": setup.model("ours")}
    for side in setup.against:
        same = [other for other in models if other != "ours" and setup.dtype_of(other) == setup.dtype_of(side)]
        of = "ours" if setup.shares_model(side) else next(iter(same), None)
        models[side] = models[of] if of else setup.model(side)
    return models


def _against(side: str) -> str:
    return f"   against {SIDES[side]}"


def _split_rows(models: dict[str, SALMONN], steps: dict[str, Step], repeats: int, device: torch.device) -> list[dict]:
    """Ours against the plain step; its SDPA form differs in Whisper and the LLM alone."""
    if "plain" not in steps:
        return []
    splits = {
        side: split_step(steps[side], parts_of(side, models[side]), repeats, device) for side in ("ours", "plain")
    }
    return [row(f"   {part}", (seconds, splits["plain"][part])) for part, seconds in splits["ours"].items()]


def parts_of(side: str, model: SALMONN) -> dict[str, list[tuple[Any, str]]]:
    """The functions that make up each part of a side's forward pass."""
    ours = [(model.log_mel, "forward"), (whole_model, "kaldi_fbank")]
    plain = [(plain_step, "mels"), (plain_step, "fbanks")]
    modules = {
        "Whisper": model.speech_encoder,
        "BEATs": model.beats,
        "Q-Former": model.speech_Qformer,
    }
    llm = model.llama_model.get_base_model()
    # ours makes the gradients of the logits together with them
    blocks_and_vocabulary = {"ours": [(llm.get_decoder(), "forward"), (whole_model, "target_loss")]}
    return (
        {"frontends": ours if side == "ours" else plain}
        | {name: [(module, "forward")] for name, module in modules.items()}
        | {"LLM forward": blocks_and_vocabulary.get(side, [(llm, "forward")])}
    )


def _flops_rows(model: SALMONN, setup: Setup, seconds: float, peak: float) -> list[dict]:
    """Operations of the mean sample, without padding, and the share of the machine's peak that ours reaches."""
    by_part = batch_flops(model, make_batch(model, setup.batch))
    total = sum(map(sum, by_part.values()))
    rows = [
        {"what": f"   operations per sample, {part}", "value": sum(flops) / 1e9, "unit": "GFLOP", **flops._asdict()}
        for part, flops in by_part.items()
    ]
    return [
        *rows,
        {"what": "   operations per sample", "value": total / 1e9, "unit": "GFLOP"},
        {"what": f"   measured peak of {setup.dtype} matmul", "value": peak / 1e9, "unit": "GFLOP/s"},
        {"what": "   MFU of ours", "value": 100 * total * setup.batch / seconds / peak, "unit": "%"},
    ]


def batch_flops(model: SALMONN, samples: Samples) -> dict[str, Any]:
    """Operations by part of a batch's mean sample; of each clip and row only what is not padding."""
    lengths = (~samples["padding_mask"]).sum(dim=1)
    patches = fbank_lengths(lengths) // model.beats.patch_size * model.beats.patches_per_step  # [B]
    llm_inputs, _ = model.lay_out([audio_tokens(model)] * len(samples["text"]), samples["prompts"], samples["text"])
    counts = zip(
        patches.tolist(), llm_inputs.is_used.sum(1).tolist(), llm_inputs.is_target.sum(1).tolist(), strict=True
    )
    each = [sample_flops(model, *count) for count in counts]
    return {
        part: type(flops)(*(sum(values) / len(each) for values in zip(*(one[part] for one in each), strict=True)))
        for part, flops in each[0].items()
    }


def _memory_rows(setup: Setup) -> list[dict]:
    """Each side in a process of its own: what one has left behind would hide what the other needs."""
    found = {side: in_own_process(step_memory, setup, side) for side in setup.sides}
    return [
        {"what": f"   {name}" if side == "plain" else f"{_against(side)}: {name}", "unit": "GB"}
        | {"ours": ours / GB, "plain": plain / GB, "ratio": plain / ours}
        for side in setup.against
        for name, ours, plain in zip(MEMORIES, found["ours"], found[side], strict=True)
    ]


MEMORIES = ("weights", "peak above the loaded model", "peak of the whole process")


def step_memory(setup: Setup, side: str) -> tuple[int, int, int]:
    """Bytes of a side's weights, what its steps need beyond what is held before the first one, and what is held in all.

    On a CPU the last has the interpreter and the libraries in it, on a GPU only tensors.
    """
    model = setup.model(side)
    step = setup.step(side, model)
    before, peak = held_and_peak(lambda: [step() for _ in range(MEMORY_STEPS)], model.device)
    return weight_bytes(model), peak - before, peak
