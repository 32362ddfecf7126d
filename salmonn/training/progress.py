"""Where a run is, also on another number of processes."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig

logger = logging.getLogger(__name__)


@dataclass
class Progress:
    """Where a run is; with parameters, optimiser and scaler it is all that going on takes."""

    epoch: int = 0  # that is being trained
    iteration: int = 0  # micro-batches done in it, per process
    step: int = 0  # the same since the run began, as the log counts
    processes: int = 1  # that did it
    samples: int = 0  # taken from the stream of training data, by all processes
    best: dict[str, Any] = field(default_factory=dict)  # validation of the best epoch
    valid: dict[str, Any] = field(default_factory=dict)  # the newest validation
    seconds: float = 0.0  # of training
    tried: int = 0  # entries
    bad: int = 0  # of them

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
            self.iteration = self.iteration * samples_before // samples_now
        if samples_before != samples_now or before["accum_grad_iters"] != run.accum_grad_iters:
            self.iteration -= self.iteration % run.accum_grad_iters  # a step begins with its first micro-batch
        self.processes = processes
