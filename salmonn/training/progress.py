"""Progress: where a run is, also on another number of processes. Plan: its sizes, which follow from its config."""

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from omegaconf import DictConfig
from torch import nn

from salmonn.common.screen import counted
from salmonn.model.parameter_counts import show_counts, trainable_parameters

logger = logging.getLogger(__name__)

_MANY_PASSES = 50


@dataclass
class Progress:
    """Where a run is; with parameters, optimiser and scaler it is all that going on takes."""

    epoch: int = 0  # that is being trained
    epoch_iteration: int = 0  # micro-batches done in it, per process
    iteration: int = 0  # the same since the run began, as the log counts
    processes: int = 1  # that did it
    samples: int = 0  # taken from the stream of training data, by all processes
    best: dict[str, Any] = field(default_factory=dict)  # the validation of the best checkpoint
    valid: dict[str, Any] = field(default_factory=dict)  # the newest validation
    seconds: float = 0.0  # of training
    tried: int = 0  # entries
    unreadable: int = 0  # of them
    measured: dict[str, Any] = field(default_factory=dict)  # by `run.batch_tokens` auto: tokens, clips, on which GPUs

    @classmethod
    def from_saved(cls, saved: Mapping[str, Any]) -> "Progress":
        """Of a checkpoint's "progress", also one with the names of before. Raises TypeError for others, or kinds."""
        progress = cls(**_today(saved))
        for name, default in asdict(cls()).items():
            value = getattr(progress, name)
            if not isinstance(value, int | float if isinstance(default, float) else type(default)):
                raise TypeError(f"{name} = {value!r} in its progress")
            if not isinstance(default, dict) and not 0 <= value < math.inf:
                raise TypeError(f"{name} = {value!r} in its progress")
        for name, validation in (("best", progress.best), ("valid", progress.valid)):
            accuracy, loss = validation.get("accuracy"), validation.get("loss", 0.0)
            is_one = isinstance(accuracy, int | float) and math.isfinite(accuracy) and isinstance(loss, int | float)
            if validation and not is_one:
                raise TypeError(f"{name} in its progress is no validation")
        if progress.measured and not all(isinstance(progress.measured.get(key), int) for key in ("tokens", "clips")):
            raise TypeError("measured in its progress is no budget")
        return progress

    def is_best(self) -> bool:
        """Whether the newest validation has the highest token accuracy so far, or as high a one at a lower loss.

        A best one of before that tells no loss stays the best of its equals, as it was then.
        """
        if not self.best or self.valid["accuracy"] != self.best["accuracy"]:
            return not self.best or self.valid["accuracy"] > self.best["accuracy"]
        return self.valid["loss"] < self.best.get("loss", -math.inf)

    def go_on(self, before: Mapping[str, Any], run: DictConfig, processes: int) -> None:
        """On another number of processes the samples go on where they were; so does an epoch that is a pass.

        `before`, `run`: the `run` section until now and from here on.
        """
        if self.processes != processes:
            logger.warning(
                "number of processes: %d instead of %d; the samples go on where they were, in another effective batch",
                processes,
                self.processes,
            )
        samples_before, samples_now = before["batch_size_train"] * self.processes, run.batch_size_train * processes
        if run.epoch_based and samples_before != samples_now:
            self.epoch_iteration = self.epoch_iteration * samples_before // samples_now
        if samples_before != samples_now or before["accum_grad_iters"] != run.accum_grad_iters:
            # a step begins with its first micro-batch
            self.epoch_iteration -= self.epoch_iteration % run.accum_grad_iters
        self.processes = processes


def _today(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Today's names; until November 2026 `step` counted all micro-batches and `iteration` those of the epoch."""
    if "step" not in saved:
        return dict(saved)
    logger.info("the checkpoint's progress has older names: step is iteration now, iteration is epoch_iteration")
    names = {"step": "iteration", "iteration": "epoch_iteration", "bad": "unreadable"}
    return {names.get(key, key): value for key, value in saved.items()}


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
        processes = counted(self.processes, "process", "processes")
        factors = f"{self.batch_size} x accumulation {self.accumulation} x {processes}"
        samples = f"{counted(self.samples, 'sample')}, {self.passes:.2f} passes over the data"
        return (
            f"{counted(self.epochs, 'epoch')} of {counted(self.steps_per_epoch, 'step')}, effective batch "
            f"{self.effective_batch} ({factors}): {samples}"
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
    logger.info("   %s", show_counts(trainable_parameters(model)))
    logger.info("   %s", plan)
    for unusual in unusual_about(plan, config):
        logger.warning("%s", unusual)


def unusual_about(plan: Plan, config: DictConfig) -> list[str]:
    """What may not be meant in a run's settings, a sentence each."""
    scaling, warmup_steps = config.model.lora_scaling, config.run.optims.warmup_steps
    sentences = []
    if scaling is not None:
        sentences.append(f"training with model.lora_scaling = {scaling:g}; checkpoints do not remember it")
    if plan.iters_per_epoch < warmup_steps:
        sentences.append(
            f"run.optims.warmup_steps = {warmup_steps} is longer than an epoch of {plan.iters_per_epoch} iterations: "
            f"the ramp begins anew in each, as in the published code"
        )
    if plan.passes > _MANY_PASSES:
        sentences.append(
            f"{plan.passes:.0f} passes over the data: so few entries are soon known by heart (the published stage 1 "
            "makes 12.7 passes); run.epoch_based=True makes an epoch a pass, and run.optims.max_epoch says how many"
        )
    if config.run.batch_size_eval == 1:
        sentences.append("run.batch_size_eval = 1: there is no control with shuffled audio (it takes two clips)")
    return sentences
