"""Whether runs can start: all that keeps them from it, told at once."""

import os
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from salmonn.common.errors import UserError
from salmonn.common.files import GB, existing_part, free_bytes
from salmonn.common.shared_memory import shared_memory
from salmonn.config.loading import best_checkpoint
from salmonn.config.missing_files import annotation_keys
from salmonn.model.encoder_cache import folder_bytes
from salmonn.preflight import find_problems, problem_of, refuse
from salmonn.training.run_folder import RunFolder
from salmonn.training.run_state import require_same_experiment
from salmonn.training.wandb_log import require_wandb


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


def run_problems(config: DictConfig, made_before: Sequence[str] = ()) -> list[str]:
    """All that keeps a training run from starting. `made_before`: checkpoints that will be there when it does."""
    folder, unread = RunFolder(config), list(made_before)
    if folder.continues():  # then these are not read any more
        unread += [config.model.ckpt, config.model.speech_llama_proj_model]
    problems = folder.problems()
    if not problems:  # else it need not be there
        problems += problem_of(require_same_experiment, folder)
    problems += find_problems(config, annotation_keys(config), unread, goes_on=folder.candidates())
    return problems + problem_of(_require_cache_room, config.run) + problem_of(require_wandb, config)


def shared_memory_problem(configs: Sequence[DictConfig], n_gpus: int = 1) -> str:
    """What is wrong with this machine's /dev/shm for runs on several GPUs; "" where nothing is.

    `n_gpus`: where no launcher has said how many processes there are.
    """
    if not any(config.run.use_distributed and config.run.device.startswith("cuda") for config in configs):
        return ""
    return shared_memory(int(os.environ.get("LOCAL_WORLD_SIZE", n_gpus)))[1]


def _require_cache_room(run: DictConfig) -> None:
    """Raise UserError when the encoder cache cannot be made, or the disk is too full for it to grow to its bound."""
    if not run.encoder_cache:
        return
    folder = Path(run.encoder_cache)
    there = existing_part(folder)
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        raise UserError(f"run.encoder_cache = {folder}: {there} is no folder that can be written to")
    room = (free_bytes(folder) + folder_bytes(folder)) / GB
    if room < run.encoder_cache_gb:
        raise UserError(
            f"run.encoder_cache = {folder}: this disk has {room:.1f} GB for it, fewer than run.encoder_cache_gb = "
            f"{run.encoder_cache_gb:g}; set that lower, or name a folder of another disk"
        )
