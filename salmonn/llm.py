"""The language model: any causal LM of transformers, frozen, optionally quantised, with LoRA by peft."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from omegaconf import DictConfig
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from salmonn.errors import UserError


@contextmanager
def loading(key: str, path: str) -> Iterator[None]:
    """Turn the library's failure to load a folder or hub name into a UserError that names the key."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise UserError(f"{key} = {path} cannot be loaded (absent, damaged or of another kind): {error}") from error


def require_all_weights(info: dict, path: str, unused: str = "") -> None:
    """Raise ValueError when a loaded folder lacked weights, which the library then leaves random."""
    missing = sorted(key for key in info["missing_keys"] if not (unused and key.startswith(unused)))
    missing += sorted(str(key) for key in info.get("mismatched_keys", ()))
    if missing:
        raise ValueError(f"{path} lacks {len(missing)} weights or has them in another shape, e.g. {missing[0]}")


def load_tokenizer(config: DictConfig) -> PreTrainedTokenizerBase:
    """Load the LLM's tokenizer. Raises UserError unless `end_sym` is one of its tokens."""
    with loading("model.llama_path", config.llama_path):
        tokenizer = AutoTokenizer.from_pretrained(config.llama_path, token=config.token or None)
    end_id = tokenizer.convert_tokens_to_ids(config.end_sym)
    if end_id is None or end_id == tokenizer.unk_token_id:
        raise UserError(
            f"model.end_sym = {config.end_sym!r} is not a token of {config.llama_path} "
            f"(its own end symbol is {tokenizer.eos_token!r})"
        )
    return tokenizer


def load_llm(config: DictConfig, device: torch.device) -> PreTrainedModel:
    """Load the LLM frozen, in the precision that `llm_dtype` and `llm_quantization` say."""
    quantization = "8bit" if config.low_resource else config.llm_quantization
    kwargs = {}
    if quantization != "none":
        kwargs = {"quantization_config": _quantization_config(quantization, config, device), "device_map": {"": device}}
    with loading("model.llama_path", config.llama_path):
        llm, info = AutoModelForCausalLM.from_pretrained(
            config.llama_path,
            dtype=llm_dtype(config, device),
            token=config.token or None,
            output_loading_info=True,
            **kwargs,
        )
        require_all_weights(info, config.llama_path)
    llm.config.use_cache = False  # generation turns the cache on for itself
    llm.generation_config = GenerationConfig()  # decoding follows our settings, not the folder's
    return llm.requires_grad_(False)


def llm_dtype(config: DictConfig, device: torch.device) -> torch.dtype:
    """Precision of the frozen weights; `auto` is float16 on a GPU, as published, and float32 on the CPU."""
    if config.llm_dtype != "auto":
        return getattr(torch, config.llm_dtype)
    return torch.float16 if device.type == "cuda" else torch.float32


def _quantization_config(quantization: str, config: DictConfig, device: torch.device):
    from transformers import BitsAndBytesConfig

    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=llm_dtype(config, device)
    )


def add_lora(llm: PreTrainedModel, config: DictConfig) -> nn.Module:
    """Put LoRA adapters (float32, trainable) on the target modules (paper: q_proj and v_proj, rank 8, alpha 32)."""
    from peft import LoraConfig, TaskType, get_peft_model

    try:
        return get_peft_model(
            llm,
            LoraConfig(
                task_type=TaskType.CAUSAL_LM,
                r=config.lora_rank,
                lora_alpha=config.lora_alpha,
                lora_dropout=config.lora_dropout,
                target_modules=list(config.lora_target_modules),
            ),
        )
    except ValueError as error:
        raise UserError(f"model.lora_target_modules = {list(config.lora_target_modules)}: {error}") from error


def lora_layers(llm: nn.Module) -> list[nn.Module]:
    """The modules that carry an adapter; empty without LoRA."""
    return [module for module in llm.modules() if hasattr(module, "lora_A")]


def enable_recomputation(llm: nn.Module, mode: bool) -> None:
    """Let the blocks recompute their activations in the backward pass (gradient checkpointing), or not.

    The library asks a block's own training flag; the modules inside stay in eval mode, without dropout.
    """
    for module in llm.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = mode
