"""A Whisper for CTranslate2 (model.bin), as faster-whisper runs it, as a Hugging Face folder.

The file, little-endian: version (u32), name of the specification, its revision (u32), number of variables (u32); of
each its name, its rank (u8), dimensions (u32 each), type (u8), bytes (u32) and values; then aliases, name by name.
A string is its length (u16), the closing zero counted, and its characters.
"""

import json
import re
import shutil
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

from salmonn.common.errors import UserError, examples
from salmonn.common.files import read_json

_TYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)
_BFLOAT16 = 5  # the number of a type that numpy has not: its bits are the upper half of a float32's
ENGLISH_VOCABULARY = 51_864  # tokens; the multilingual models have one or two more


def read_variables(path: Path) -> dict[str, np.ndarray]:
    """All variables of a CTranslate2 model, aliases included. Raises UserError for a file that is none."""
    try:
        with path.open("rb") as file:
            return _read(file)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
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
        variables[name] = _values(file.read(size), kind).reshape(shape)
    for _ in range(*numbers("I")):
        alias, name = string(), string()
        variables[alias] = variables[name]
    return variables


def _values(data: bytes, kind: int) -> np.ndarray:
    if kind == _BFLOAT16:
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, _TYPES[kind])


def convert_ctranslate2(source: Path, target: Path) -> None:
    """Write `target` with model, features and tokenizer. Raises UserError for what is no Whisper in floats."""
    try:
        _convert(source, target)
    except KeyError as error:
        raise UserError(f"{source} holds a Whisper of an unknown kind: its model.bin has no {error}") from error


def _convert(source: Path, target: Path) -> None:
    variables = read_variables(source / "model.bin")
    if "encoder/conv1/weight" not in variables:
        raise UserError(f"{source} holds a CTranslate2 model, but not a Whisper: only those are converted")
    if any(name.endswith("/weight_scale") for name in variables):
        raise UserError(
            f"{source} holds a Whisper in whole numbers (int8 or int16), which is not converted: take one in float16, "
            "bfloat16 or float32, or the model that it was made from, which is on the hub"
        )
    n_tokens, width = variables["decoder/embeddings/weight"].shape
    n_layers = {side: _count_layers(variables, side) for side in ("encoder", "decoder")}
    heads = {side: int(variables.get(f"{side}/num_heads", variables["encoder/num_heads"])) for side in n_layers}
    n_mels, n_frames = variables["encoder/conv1/weight"].shape[1], len(variables[_positions("encoder")])
    ids = _special_tokens(source / "tokenizer.json")
    end, start = ids["<|endoftext|>"], ids["<|startoftranscript|>"]
    config = WhisperConfig(
        vocab_size=n_tokens, num_mel_bins=n_mels, d_model=width,
        encoder_layers=n_layers["encoder"], decoder_layers=n_layers["decoder"],
        encoder_attention_heads=heads["encoder"], decoder_attention_heads=heads["decoder"],
        encoder_ffn_dim=len(variables["encoder/layer_0/ffn/linear_0/bias"]),
        decoder_ffn_dim=len(variables["decoder/layer_0/ffn/linear_0/bias"]),
        max_source_positions=n_frames, max_target_positions=len(variables[_positions("decoder")]),
        pad_token_id=end, bos_token_id=end, eos_token_id=end, decoder_start_token_id=start,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    model.load_state_dict(hugging_face_names(variables, n_layers))
    hints = read_json(source / "config.json")
    multilingual: dict[str, Any] = {"is_multilingual": False}
    if n_tokens > ENGLISH_VOCABULARY:  # the decoder is told language and task
        languages = {name: i for name, i in ids.items() if re.fullmatch(r"<\|[a-z]{2,3}\|>", name)}
        tasks = {task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")}
        multilingual = {"is_multilingual": True, "lang_to_id": languages, "task_to_id": tasks}
    model.generation_config = GenerationConfig(
        bos_token_id=end, eos_token_id=end, pad_token_id=end, decoder_start_token_id=start,
        max_length=config.max_target_positions, no_timestamps_token_id=ids["<|notimestamps|>"],
        return_timestamps=False, suppress_tokens=hints.get("suppress_ids"),
        begin_suppress_tokens=hints.get("suppress_ids_begin"), **multilingual,
    )  # fmt: skip
    model.save_pretrained(target)
    WhisperFeatureExtractor(feature_size=n_mels).save_pretrained(target)
    shutil.copy(source / "tokenizer.json", target)
    special = dict.fromkeys(("bos_token", "eos_token", "pad_token"), "<|endoftext|>")
    (target / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **special}))


def _count_layers(variables: dict[str, np.ndarray], side: str) -> int:
    return sum(name.startswith(f"{side}/layer_") and name.endswith("/ffn/layer_norm/gamma") for name in variables)


def _special_tokens(tokenizer: Path) -> dict[str, int]:
    """{token: its id} of those that are no text. Raises UserError where they are not those of a Whisper."""
    content = read_json(tokenizer)
    try:
        ids = {token["content"]: token["id"] for token in content["added_tokens"]}
    except (KeyError, TypeError):
        ids = {}
    wanted = ("<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>", "<|transcribe|>", "<|translate|>")
    if missing := [name for name in wanted if name not in ids]:
        raise UserError(f"{tokenizer} is no Whisper's: it has no {examples(missing)}; take the one of the same model")
    return ids


def hugging_face_names(variables: dict[str, np.ndarray], n_layers: dict[str, int]) -> dict[str, Tensor]:
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

    for side in n_layers:
        ours = f"model.{side}"
        put(f"{ours}.embed_positions.weight", variables[_positions(side)])
        norm(f"{ours}.layer_norm", f"{side}/layer_norm")
        for i in range(n_layers[side]):
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
