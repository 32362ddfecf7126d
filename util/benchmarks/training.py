"""A training step, ours against the plain one: speed, where the time goes, memory, operations."""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from salmonn.common.device import autocast
from salmonn.common.errors import UserError
from salmonn.common.files import GB
from salmonn.common.samples import Samples
from salmonn.config.schema import RunConfig
from salmonn.evaluation.efficiency import now
from salmonn.model import salmonn as whole_model
from salmonn.model.features import fbank_lengths
from salmonn.model.llm_input import build_llm_inputs, tokenize
from salmonn.model.salmonn import SALMONN
from salmonn.training.step import TrainingStep
from util.benchmarks import plain_step
from util.benchmarks.data_wait import data_wait
from util.benchmarks.flops import audio_tokens, sample_flops
from util.benchmarks.measure import alternate, in_own_process, matmul_peak, peak_growth, row
from util.benchmarks.plain_step import Step
from util.benchmarks.sizes import build, make_batch, weight_bytes
from util.benchmarks.step_split import split_step

MEMORY_STEPS = 2  # in the second one the optimiser's state is there from the beginning
BATCH = 4


@dataclass(frozen=True)
class Setup:
    """What is measured."""

    size: str
    device: str
    dtype: str
    quantization: str
    batch: int
    recompute: bool = False  # ours: gradient checkpointing of the LLM

    def dtype_of(self, side: str) -> str:
        """On a CPU the plain step is always float32; on a GPU both sides share one model, as AMP is published there."""
        return "float32" if side == "plain" and self.device == "cpu" else self.dtype

    def model(self, side: str) -> SALMONN:
        """The model of a side, in training mode."""
        how = {"gradient_checkpointing": self.recompute and side == "ours"}
        return build(self.size, torch.device(self.device), self.dtype_of(side), self.quantization, **how).train()

    def step(self, side: str, model: SALMONN) -> Step:
        """The step of a side, always on the same batch."""
        bf16 = self.dtype_of(side) == "bfloat16"
        run = OmegaConf.structured(RunConfig(amp=bf16, amp_dtype="bf16", batch_size_train=self.batch))
        return STEPS[side](model, run, make_batch(model, self.batch))


def our_step(model: SALMONN, run: DictConfig, samples: Samples) -> Step:
    """A step as the runner takes it."""
    step = TrainingStep(model, run, model.device)

    def forward() -> dict[str, torch.Tensor]:
        with autocast(run, model.device):
            return model(samples, verbose=True)

    return Step(forward, lambda result: step.backward(result, samples["id"], 1), lambda: step.finish(1))


STEPS: dict[str, Callable[..., Step]] = {"ours": our_step, "plain": plain_step.plain_step}


def bench_train(args: argparse.Namespace) -> Iterator[dict]:
    """Rows: samples/s, loss, memory, the split of both steps, operations per sample and the share of the peak.

    With bfloat16 ours has frozen weights and autocast in bfloat16. On a CPU the plain step stays in float32.
    """
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch finds no GPU here")
    setup = Setup(args.size, args.device, args.dtype, args.quant, args.batch or BATCH, args.recompute)
    device = torch.device(setup.device)
    memory = _memory_rows(setup)  # while this process holds nothing
    models = {"ours": setup.model("ours")}
    same = setup.dtype_of("ours") == setup.dtype_of("plain") and not setup.recompute
    models["plain"] = models["ours"] if same else setup.model("plain")
    steps = {side: setup.step(side, model) for side, model in models.items()}

    losses = {side: loss_and_gradient_norm(models[side], steps[side]) for side in STEPS}
    # before and after: beside other work the machine's peak is not always the same
    peaks = [matmul_peak(device, getattr(torch, setup.dtype))]
    seconds = alternate(*(_finished(steps[side], device) for side in STEPS), args.repeats)
    peaks.append(matmul_peak(device, getattr(torch, setup.dtype)))
    quantised = "" if setup.quantization == "none" else f", {setup.quantization}"
    recomputed = ", LLM recomputed" if setup.recompute else ""
    yield {
        "what": f"train {setup.size}, {setup.dtype}{quantised}{recomputed}, batch {setup.batch}",
        "ours": setup.batch / seconds[0],
        "plain": setup.batch / seconds[1],
        "ratio": seconds[1] / seconds[0],
        "unit": "samples/s",
        "precision": {side: setup.dtype_of(side) for side in STEPS},
    }
    for name, ours, plain in zip(("loss", "gradient norm"), losses["ours"], losses["plain"], strict=True):
        yield {
            "what": f"   {name}, dropout off",
            "ours": ours,
            "plain": plain,
            "difference": abs(ours - plain) / plain,
            "unit": "",
        }
    wait = data_wait(steps["ours"], setup.batch, models["ours"].max_seconds, args.repeats)
    yield {"what": "   data wait of ours", "seconds": wait}
    yield from _split_rows(models, steps, args.repeats, device)
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


def _finished(step: Step, device: torch.device) -> Callable[[], None]:
    def take() -> None:
        step()
        now(device)  # waits for the device

    return take


def _split_rows(models: dict[str, SALMONN], steps: dict[str, Step], repeats: int, device: torch.device) -> list[dict]:
    splits = {side: split_step(steps[side], _parts(side, models[side]), repeats, device) for side in STEPS}
    return [row(f"   {part}", (seconds, splits["plain"][part])) for part, seconds in splits["ours"].items()]


def _parts(side: str, model: SALMONN) -> dict[str, list[tuple[Any, str]]]:
    """The functions that make up each part of a side's forward pass."""
    frontends = {
        "ours": [(model.log_mel, "forward"), (whole_model, "kaldi_fbank")],
        "plain": [(plain_step, "mels"), (plain_step, "fbanks")],
    }
    modules = {
        "Whisper": model.speech_encoder,
        "BEATs": model.beats,
        "Q-Former": model.speech_Qformer,
    }
    llm = model.llama_model.get_base_model()
    # ours makes the gradients of the logits together with them
    blocks_and_vocabulary = {"ours": [(llm.get_decoder(), "forward"), (whole_model, "target_loss")]}
    return (
        {"frontends": frontends[side]}
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
    targets = tokenize(model.tokenizer, [text + model.config.end_sym for text in samples["text"]])
    llm_inputs = build_llm_inputs(model.tokenizer, audio_tokens(model), samples["prompts"], targets)
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
    weights, above = {}, {}
    for side in STEPS:
        weights[side], above[side] = in_own_process(step_memory, setup, side)
    return [
        {"what": f"   {what}", "unit": "GB", "ratio": values["plain"] / values["ours"]}
        | {side: value / GB for side, value in values.items()}
        for what, values in (("weights", weights), ("peak memory above the weights", above))
    ]


def step_memory(setup: Setup, side: str) -> tuple[int, int]:
    """Bytes of a side's weights, and what its steps need beyond what is held before the first one."""
    model = setup.model(side)
    step = setup.step(side, model)
    above = peak_growth(lambda: [step() for _ in range(MEMORY_STEPS)], model.device)
    return weight_bytes(model), above
