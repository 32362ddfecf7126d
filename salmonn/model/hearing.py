"""Settings that decide what trained parameters mean, and that no name and no shape of them shows.

Checkpoints of runs and folders of `save_pretrained` say what theirs were; of others nothing is known. Not compared is
`only_filled_windows`: it changes how many audio tokens there are, not what one is (docs/performance.md says what that
costs).
"""

import logging
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from salmonn.common.errors import UserError
from salmonn.model import pretrained
from salmonn.model.checkpoint import is_of_stage_0
from salmonn.model.qformer import window_frames

logger = logging.getLogger(__name__)

_SECONDS = ("second_per_window", "second_stride")
_PARTS = ("whisper_path", "beats_path", "llama_path")
_WHISPER_HEARS = ("max_seconds", "whisper_silence")  # of a clip and behind it: its features are others for each
_READ = {"spelled_tokens": False, "sound_seconds": None}  # the LLM's adapters read only what they were trained on
_MOST = 1e6  # of any setting


def require_same_hearing(
    model: DictConfig, content: Mapping[str, Any], path: str | Path, only_told: bool = False
) -> None:
    """Raise UserError where the checkpoint of this content was trained to hear by other windows or heads.

    `only_told`: warn instead. Warns, too, where Whisper heard more or less of a clip and the silence behind it, and
    where the parts around the connector have other names.
    """
    theirs = _stored_section(content, path)
    other = heard_otherwise(theirs, model)
    if theirs and _is_read(content):
        theirs = {**_READ, **theirs}
        other += [key for key in _READ if theirs[key] != model[key]]
    if other:
        listed = "\n  ".join(
            f"model.{key}: {_said(theirs[key])} in the file, {_said(model[key])} here" for key in other
        )
        message = (
            f"{path} was trained to hear otherwise, which no name and no shape of its parameters shows:\n  {listed}\n"
            f"Take its values: --options {' '.join(f'model.{key}={_said(theirs[key])}' for key in other)}"
        )
        if not only_told:
            raise UserError(
                f"{message}. If other ones are meant, name the file as model.speech_llama_proj_model instead of "
                "model.ckpt, which only warns"
            )
        _warn(message)
    if other := [key for key in _WHISPER_HEARS if _is_told(key, theirs) and theirs[key] != model[key]]:
        listed = ", ".join(f"model.{key} {_said(theirs[key])} (here {_said(model[key])})" for key in other)
        options = [f"model.{key}={_said(theirs[key])}" for key in other]
        if not model.only_filled_windows and theirs.get("whisper_silence") is not None:  # which needs it
            options.append("model.only_filled_windows=True")
        _warn(
            f"{path} was trained with {listed}: Whisper says something else of another window, and it may understand "
            f"nothing of that until it is trained on. Take its values: --options {' '.join(options)}"
        )
    if other := _other_parts(theirs, model):
        listed = ", ".join(f"model.{key} {theirs[key]} (here {model[key]})" for key in other)
        _warn(f"{path} was trained with {listed}: if that is more than another name, it understands nothing")


def heard_otherwise(theirs: Mapping[str, Any], ours: Mapping[str, Any] | DictConfig) -> list[str]:
    """The keys of two `model` sections by which a connector hears otherwise; those that `theirs` tells."""
    keys = ["qformer_num_heads", "window_level_Qformer", *(_SECONDS if ours["window_level_Qformer"] else ())]
    return [key for key in keys if _is_number(theirs.get(key)) and _meant(key, theirs[key]) != _meant(key, ours[key])]


def _is_read(content: Mapping[str, Any]) -> bool:
    """Whether an LLM has learned to read it: not after stage 0; its run tells before there are parameters."""
    if parameters := content.get("model"):
        return not is_of_stage_0(parameters)
    run = (content.get("config") or {}).get("run") or {"objective": "not known"}
    return run.get("objective", "answer") == "answer"


def tells_other_llm(model: DictConfig, content: Mapping[str, Any], path: str | Path) -> bool:
    """Whether `require_same_hearing` warns of another LLM."""
    return "llama_path" in _other_parts(_stored_section(content, path), model)


def _other_parts(theirs: Mapping[str, Any], model: DictConfig) -> list[str]:
    return [key for key in _PARTS if _are_other_names(theirs.get(key), model[key])]


def _is_told(key: str, theirs: Mapping[str, Any]) -> bool:
    return _is_number(theirs.get(key)) or (key == "whisper_silence" and key in theirs and theirs[key] is None)


def _said(value: Any) -> str:
    """As it is typed in a config: null for None, 12 for 12.0."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "null" if value is None else str(value)


def _meant(key: str, value: float) -> float:
    return window_frames(value) if key in _SECONDS else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < _MOST


def _are_other_names(one: Any, other: str) -> bool:
    if (
        not isinstance(one, str)
        or not (one and other)
        or "snapshots" in (Path(one).parent.name, Path(other).parent.name)
    ):
        return False  # not known: the hub's cache calls a model's folder by a revision
    return Path(one).name.lower() != Path(other).name.lower()


def _stored_section(content: Mapping[str, Any], path: str | Path) -> Mapping[str, Any]:
    """The `model` section that a checkpoint, or the folder of a .safetensors file, holds; empty where none does."""
    if Path(path).suffix == ".safetensors":
        try:
            return pretrained.read_config(Path(path).parent)["model"]
        except UserError:  # alone, or beside another config.json: parameters are all that it has
            return {}
    config = content.get("config")
    section = config.get("model") if isinstance(config, Mapping) else None
    return section if isinstance(section, Mapping) else {}


@cache  # once: before the model is read, and as it is loaded
def _warn(message: str) -> None:
    logger.warning("%s", message)
