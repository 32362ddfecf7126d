"""Whisper: the speech encoder, and the features that it hears."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from omegaconf import DictConfig
from transformers import PreTrainedModel, WhisperConfig, WhisperFeatureExtractor, WhisperModel

from salmonn.audio.decode import SAMPLE_RATE
from salmonn.common.errors import UserError
from salmonn.model.features import LogMel
from salmonn.model.model_folders import (
    loading,
    require_all_weights,
    require_finite_weights,
    require_model_folder,
    require_weight_files,
)
from salmonn.model.qformer import WHISPER_FRAMES_PER_SECOND

UNUSED = r"(model\.)?decoder\.|proj_out\."  # of its weights: what writes its own transcripts


def load_whisper(config: DictConfig) -> tuple[LogMel, PreTrainedModel]:
    """The log-mel features and the encoder of `model.whisper_path`. Raises UserError where they cannot be loaded."""
    encoder = read_whisper(config)
    require_finite_weights("whisper_path", config, UNUSED)
    with loading("model.whisper_path", config.whisper_path):
        features = WhisperFeatureExtractor.from_pretrained(config.whisper_path, token=config.token or None)
        return LogMel(features, config.max_seconds), encoder


def read_whisper(config: DictConfig, **kwargs: Any) -> PreTrainedModel:
    """The encoder of `model.whisper_path`, which has to hold all of its weights; `kwargs`: for the library."""
    path, token = config.whisper_path, config.token or None
    require_model_folder("whisper_path", config)
    require_weight_files("whisper_path", config)
    settings = {"dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True, **kwargs}
    with loading("model.whisper_path", path):
        whisper, info = WhisperModel.from_pretrained(path, token=token, **settings)
        require_all_weights(info, path, unused=UNUSED)
        return shorten(whisper.get_encoder(), config.max_seconds)


def shorten(encoder: PreTrainedModel, max_seconds: float) -> PreTrainedModel:
    """Let the encoder hear windows of `max_seconds`, where its own 30 s are more: with the first of its positions.

    They are sinusoids of the time since the clip began, so what they mean stays the same.
    """
    frames = encoder_frames(encoder.config, max_seconds)
    if frames < encoder.config.max_source_positions:
        encoder.config.max_source_positions = encoder.max_source_positions = frames
        positions = encoder.embed_positions
        positions.weight = torch.nn.Parameter(positions.weight[:frames].clone(), positions.weight.requires_grad)
        positions.num_embeddings = frames
    return encoder


@contextmanager
def in_window(encoder: PreTrainedModel, frames: int) -> Iterator[None]:
    """Inside, the encoder hears windows of so many frames, as if it were `shorten`ed."""
    config, positions = encoder.config, encoder.embed_positions
    whole, weight = config.max_source_positions, positions.weight
    # a view, and no parameter of its own: what is trained, moved or saved stays the whole
    shortened = torch.nn.Parameter(weight.detach()[:frames], requires_grad=False)
    try:
        config.max_source_positions, positions.weight, positions.num_embeddings = frames, shortened, frames
        yield
    finally:
        config.max_source_positions, positions.weight, positions.num_embeddings = whole, weight, whole


def heard_frames(samples: int, silence: float, most: int) -> int:
    """Encoder frames of a clip of so many samples with `silence` seconds behind it, in whole seconds: at most `most`.

    In whole seconds, so that clips of like length are heard together.
    """
    return min(most, math.ceil(samples / SAMPLE_RATE + silence) * WHISPER_FRAMES_PER_SECOND)


def encoder_frames(config: WhisperConfig, max_seconds: float) -> int:
    """Frames that the encoder gives for what is heard of a clip."""
    return min(config.max_source_positions, int(max_seconds * WHISPER_FRAMES_PER_SECOND))


def require_features_fit(config: DictConfig, log_mel: LogMel, encoder: WhisperConfig) -> None:
    """Raise UserError where the features are those of another Whisper than the encoder."""
    made = log_mel.mel_filters.shape[1], log_mel.n_samples // log_mel.hop
    heard = encoder.num_mel_bins, 2 * encoder.max_source_positions
    if made != heard:
        raise UserError(
            f"model.whisper_path = {config.whisper_path}: its preprocessor_config.json makes {made[0]} mel bins and "
            f"{made[1]} frames, its config.json hears {heard[0]} and {heard[1]}: the two are of different Whispers"
        )
