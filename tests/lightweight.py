"""LLMs of other families, tiny and random, with tokenizers in each family's manner, and clips to ask them about."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from salmonn import SALMONN
from salmonn.dry_run import shrink_llm

CORPUS = [
    "a red dog runs near the house while the rain falls",
    "USER: <Speech></Speech> Please write down what you hear.\nASSISTANT:",
    "the bell rings four times and a siren passes in the distance",
]
# Sizes of the published models, as their config.json has them.
LLAMA_3B: dict[str, Any] = {
    "hidden_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128,
    "intermediate_size": 8192, "vocab_size": 128_256, "max_position_embeddings": 131_072, "tie_word_embeddings": True,
    "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
    },
}  # fmt: skip
LLAMA3_SPECIALS = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
QWEN_SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
GEMMA_SPECIALS = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]


@dataclass(frozen=True)
class Family:
    """How the models of a family differ from Vicuna."""

    config: type[PretrainedConfig]
    published: dict[str, Any]  # what its config.json has at the published size
    tokenizer: str  # llama3 | gemma | qwen
    end_sym: str
    prompt_template: str = "USER: {}\nASSISTANT:"
    tiny: dict[str, Any] = field(default_factory=dict)  # of the tiny one, so that what is special can be seen


FAMILIES = {
    "llama3.2": Family(
        LlamaConfig,
        LLAMA_3B,
        "llama3",
        "<|end_of_text|>",
        tiny={"rope_parameters": {**LLAMA_3B["rope_parameters"], "original_max_position_embeddings": 64}},
    ),
    "gemma2": Family(Gemma2Config, {}, "gemma", "<eos>", tiny={"sliding_window": 40, "final_logit_softcapping": 20.0}),
    "qwen2.5": Family(
        Qwen2Config,
        {"hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2,
         "intermediate_size": 8960, "vocab_size": 151_936, "tie_word_embeddings": True},
        "qwen",
        "<|im_end|>",
        "<|im_start|>system\nYou listen.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
    ),
    "qwen3": Family(
        Qwen3Config,
        {"hidden_size": 2048, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
         "head_dim": 128, "intermediate_size": 6144, "vocab_size": 151_936, "tie_word_embeddings": True},
        "qwen",
        "<|endoftext|>",
    ),
    "granite": Family(GraniteConfig, {"logits_scaling": 8.0, "embedding_multiplier": 12.0}, "llama3", "<|eot_id|>"),
}  # fmt: skip


def write_llm(folder: Path, name: str) -> dict[str, Any]:
    """Write a tiny random LLM of the family with its tokenizer; returns what a `model` section says of it."""
    family = FAMILIES[name]
    config = shrink_llm(family.config(**family.published))
    vocabulary = write_tokenizer(folder, family.tokenizer)
    ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}  # ours come from the tokenizer
    config.update({"vocab_size": vocabulary, "initializer_range": 0.2, **ids, **family.tiny})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return {"llama_path": str(folder), "end_sym": family.end_sym, "prompt_template": family.prompt_template}


def write_tokenizer(folder: Path, kind: str) -> int:
    """Write tokenizer.json and tokenizer_config.json as the hub's folders have them; returns the vocabulary's size."""
    tokenizer, settings = {"llama3": _llama3, "gemma": _gemma, "qwen": _qwen}[kind]()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return tokenizer.get_vocab_size()


def _llama3() -> tuple[Tokenizer, dict[str, Any]]:
    """Byte-level BPE with BOS and without a padding token."""
    tokenizer = _byte_level(LLAMA3_SPECIALS)
    tokenizer.post_processor = _bos_in_front(tokenizer, LLAMA3_SPECIALS[0])
    return tokenizer, {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": LLAMA3_SPECIALS[0], "eos_token": "<|eot_id|>",
        "clean_up_tokenization_spaces": False,
    }  # fmt: skip


def _qwen() -> tuple[Tokenizer, dict[str, Any]]:
    """Byte-level BPE without BOS; another symbol than EOS pads."""
    tokenizer = _byte_level(QWEN_SPECIALS)
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer, {
        "tokenizer_class": "Qwen2Tokenizer", "bos_token": None, "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>", "unk_token": None, "add_prefix_space": False,
    }  # fmt: skip


def _gemma() -> tuple[Tokenizer, dict[str, Any]]:
    """Byte-fallback BPE over characters with spaces as ▁, no space in front; `</s>` is an ordinary token of it."""
    learned = _trained(Tokenizer(BPE()), [text.replace(" ", "▁") for text in CORPUS])
    pieces = [*GEMMA_SPECIALS, "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *learned["vocab"]]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    merges = [tuple(merge) for merge in learned["merges"]]
    tokenizer = Tokenizer(BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(GEMMA_SPECIALS)
    tokenizer.add_tokens(["</s>"])
    tokenizer.post_processor = _bos_in_front(tokenizer, "<bos>")
    return tokenizer, {
        "tokenizer_class": "GemmaTokenizer", "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>",
        "unk_token": "<unk>", "add_bos_token": True,
    }  # fmt: skip


def _byte_level(specials: Sequence[str]) -> Tokenizer:
    tokenizer = Tokenizer(BPE())
    words = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    _trained(tokenizer, CORPUS, pre_tokenizers.ByteLevel.alphabet())
    tokenizer.add_special_tokens(list(specials))
    return tokenizer


def _trained(tokenizer: Tokenizer, texts: Sequence[str], alphabet: Sequence[str] = ()) -> dict[str, Any]:
    """Learn merges from the texts; returns the BPE model as it stands in a tokenizer.json."""
    tokenizer.train_from_iterator(
        texts, BpeTrainer(vocab_size=len(alphabet) + 80, initial_alphabet=list(alphabet), show_progress=False)
    )
    return json.loads(tokenizer.to_str())["model"]


def _bos_in_front(tokenizer: Tokenizer, bos: str) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))])


QUESTIONS = ["Write.", "Please write down what you hear, word by word."]
TEXTS = ["a red dog", "the rain falls while a bell rings four times"]
SECONDS = [1.3, 2.9]


def samples_of(model: SALMONN, rows: list[int]) -> dict:
    """Clips of different length with prompts and texts of different length."""
    generators = [torch.Generator().manual_seed(i) for i in rows]
    wavs = [0.1 * torch.randn(int(16_000 * SECONDS[i]), generator=g) for i, g in zip(rows, generators, strict=True)]
    raw_wav = pad_sequence(wavs, batch_first=True)
    lengths = torch.tensor([len(wav) for wav in wavs])
    template = model.config.prompt_template
    return {
        "raw_wav": raw_wav,
        "padding_mask": torch.arange(raw_wav.shape[1])[None] >= lengths[:, None],
        "text": [TEXTS[i] for i in rows],
        "task": ["asr"] * len(rows),
        "prompts": [template.replace("{}", f"<Speech><SpeechHere></Speech> {QUESTIONS[i]}") for i in rows],
    }
