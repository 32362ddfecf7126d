"""Whisper: the speech encoder, and the features that it hears."""

import torch
from omegaconf import DictConfig
from transformers import PreTrainedModel, WhisperFeatureExtractor, WhisperModel

from salmonn.model.features import LogMel
from salmonn.model.llm import loading, require_all_weights


def load_whisper(config: DictConfig) -> tuple[LogMel, PreTrainedModel]:
    """The log-mel features and the encoder of `model.whisper_path`. Raises UserError where they cannot be loaded."""
    path, token = config.whisper_path, config.token or None
    with loading("model.whisper_path", path):
        whisper, info = WhisperModel.from_pretrained(path, token=token, dtype=torch.float32, output_loading_info=True)
        require_all_weights(info, path, unused="decoder.")
        return LogMel(WhisperFeatureExtractor.from_pretrained(path, token=token)), whisper.get_encoder()
