"""Folders to use a trained model from: `model.safetensors` and `config.json`.

The weights are a checkpoint's, under the same names; `model.ckpt` takes the file, too. A folder is
for use: it holds no optimiser, so no run goes on from it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from safetensors import torch as safetensors
from torch import Tensor

from salmonn.common.errors import UserError
from salmonn.common.files import make_folder, read_json, replacing, write_json
from salmonn.config.loading import model_config
from salmonn.config.missing_files import missing_model_files
from salmonn.config.stored import require_literal, without_secrets

WEIGHTS, CONFIG = "model.safetensors", "config.json"
MODEL_TYPE = "salmonn"
_IN_WEIGHTS = {"ckpt": "", "speech_llama_proj_model": ""}  # what was loaded from them is in the folder's own


def save(
    folder: str | Path, parameters: Mapping[str, Tensor], model: DictConfig, training: Mapping[str, Any] | None = None
) -> None:
    """Write the folder: the parameters as they are, a `model` section, and where they come from.

    Raises UserError where the folder holds the config.json of something else.
    """
    folder = Path(folder)
    if (folder / CONFIG).exists():
        read_config(folder)
    make_folder(folder)
    # Copies, for the file format knows neither views nor two names of the same memory.
    form = torch.contiguous_format
    tensors = {k: v.detach().to("cpu", copy=True, memory_format=form) for k, v in parameters.items()}
    content = {
        "model_type": MODEL_TYPE,
        **without_secrets({"model": OmegaConf.to_container(model) | _IN_WEIGHTS}),
        "training": dict(training or {}),
    }
    with replacing(folder / WEIGHTS) as temporary:
        temporary.write_bytes(
            safetensors.save(tensors, metadata={"format": "pt"})
        )  # save_file's are for the owner only
    write_json(folder / CONFIG, content)


def model_section(folder: str | Path, overrides: Mapping[str, Any] | None = None) -> DictConfig:
    """The folder's `model` section with its weights as `ckpt`, ready for `SALMONN.from_config`.

    Raises UserError that names every file that is not there, and unknown overrides.
    """
    stored = without_secrets(read_config(folder))["model"]
    require_literal(stored, f"{folder}/{CONFIG}: model")
    section = model_config({**stored, "ckpt": str(Path(folder) / WEIGHTS), **(overrides or {})})
    if missing := missing_model_files(section):
        raise UserError(
            "\n  ".join([f"{folder} names files that are not here:", *missing])
            + '\nGive their places as SALMONN.from_pretrained(folder, llama_path="...", whisper_path="...", ...); '
            'prompt files may be left out: prompt_path="", test_prompt_path=""'
        )
    return section


def without_places(model: DictConfig) -> DictConfig:
    """A `model` section for others: of absolute paths, which tell how this machine is laid out, the last part."""
    values = OmegaConf.to_container(model)
    kept = {k: Path(v).name if isinstance(v, str) and Path(v).is_absolute() else v for k, v in values.items()}
    return OmegaConf.create(kept)


def read_config(folder: str | Path) -> dict[str, Any]:
    """The content of the folder's config.json: model_type, model, training. Raises UserError for another folder."""
    path = Path(folder) / CONFIG
    what = "not a SALMONN folder as save_pretrained and util/convert.py write it"
    if not path.is_file():
        raise UserError(f"{folder} is {what}: it has no {CONFIG}")
    content = read_json(path)
    found = content.get("model_type") if isinstance(content, dict) else None
    if found != MODEL_TYPE:
        raise UserError(f"{folder} is {what}: its {CONFIG} has model_type {found!r}, not {MODEL_TYPE!r}")
    broken = [key for key in ("model", "training") if not isinstance(content.get(key), dict)]
    if broken:
        raise UserError(f'{path} lacks the section "{broken[0]}"')
    return content
