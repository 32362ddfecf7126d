"""Random models of a given shape: for dry runs, benchmarks and tests.

A shape holds a part's own settings, those of transformers' configurations and of a BEATs file's `cfg`. Values are
drawn from torch's generator, on its default device.
"""

import math
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from salmonn.model.beats import BEATs, read_beats_file
from salmonn.model.features import LogMel
from salmonn.model.llm import quantised_by
from salmonn.model.salmonn import SALMONN

Shape = dict[str, Any]


def llama_shape(hidden: int, layers: int, heads: int, mlp: int, **more: Any) -> Shape:
    """A LLaMA; `more`: other keys of its configuration, the defaults are Vicuna's."""
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
    return {**sizes, "intermediate_size": mlp, "vocab_size": 32_000, "max_position_embeddings": 2048, **more}


def whisper_shape(width: int, layers: int, heads: int, ffn: int, **more: Any) -> Shape:
    """A Whisper; `more`: other keys of its configuration."""
    sizes = {"d_model": width, "encoder_layers": layers, "encoder_attention_heads": heads, "encoder_ffn_dim": ffn}
    return {**sizes, **more}


VICUNA_7B, VICUNA_13B = llama_shape(4096, 32, 32, 11008), llama_shape(5120, 40, 40, 13824)
LLAMA_3B = llama_shape(  # Llama 3.2
    3072, 28, 24, 8192, vocab_size=128_256, num_key_value_heads=8, head_dim=128, tie_word_embeddings=True
)
WHISPER_LARGE = whisper_shape(1280, 32, 20, 5120)


def random_llm(shape: Shape, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A frozen LLaMA; on a CPU it is drawn in float32 and rounded, elsewhere drawn in `dtype`."""
    drawn = torch.float32 if torch.get_default_device().type == "cpu" else dtype
    llm = LlamaForCausalLM._from_config(LlamaConfig(**shape, use_cache=False), dtype=drawn)
    return llm.to(dtype).requires_grad_(False)


def random_model(
    config: DictConfig,
    llm: PreTrainedModel,
    whisper: Shape,
    beats: Shape | None,
    tokenizer: PreTrainedTokenizerBase,
    seconds: int = 30,
) -> SALMONN:
    """The model of a complete `model` section around an LLM; `seconds` that Whisper hears."""
    speech_encoder = WhisperEncoder(WhisperConfig(**whisper))
    audio_encoder = BEATs(beats) if beats else None
    log_mel = LogMel(WhisperFeatureExtractor(chunk_length=seconds))
    return SALMONN(config, log_mel, speech_encoder, audio_encoder, llm, tokenizer)


# ---- tiny ones, in their file formats

WIDTH, HEADS, LAYERS = 64, 4, 2


def write_tiny_parts(model: DictConfig, folder: Path) -> dict[str, Any]:
    """Write tiny Whisper, BEATs and LLM of the kinds that a `model` section names; returns what it says of them.

    Architectures, vocabulary, features and windows are those of the section.
    """
    token = model.token or None
    extractor = WhisperFeatureExtractor.from_pretrained(model.whisper_path, token=token)
    whisper = shrink_whisper(WhisperConfig.from_pretrained(model.whisper_path, token=token))
    write_whisper(folder / "whisper", whisper, extractor)
    llm = shrink_llm(AutoConfig.from_pretrained(model.llama_path, token=token, trust_remote_code=False))
    AutoModelForCausalLM.from_config(llm, trust_remote_code=False).save_pretrained(folder / "llm")
    AutoTokenizer.from_pretrained(model.llama_path, token=token, trust_remote_code=False).save_pretrained(
        folder / "llm"
    )
    if model.beats_path:
        write_beats(folder / "beats.pt", shrink_beats(read_beats_file(model.beats_path, lazily=True)["cfg"]))
    return {
        "llama_path": str(folder / "llm"),
        "whisper_path": str(folder / "whisper"),
        "beats_path": str(folder / "beats.pt") if model.beats_path else "",
        "ckpt": "",
        "speech_llama_proj_model": "",
        "qformer_hidden_size": WIDTH,
        "qformer_num_heads": HEADS,
        "qformer_intermediate_size": 2 * WIDTH,
    }


def write_whisper(folder: Path, config: WhisperConfig, extractor: WhisperFeatureExtractor) -> None:
    """Write a Whisper of that configuration with its features' settings."""
    WhisperModel(config).save_pretrained(folder)
    extractor.save_pretrained(folder)


def write_beats(path: Path, cfg: Shape) -> None:
    """Write a BEATs file without a classifier."""
    torch.save({"cfg": cfg, "model": BEATs(cfg).state_dict()}, path)


def shrink_whisper(whisper: WhisperConfig) -> WhisperConfig:
    """The configuration of a tiny Whisper with the same features."""
    decoder = {"decoder_layers": 1, "decoder_attention_heads": HEADS, "decoder_ffn_dim": 2 * WIDTH}
    whisper.update(whisper_shape(WIDTH, LAYERS, HEADS, 2 * WIDTH, **decoder))
    return whisper


def shrink_beats(cfg: Shape) -> Shape:
    """The `cfg` of a tiny BEATs of the same kind."""
    tiny = {"encoder_layers": LAYERS, "encoder_embed_dim": WIDTH, "encoder_ffn_embed_dim": 2 * WIDTH}
    return {**cfg, **tiny, "embed_dim": WIDTH, "encoder_attention_heads": HEADS, "conv_pos_groups": HEADS}


def shrink_llm(llm: PretrainedConfig) -> PretrainedConfig:
    """The configuration of a tiny LLM of the same architecture and vocabulary."""
    keys_per_head = llm.num_attention_heads // getattr(llm, "num_key_value_heads", llm.num_attention_heads)
    sizes = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": max(2, math.ceil(HEADS / keys_per_head)),  # nf4 on a CPU wants 32 values
        "head_dim": WIDTH // HEADS,
    }
    llm.update({key: value for key, value in sizes.items() if hasattr(llm, key)})
    if getattr(llm, "layer_types", None):
        llm.layer_types = llm.layer_types[:LAYERS]
    if quantised_by(llm):
        del llm.quantization_config  # random weights are plain ones
    return llm
