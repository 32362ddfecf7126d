"""A Whisper for CTranslate2 (model.bin) as a Hugging Face folder.

The file, little-endian: version (u32), name of the specification, its revision (u32), number of variables (u32); of
each its name, its rank (u8), dimensions (u32 each), type (u8), bytes (u32) and values; then aliases, name by name.
A string is its length (u16), the closing zero counted, and its characters.
"""

import json
import shutil
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

from salmonn.common.errors import UserError

_TYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)
ENGLISH_VOCABULARY = 51_864  # tokens; the multilingual models have more, and other ids


def read_variables(path: Path) -> dict[str, np.ndarray]:
    """All variables of a CTranslate2 model, aliases included. Raises UserError for a file that is none."""
    try:
        with path.open("rb") as file:
            return _read(file)
    except (struct.error, ValueError, IndexError, KeyError) as error:
        raise UserError(f"{path} is not a CTranslate2 model, or not a whole one: {error}") from error


def _read(file: BinaryIO) -> dict[str, np.ndarray]:
    def numbers(form: str) -> tuple[int, ...]:
        return struct.unpack(f"<{form}", file.read(struct.calcsize(f"<{form}")))

    def string() -> str:
        [length] = numbers("H")
        return file.read(length)[:-1].decode()

    numbers("I")  # version of the file format
    string(), numbers("I")  # specification and its revision
    variables = {}
    for _ in range(*numbers("I")):
        name = string()
        [rank] = numbers("B")
        shape = numbers("I" * rank)
        kind, size = *numbers("B"), *numbers("I")
        variables[name] = np.frombuffer(file.read(size), _TYPES[kind]).reshape(shape)
    for _ in range(*numbers("I")):
        alias, name = string(), string()
        variables[alias] = variables[name]
    return variables


def convert_whisper(source: Path, target: Path) -> None:
    """Write `target` with model, features and tokenizer. Raises UserError for what is not an English Whisper."""
    variables = read_variables(source / "model.bin")
    if "encoder/conv1/weight" not in variables:
        raise UserError(f"{source} holds a CTranslate2 model, but not a Whisper")
    n_tokens, width = variables["decoder/embeddings/weight"].shape
    if n_tokens != ENGLISH_VOCABULARY:
        raise UserError(f"{source} holds a Whisper of {n_tokens} tokens: only the English ones ({ENGLISH_VOCABULARY})")
    n_layers = sum(name.startswith("encoder/layer_") and name.endswith("/ffn/layer_norm/gamma") for name in variables)
    heads = int(variables["encoder/num_heads"])
    n_mels, n_frames = variables["encoder/conv1/weight"].shape[1], len(variables[_positions("encoder")])
    end, start = 50_256, 50_257
    config = WhisperConfig(
        vocab_size=n_tokens, num_mel_bins=n_mels, d_model=width, encoder_layers=n_layers, decoder_layers=n_layers,
        encoder_attention_heads=heads, decoder_attention_heads=heads, max_source_positions=n_frames,
        encoder_ffn_dim=len(variables["encoder/layer_0/ffn/linear_0/bias"]),
        decoder_ffn_dim=len(variables["decoder/layer_0/ffn/linear_0/bias"]),
        max_target_positions=len(variables[_positions("decoder")]),
        pad_token_id=end, bos_token_id=end, eos_token_id=end, decoder_start_token_id=start,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    model.load_state_dict(hugging_face_names(variables, n_layers))
    hints = json.loads((source / "config.json").read_text())
    model.generation_config = GenerationConfig(
        bos_token_id=end, eos_token_id=end, pad_token_id=end, decoder_start_token_id=start,
        max_length=config.max_target_positions, no_timestamps_token_id=50_362, return_timestamps=False,
        is_multilingual=False, suppress_tokens=hints["suppress_ids"], begin_suppress_tokens=hints["suppress_ids_begin"],
    )  # fmt: skip
    model.save_pretrained(target)
    WhisperFeatureExtractor(feature_size=n_mels).save_pretrained(target)
    shutil.copy(source / "tokenizer.json", target)
    special = dict.fromkeys(("bos_token", "eos_token", "pad_token"), "<|endoftext|>")
    (target / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **special}))


def hugging_face_names(variables: dict[str, np.ndarray], n_layers: int) -> dict[str, Tensor]:
    """The same weights by transformers' names; CTranslate2 keeps queries, keys and values in one matrix."""
    weights: dict[str, Tensor] = {}

    def put(name: str, values: Any) -> None:
        weights[name] = torch.from_numpy(np.array(values, np.float32))

    def norm(name: str, source: str) -> None:
        put(f"{name}.weight", variables[f"{source}/gamma"])
        put(f"{name}.bias", variables[f"{source}/beta"])

    def linear(names: list[str], source: str) -> None:
        """One matrix, or several above each other; Whisper's keys have no bias."""
        parts = [np.split(variables[f"{source}/{kind}"], len(names)) for kind in ("weight", "bias")]
        for name, weight, bias in zip(names, *parts, strict=True):
            put(f"{name}.weight", weight)
            if not name.endswith("k_proj"):
                put(f"{name}.bias", bias)
            elif bias.any():
                raise UserError(f"{source}: the keys have a bias, which a Whisper has not")

    for side in ("encoder", "decoder"):
        ours = f"model.{side}"
        put(f"{ours}.embed_positions.weight", variables[_positions(side)])
        norm(f"{ours}.layer_norm", f"{side}/layer_norm")
        for i in range(n_layers):
            layer, source = f"{ours}.layers.{i}", f"{side}/layer_{i}"
            attention = f"{layer}.self_attn"
            linear([f"{attention}.{x}_proj" for x in "qkv"], f"{source}/self_attention/linear_0")
            linear([f"{attention}.out_proj"], f"{source}/self_attention/linear_1")
            norm(f"{attention}_layer_norm", f"{source}/self_attention/layer_norm")
            if side == "decoder":
                attention = f"{layer}.encoder_attn"
                linear([f"{attention}.q_proj"], f"{source}/attention/linear_0")
                linear([f"{attention}.{x}_proj" for x in "kv"], f"{source}/attention/linear_1")
                linear([f"{attention}.out_proj"], f"{source}/attention/linear_2")
                norm(f"{attention}_layer_norm", f"{source}/attention/layer_norm")
            linear([f"{layer}.fc1"], f"{source}/ffn/linear_0")
            linear([f"{layer}.fc2"], f"{source}/ffn/linear_1")
            norm(f"{layer}.final_layer_norm", f"{source}/ffn/layer_norm")
    for conv in ("conv1", "conv2"):
        put(f"model.encoder.{conv}.weight", variables[f"encoder/{conv}/weight"])
        put(f"model.encoder.{conv}.bias", variables[f"encoder/{conv}/bias"])
    put("model.decoder.embed_tokens.weight", variables["decoder/embeddings/weight"])
    weights["proj_out.weight"] = weights["model.decoder.embed_tokens.weight"]
    return weights


def _positions(side: str) -> str:
    return f"{side}/position_encodings/encodings"
