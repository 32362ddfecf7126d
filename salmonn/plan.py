"""What a run will do, in numbers that follow from its config: steps, samples, parameters, memory for them."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from omegaconf import DictConfig
from torch import nn

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

    def step_sizes(self, iteration: int) -> Iterator[int]:
        """Micro-batches of each step from an epoch's iteration on, without end; an epoch's last step may have fewer."""
        while True:
            for i in range(iteration, self.iters_per_epoch, self.accumulation):
                yield min(self.accumulation, self.iters_per_epoch - i)
            iteration = 0

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
