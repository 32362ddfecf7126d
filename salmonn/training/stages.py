"""One stage or several after each other, in the same processes."""

import gc
import logging
import os
from collections.abc import Sequence

import torch
from omegaconf import DictConfig

from salmonn.common import distributed
from salmonn.common.logging import setup_logging
from salmonn.training.readiness import require_all_ready, shared_memory_problem
from salmonn.training.runner import Runner

logger = logging.getLogger(__name__)


def run_stages(configs: Sequence[DictConfig]) -> None:
    """Train the configs in order; a signal that ends one ends all.

    What is wrong with any of them is told before the first one begins. A stage without
    `run.use_distributed` is trained by the first process alone, the others end.
    """
    setup_logging()
    if distributed.is_local_main():  # one process looks; the others wait for it where all join
        require_all_ready(configs)
        if problem := shared_memory_problem(configs):
            logger.warning("%s", problem)
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
