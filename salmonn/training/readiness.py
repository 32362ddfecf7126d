"""Whether runs can start: all that keeps them from it, told at once."""

import os
from collections.abc import Sequence

from omegaconf import DictConfig

from salmonn.common.shared_memory import shared_memory
from salmonn.config.loading import best_checkpoint
from salmonn.config.missing_files import annotation_keys, missing_files
from salmonn.preflight import find_problems, problem_of, refuse
from salmonn.training.run_folder import RunFolder
from salmonn.training.wandb_log import require_wandb


def require_all_ready(configs: Sequence[DictConfig]) -> None:
    """Raise one UserError with the problems of all stages, each told once."""
    refuse(all_problems(configs))


def require_files(configs: Sequence[DictConfig]) -> None:
    """Where files are missing, raise UserError as `require_all_ready`, mostly before PyTorch is loaded."""
    made = [best_checkpoint(config.run) for config in configs]
    for i, config in enumerate(configs):
        if missing_files(config, annotation_keys(config), _unread(config, made[:i])):
            require_all_ready(configs)


def all_problems(configs: Sequence[DictConfig]) -> list[str]:
    """What keeps each stage from starting, if those before it have left their checkpoints."""
    problems: list[str] = []
    made: dict[str, DictConfig] = {}
    for config in configs:
        problems += run_problems(config, list(made))
        if not problems and (before := made.get(config.model.ckpt)):  # missing files are told without PyTorch
            problems += problem_of(_require_same_hearing, config.model, before, config.model.ckpt)
        made[best_checkpoint(config.run)] = config
    return problems


def _require_same_hearing(model: DictConfig, before: DictConfig, path: str) -> None:
    from salmonn.model.hearing import require_same_hearing  # with PyTorch

    require_same_hearing(model, {"config": before}, path)


def run_problems(config: DictConfig, made_before: Sequence[str] = ()) -> list[str]:
    """All that keeps a training run from starting. `made_before`: checkpoints that will be there when it does."""
    folder, unread = RunFolder(config), _unread(config, made_before)
    problems = folder.problems()
    if not problems and folder.candidates():  # else it need not be there
        from salmonn.training.resume import require_same_experiment

        problems += problem_of(require_same_experiment, folder)
    problems += find_problems(config, annotation_keys(config), unread, goes_on=folder.candidates())
    if config.run.encoder_cache:
        from salmonn.model.encoder_cache import require_room

        problems += problem_of(require_room, config.run)
    return problems + problem_of(require_wandb, config)


def _unread(config: DictConfig, made_before: Sequence[str]) -> list[str]:
    """Checkpoints that a run names and that need not be there: made before, or not read any more as it goes on."""
    ckpts = [config.model.ckpt, config.model.speech_llama_proj_model] if RunFolder(config).continues() else []
    return [*made_before, *ckpts]


def shared_memory_problem(configs: Sequence[DictConfig], n_gpus: int = 1) -> str:
    """What is wrong with this machine's /dev/shm for runs on several GPUs; "" where nothing is.

    `n_gpus`: where no launcher has said how many processes there are.
    """
    if not any(config.run.use_distributed and config.run.device.startswith("cuda") for config in configs):
        return ""
    return shared_memory(int(os.environ.get("LOCAL_WORLD_SIZE", n_gpus)))[1]
