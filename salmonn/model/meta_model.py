"""The model without its weights: what config files and file headers say, known before anything big is read."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn
from transformers import AutoModelForCausalLM, WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from salmonn.common.errors import UserError
from salmonn.model import checkpoint
from salmonn.model.beats import load_beats
from salmonn.model.features import LogMel
from salmonn.model.hearing import require_same_hearing
from salmonn.model.llm import llm_attention, quantised_by, read_llm, require_loadable, stored_config
from salmonn.model.model_folders import loading, require_model_folder
from salmonn.model.salmonn import SALMONN
from salmonn.model.tokenizer import load_tokenizer
from salmonn.model.whisper import read_whisper, shorten


def build_meta_model(model: DictConfig, kind: type[SALMONN] = SALMONN) -> SALMONN:
    """The model of a `model` section on the meta device: every name and shape, no values.

    Raises UserError that names everything that keeps the real one from being loaded.
    """
    loaders = {
        "log_mel": lambda: LogMel(_of_whisper(WhisperFeatureExtractor, model), model.max_seconds),
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
    config = stored_config(model)
    require_loadable(config, model)
    if Path(model.llama_path).is_dir() and not quantised_by(config):  # whose weights are looked at, but not read
        return read_llm(model, config, torch.device("meta"), device_map="meta")
    with torch.device("meta"), loading("model.llama_path", model.llama_path):
        llm = AutoModelForCausalLM.from_config(
            config, attn_implementation=llm_attention(model), trust_remote_code=False
        )
        return llm.requires_grad_(False)


def heard_seconds(model: DictConfig) -> float:
    """Length of audio that the Whisper of a `model` section hears: `SALMONN.max_seconds` before there is a model."""
    return LogMel(_of_whisper(WhisperFeatureExtractor, model), model.max_seconds).max_seconds


def require_checkpoint_fits(meta_model: SALMONN, path: str | Path, partial: bool = False) -> None:
    """Raise UserError unless the checkpoint's names and shapes are those of the model."""
    checkpoint.require_fit(meta_model, checkpoint.read(path, lazily=True)["model"], path, partial)


def require_start_fits(meta_model: SALMONN, path: str | Path, partial: bool = False) -> None:
    """As `require_checkpoint_fits`, of a checkpoint to start from: it was trained to hear in the same way, too.

    Of `model.ckpt`, which is not `partial`, another Vicuna is told.
    """
    content = checkpoint.read(path, lazily=True)
    checkpoint.require_fit(meta_model, content["model"], path, partial)
    require_same_hearing(meta_model.config, content, path, only_told=partial)
    if not partial:
        meta_model.tell_other_vicuna(content, path)


def _whisper_encoder(model: DictConfig) -> WhisperEncoder:
    if Path(model.whisper_path).is_dir():  # whose weights are looked at, but not read
        return read_whisper(model, device_map="meta")
    config = _of_whisper(WhisperConfig, model)
    with torch.device("meta"):
        return shorten(WhisperEncoder(config), model.max_seconds)


def _of_whisper(kind: type[Any], model: DictConfig) -> Any:
    require_model_folder("whisper_path", model)
    with loading("model.whisper_path", model.whisper_path):
        return kind.from_pretrained(model.whisper_path, token=model.token or None)
