"""What is in a checkpoint of a run: written, and read so that a run can go on from it."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

from salmonn.common.errors import UserError
from salmonn.config.loading import defaults
from salmonn.config.schema import Config
from salmonn.config.stored import require_literal, require_plain, without_secrets, written_config
from salmonn.model import checkpoint
from salmonn.training.optim import require_whole_moments
from salmonn.training.progress import Progress

logger = logging.getLogger(__name__)

Content = dict[str, Any]  # of a checkpoint: "model", "optimizer", "scaler", "config", "progress", "epoch", "step"
DATA = "annotations"  # what tells the contents of the annotation files, by key; checkpoints of before do not have it
_OF_A_RUN = {"optimizer", "scaler", "config", "progress"}  # what a run goes on from, beside the parameters
# of a part that the libraries take for granted
OTHER_SHAPE = (ValueError, LookupError, TypeError, AttributeError, RuntimeError)


def build_content(model: nn.Module, config: DictConfig, progress: Progress, **more: Any) -> Content:
    """What a checkpoint holds: the parameters that no frozen backbone's own file has, and all that going on takes."""
    return {
        "model": checkpoint.own_values(model),
        **more,
        "config": written_config(config),
        "progress": asdict(progress),
    }


def read_content(path: Path, lazily: bool = False) -> Content:
    """A checkpoint that a run can go on from; `lazily` as in `checkpoint.read`. Raises UserError for any other file."""
    content = checkpoint.read(path, lazily=lazily)
    if missing := _OF_A_RUN - content.keys():
        raise UserError(f"{path} holds parameters but no run to go on with (no {', '.join(sorted(missing))})")
    parts = _OF_A_RUN | ({DATA} & content.keys())
    if odd := sorted(key for key in parts if not isinstance(content[key], dict)):
        raise UserError(
            f"{path} is damaged, or no checkpoint of this code: {', '.join(odd)} in it must be dictionaries"
        )
    require_plain(content["progress"], f"{path}: its progress")
    try:
        Progress.from_saved(content["progress"])
    except TypeError as error:
        raise UserError(f"{path} was written by another version of this code ({error})") from error
    require_literal(config := without_secrets(content["config"]), f"{path}: its configuration")
    content["config"] = _completed(config, OmegaConf.to_container(defaults(Config)), path)
    _drop_removed_keys(content["config"], path)
    return content


def require_optimizer(content: Content, progress: Progress, path: Path) -> None:
    """Raise UserError where the optimiser's state in a checkpoint is not whole: the next step would spoil the model."""
    model = content["config"]["model"]
    drops_layers = not (model["freeze_whisper"] and model["freeze_beats"])  # no step yet, perhaps
    only_overflows = bool(content["scaler"]) and not content["optimizer"].get("state")
    try:
        require_whole_moments(content["optimizer"], progress.iteration > 0 and not drops_layers and not only_overflows)
    except OTHER_SHAPE as error:
        raise UserError(f"{path}: its optimiser cannot go on: {error}") from error


def _completed(saved: dict[str, Any], plain: dict[str, Any], path: Path) -> dict[str, Any]:
    """A checkpoint's configuration with the keys that came later. Raises UserError where it has another shape."""
    completed = plain | saved
    for key, default in plain.items():
        value = completed[key]
        if isinstance(default, dict) and isinstance(value, dict):
            completed[key] = _completed(value, default, path)
        elif isinstance(default, dict | int) and not isinstance(value, type(default)):
            raise UserError(
                f"{path} is damaged, or no checkpoint of this code: its configuration has {key} = {value!r}"
            )
    return completed


_REMOVED = {"run": ("length_grouped",)}  # keys that earlier versions had, by section


def _drop_removed_keys(config: dict[str, Any], path: Path) -> None:
    """Take keys that are gone out of a checkpoint's configuration: a run of an earlier version goes on without them."""
    for section, keys in _REMOVED.items():
        found = config.get(section, {})
        if dropped := [f"{section}.{key} = {found.pop(key)}" for key in keys if key in found]:
            logger.info("%s names keys that are gone; they are left out: %s", path, ", ".join(dropped))
