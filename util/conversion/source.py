"""What a converter reads: a SALMONN checkpoint (.pth, ours or published) or a folder of `save_pretrained`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig
from torch import Tensor

from salmonn.common.errors import UserError
from salmonn.config.loading import load_config, model_config
from salmonn.config.stored import require_literal, require_plain, without_secrets
from salmonn.model import checkpoint, pretrained
from salmonn.model.lineage import LINEAGE

_SECTIONS = ("config.model", "config.run", "config.datasets", "progress.best")
TRAINING_KEYS = ("epoch", "step", LINEAGE)  # kept beside the configuration
_CONNECTOR = ("speech_query_tokens", "speech_Qformer.", "speech_llama_proj.", "sound_proj.", "ln_speech.", "ln_audio.")


class Source(NamedTuple):
    """Parameters under their published names, and what is known about them."""

    parameters: dict[str, Tensor]
    config: dict[str, Any]  # all sections that the run had; {} where the file does not say
    training: dict[str, Any]  # epoch, step and the runs before, as far as the file says
    rest: dict[str, Any]  # what a run goes on with: optimizer, scaler, progress, ...


def read_source(path: Path) -> Source:
    """Read a checkpoint or a folder. Raises UserError for anything else."""
    content = read_content(path)
    if not is_salmonn(content["model"]):
        raise UserError(f"{path} is not a SALMONN checkpoint: {checkpoint.other_tensors(content['model'])}")
    return as_source(content)


def read_content(path: Path, lazily: bool = False) -> dict[str, Any]:
    """What a checkpoint holds: {"model", "config", "epoch", ...}; a folder is read into the same form."""
    if not path.is_dir():
        content = checkpoint.read(path, "SALMONN or BEATs checkpoint", lazily)
        _require_dictionaries({key: content[key] for key in ("config", "progress") if key in content}, path)
        return content
    stored = pretrained.read_config(path)
    content = checkpoint.read(path / pretrained.WEIGHTS, lazily=lazily)
    training = dict(stored["training"])
    _require_dictionaries({key: training[key] for key in ("config",) if key in training}, path)
    return content | {"config": {**training.pop("config", {}), "model": stored["model"]}} | training


def _require_dictionaries(parts: Mapping[str, Any], path: Path) -> None:
    """Raise UserError where configuration, progress, or a section of theirs that is looked at, is something else."""
    sections = {f"{key}.{name}": part[name] for key, part in parts.items() if isinstance(part, dict) for name in part}
    looked_at = {name: value for name, value in sections.items() if name in _SECTIONS and value is not None}
    for name, value in {**parts, **looked_at}.items():
        if not isinstance(value, dict):
            raise UserError(f"{path} is damaged, or not written by this code: {name} in it must be a dictionary")
    for name, value in parts.items():
        require_plain(value, f"{path}: {name} in it")


def as_source(content: Mapping[str, Any]) -> Source:
    """The content of a checkpoint in its parts."""
    known = ("model", "config", *TRAINING_KEYS)
    return Source(
        content["model"],
        without_secrets(content.get("config") or {}),
        {key: content[key] for key in TRAINING_KEYS if key in content},
        {key: value for key, value in content.items() if key not in known},
    )


def is_salmonn(parameters: Mapping[str, Tensor]) -> bool:
    """Whether some of the tensors are those of a SALMONN connector."""
    return any(name.startswith(_CONNECTOR) for name in parameters)


def model_section(source: Source, path: Path, cfg_path: str | None) -> DictConfig:
    """The `model` section of the config file, else the one in the checkpoint. Raises UserError where there is none."""
    if cfg_path:
        return load_config(cfg_path).model
    section = source.config.get("model")
    if not isinstance(section, dict):
        raise UserError(f"{path} does not say how its model is built; name its config file: --cfg-path FILE")
    try:
        require_literal(section, "its model section")
        return model_config(section)
    except UserError as error:
        raise UserError(f"{path}: {error}\nTo use a config file of yours instead: --cfg-path FILE") from error
