"""One stage or several after each other, in the same processes."""

import gc
import os
from collections.abc import Sequence

import torch
from omegaconf import DictConfig

from salmonn.common import distributed
from salmonn.config.loading import best_checkpoint
from salmonn.preflight import refuse, run_problems
from salmonn.training.run_log import setup_logging
from salmonn.training.runner import Runner


def run_stages(configs: Sequence[DictConfig]) -> None:
    """Train the configs in order; a signal that ends one ends all.

    What is wrong with a later stage is told before the first one begins. A stage without
    `run.use_distributed` is trained by the first process alone, the others end.
    """
    setup_logging()
    if len(configs) > 1 and distributed.is_local_main():
        require_all_ready(configs)
    try:
        for config in configs:
            if not config.run.use_distributed:
                distributed.shutdown()
                if int(os.environ.get("RANK", 0)) > 0:
                    return
            if not Runner(config).run():
                return
            gc.collect()  # the model of this stage, before that of the next one is loaded
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    finally:
        distributed.shutdown()


def require_all_ready(configs: Sequence[DictConfig]) -> None:
    """Raise one UserError with the problems of all stages, each told once."""
    refuse(all_problems(configs))


def all_problems(configs: Sequence[DictConfig]) -> list[str]:
    """What keeps each stage from starting, if those before it have left their checkpoints."""
    problems: list[str] = []
    made: list[str] = []
    for config in configs:
        problems += run_problems(config, made)
        made.append(best_checkpoint(config.run))
    return problems
