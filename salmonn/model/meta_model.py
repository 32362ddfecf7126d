"""The model without its weights: what config files and file headers say, known before anything big is read."""

import json
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from salmonn.common.errors import UserError
from salmonn.model import checkpoint
from salmonn.model.beats import load_beats
from salmonn.model.features import LogMel
from salmonn.model.llm import llm_attention, load_tokenizer, loading, require_loadable
from salmonn.model.salmonn import SALMONN
from salmonn.model.whisper import shorten

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def build_meta_model(model: DictConfig, kind: type[SALMONN] = SALMONN) -> SALMONN:
    """The model of a `model` section on the meta device: every name and shape, no values.

    Raises UserError that names everything that keeps the real one from being loaded.
    """
    loaders = {
        "log_mel": lambda: LogMel(_from_folder(WhisperFeatureExtractor, "whisper_path", model), model.max_seconds),
        "speech_encoder": lambda: _whisper_encoder(model),
        "beats": lambda: load_beats(model.beats_path, device="meta") if model.beats_path else None,
        "llm": lambda: meta_llm(model),
        "tokenizer": lambda: load_tokenizer(model),
    }
    parts, problems = {}, []
    for name, load in loaders.items():
        try:
            parts[name] = load()
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    with torch.device("meta"):
        return kind(model, **parts)


def meta_llm(model: DictConfig) -> nn.Module:
    """The LLM alone on the meta device. Raises UserError when the real one cannot be loaded."""
    config = _from_folder(AutoConfig, "llama_path", model)
    require_loadable(config, model)
    _require_weight_files("llama_path", model)
    with torch.device("meta"), loading("model.llama_path", model.llama_path):
        llm = AutoModelForCausalLM.from_config(config, attn_implementation=llm_attention(model))
        return llm.requires_grad_(False)


def heard_seconds(model: DictConfig) -> float:
    """Length of audio that the Whisper of a `model` section hears: `SALMONN.max_seconds` before there is a model."""
    return LogMel(_from_folder(WhisperFeatureExtractor, "whisper_path", model), model.max_seconds).max_seconds


def require_checkpoint_fits(meta_model: SALMONN, path: str | Path, partial: bool = False) -> None:
    """Raise UserError unless the checkpoint's names and shapes are those of the model."""
    checkpoint.require_fit(meta_model, checkpoint.read(path, lazily=True)["model"], path, partial)


def _whisper_encoder(model: DictConfig) -> WhisperEncoder:
    config = _from_folder(WhisperConfig, "whisper_path", model)
    _require_weight_files("whisper_path", model)
    with torch.device("meta"):
        return shorten(WhisperEncoder(config), model.max_seconds)


def _from_folder(kind: type[Any], key: str, model: DictConfig) -> Any:
    with loading(f"model.{key}", model[key]):
        return kind.from_pretrained(model[key], token=model.token or None)


def _require_weight_files(key: str, model: DictConfig) -> None:
    """Raise UserError where a folder lacks weight files, e.g. a shard that was not downloaded."""
    folder = Path(model[key])
    if not folder.is_dir() or any((folder / name).exists() for name in _WEIGHTS):
        return  # a hub name: the library fetches what is missing
    shards: set[str] = set()
    for index in (folder / f"{name}.index.json" for name in _WEIGHTS):
        if index.exists() and not shards:
            with loading(f"model.{key}", str(index)):
                shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    missing = sorted(name for name in shards if not (folder / name).exists())
    if missing or not shards:
        raise UserError(f"model.{key} = {folder} lacks its weights: {', '.join(missing or _WEIGHTS[:1])}")
