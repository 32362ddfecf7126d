"""What a run will do, in numbers that follow from its config: steps, samples, parameters, memory for them."""

import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from omegaconf import DictConfig
from torch import nn

logger = logging.getLogger(__name__)

# The trainable parts, by the beginning of their parameters' names.
_PARTS = {
    "speech_Qformer.": "Q-Former",
    "speech_query_tokens": "query tokens",
    "speech_llama_proj.": "projection",
    "ln_": "norms",
    "llama_model.": "LoRA",
    "speech_encoder.": "Whisper",
    "beats.": "BEATs",
}


@dataclass(frozen=True)
class Plan:
    """Sizes of a run; an iteration is a micro-batch of every process, a step moves the parameters."""

    iters_per_epoch: int
    epochs: int
    steps_per_epoch: int
    batch_size: int  # of a process
    accumulation: int  # micro-batches in a step
    processes: int
    samples: int  # of the whole run
    passes: float  # over the training data

    @property
    def samples_per_iteration(self) -> int:
        """Samples that all processes take at once."""
        return self.batch_size * self.processes

    @property
    def effective_batch(self) -> int:
        """Samples of a full step."""
        return self.batch_size * self.accumulation * self.processes

    def steps(self, iteration: int) -> Iterator[range]:
        """Iterations of each step that is left of an epoch; its last step may have fewer."""
        for i in range(iteration, self.iters_per_epoch, self.accumulation):
            yield range(i, min(i + self.accumulation, self.iters_per_epoch))

    def step_sizes(self, iteration: int) -> Iterator[int]:
        """Micro-batches of each step from an epoch's iteration on, without end."""
        while True:
            yield from map(len, self.steps(iteration))
            iteration = 0

    def is_multiple(self, iteration: int, steps: int) -> bool:
        """Whether the steps that an epoch has done after so many iterations are a multiple; of 0 they never are."""
        return bool(steps) and math.ceil(iteration / self.accumulation) % steps == 0

    def __str__(self) -> str:
        factors = f"{self.batch_size} x accumulation {self.accumulation} x {_counted(self.processes, 'process', 'es')}"
        return (
            f"{_counted(self.epochs, 'epoch', 's')} of {_counted(self.steps_per_epoch, 'step', 's')}, effective batch "
            f"{self.effective_batch} ({factors}): {self.samples} samples, {self.passes:.2f} passes over the data"
        )


def make_plan(run: DictConfig, n_train: int, world_size: int) -> Plan:
    """The plan of a `run` section for that many training samples and processes."""
    per_iteration = run.batch_size_train * world_size
    iters = math.ceil(n_train / per_iteration) if run.epoch_based else run.iters_per_epoch
    samples = run.optims.max_epoch * iters * per_iteration
    return Plan(
        iters_per_epoch=iters,
        epochs=run.optims.max_epoch,
        steps_per_epoch=math.ceil(iters / run.accum_grad_iters),
        batch_size=run.batch_size_train,
        accumulation=run.accum_grad_iters,
        processes=world_size,
        samples=samples,
        passes=samples / n_train,
    )


def log_plan(plan: Plan, config: DictConfig, model: nn.Module) -> None:
    """Log what a run will do, and what is unusual about it."""
    scaling, warmup_steps = config.model.lora_scaling, config.run.optims.warmup_steps
    logger.info("   %s", shown(trainable_parameters(model)))
    logger.info("   %s", plan)
    if scaling is not None:
        logger.warning("training with model.lora_scaling = %g; checkpoints do not remember it", scaling)
    if plan.iters_per_epoch < warmup_steps:
        logger.warning(
            "run.optims.warmup_steps = %d is longer than an epoch of %d iterations: the ramp begins anew in each, "
            "as in the published code",
            warmup_steps,
            plan.iters_per_epoch,
        )


def trainable_parameters(model: nn.Module) -> dict[str, int]:
    """Numbers of trainable parameters by part."""
    return count_by_part({name: p.numel() for name, p in model.named_parameters() if p.requires_grad})


def count_by_part(sizes: Mapping[str, int]) -> dict[str, int]:
    """Sums of the sizes of named parameters by part, the largest first."""
    counts: Counter[str] = Counter()
    for name, size in sizes.items():
        counts[next(part for start, part in _PARTS.items() if name.startswith(start))] += size
    return dict(counts.most_common())


def shown(counts: dict[str, int]) -> str:
    """Parameter counts as a line for people."""
    parts = ", ".join(f"{part} {_millions(n)}" for part, n in counts.items())
    return f"{_millions(sum(counts.values()))} trainable parameters ({parts})"


def _counted(n: int, name: str, plural: str) -> str:
    return f"{n} {name}{plural if n > 1 else ''}"


def _millions(n: int) -> str:
    return f"{n / 1e6:.2f} M" if n >= 10_000 else str(n)
