"""The language model: any causal LM of transformers, frozen, optionally quantised."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from salmonn.common.device import is_autocast
from salmonn.common.errors import UserError
from salmonn.config.loading import llm_quantization
from salmonn.model.int8 import quantise_llm
from salmonn.model.model_folders import (
    loading,
    require_all_weights,
    require_finite_weights,
    require_model_folder,
    require_weight_files,
)

if TYPE_CHECKING:  # these take their time: imported where they are used
    from transformers import BitsAndBytesConfig

# Checkpoints that are already quantised and run by gptqmodel: the packages that transformers needs, by their method.
_GPTQMODEL = {"gptq": ("optimum", "gptqmodel"), "awq": ("gptqmodel",)}

# Families whose attention differs in nothing but its sizes.
_PLAIN_DECODERS = ("llama", "mistral", "qwen2", "qwen3")
_IN_LAYERS = r".*\.\d+\."  # names of their weights
# Tokens of a row: docs/performance_history.md#eager-attention-of-short-rows has the figures.
_SHORT = 128
CAUSAL_SDPA = "causal_sdpa"
ALL_ATTENTION_FUNCTIONS.register(CAUSAL_SDPA, ALL_ATTENTION_FUNCTIONS["sdpa"])

# peft loads bitsandbytes for any model, which then misses a faster 4-bit kernel for CPUs.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(lambda record: "gemm_4bit_forward" not in record.msg)


def load_llm(config: DictConfig, device: torch.device) -> PreTrainedModel:
    """Load the LLM frozen, in the precision that `llm_dtype` and `llm_quantization` (or its own files) say."""
    stored = stored_config(config)
    require_loadable(stored, config)
    kwargs, how = {}, llm_quantization(config)
    if how in ("8bit", "nf4"):
        kwargs = {"quantization_config": quantization_config(config, device), "device_map": {"": device}}
    elif method := quantised_by(stored):
        kwargs = {"device_map": {"": device}}
        if method in _GPTQMODEL:  # its fastest kernels are for answering only
            stored.quantization_config["backend"] = "auto_trainable"
    llm = read_llm(config, stored, device, **kwargs)
    require_finite_weights("llama_path", config)
    if how == "int8":
        quantise_llm(llm, device)
    llm.config.use_cache = False  # generation turns the cache on for itself
    llm.generation_config = GenerationConfig()  # decoding follows our settings, not the folder's
    return llm


def load_embeddings(config: DictConfig, device: torch.device) -> PreTrainedModel:
    """The LLM without its layers: of its files only embeddings, last norm and head are read, and never quantised."""
    stored = stored_config(config)
    stored.num_hidden_layers = 0
    if quantised_by(stored):  # layers alone are
        del stored.quantization_config
    if getattr(stored, "layer_types", None):
        stored.layer_types = []
    llm = read_llm(config, stored, device)
    require_finite_weights("llama_path", config, unused=_IN_LAYERS)
    return llm


def stored_config(config: DictConfig) -> PretrainedConfig:
    """What the LLM's own config.json says. Raises UserError where there is no LLM in the library's layout."""
    require_model_folder("llama_path", config)
    with loading("model.llama_path", config.llama_path):
        return AutoConfig.from_pretrained(config.llama_path, token=config.token or None, trust_remote_code=False)


def read_llm(config: DictConfig, stored: PretrainedConfig, device: torch.device, **kwargs: Any) -> PreTrainedModel:
    """The frozen weights of the files that belong to a configuration; `kwargs`: for the library."""
    require_weight_files("llama_path", config)
    with loading("model.llama_path", config.llama_path):
        llm, info = AutoModelForCausalLM.from_pretrained(
            config.llama_path,
            config=stored,
            dtype=llm_dtype(config, device),
            attn_implementation=llm_attention(config),
            token=config.token or None,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told with the missing ones
            trust_remote_code=False,
            **kwargs,
        )
        require_all_weights(info, config.llama_path, _IN_LAYERS if stored.num_hidden_layers == 0 else None)
    return llm.requires_grad_(False)


def quantised_by(stored: PretrainedConfig) -> str:
    """The method by which a checkpoint's weights are quantised already, e.g. gptq; "" for plain weights."""
    how = getattr(stored, "quantization_config", None)
    return how.get("quant_method", "bitsandbytes") if how else ""


def require_loadable(stored: PretrainedConfig, config: DictConfig) -> None:
    """Raise UserError for an LLM whose files do not go with the other keys of its section, or lack their packages."""
    family = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(stored), None)
    if config.llm_attention == "sdpa" and family is not None and not family._supports_sdpa:
        raise UserError(
            f"model.llm_attention = sdpa, but {family.__name__} of model.llama_path = {config.llama_path} attends in "
            "another way: set model.llm_attention=auto"
        )
    method = quantised_by(stored)
    if method and llm_quantization(config) != "none":
        key = "low_resource = True" if config.low_resource else f"llm_quantization = {config.llm_quantization}"
        raise UserError(
            f"model.{key}, but model.llama_path = {config.llama_path} is quantised already "
            f"(quant_method {method} in its config.json): set model.llm_quantization=none model.low_resource=False"
        )
    if missing := [package for package in _GPTQMODEL.get(method, ()) if find_spec(package) is None]:
        raise UserError(
            f"model.llama_path = {config.llama_path} is quantised by {method}, which needs: "
            f"pip install {' '.join(missing)}"
        )


def llm_dtype(config: DictConfig, device: torch.device) -> torch.dtype:
    """Precision of the frozen weights; `auto` is float16 on a GPU, as published, and float32 on the CPU."""
    if config.llm_dtype != "auto":
        return getattr(torch, config.llm_dtype)
    return torch.float16 if device.type == "cuda" else torch.float32


def llm_attention(config: DictConfig) -> str | None:
    """The library's name of how the LLM attends; None: its own choice for the family."""
    return None if config.llm_attention == "auto" else config.llm_attention


def quantization_config(config: DictConfig, device: torch.device) -> "BitsAndBytesConfig":
    """How bitsandbytes is to quantise the weights as they are loaded."""
    from transformers import BitsAndBytesConfig

    if llm_quantization(config) == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=llm_dtype(config, device)
    )


def hidden_at(
    llm: PreTrainedModel, inputs: Tensor, rows: Tensor, columns: Tensor, may_be_eager: bool = False
) -> Tensor:
    """Hidden states [N, H] before the vocabulary, at N positions of the input embeddings [B, L, H].

    `may_be_eager`: attend by plain matrices where that is faster than the library's SDPA.
    """
    with _attending(llm, "eager" if may_be_eager and _eager_is_faster(inputs) else CAUSAL_SDPA):
        return llm.get_decoder()(inputs_embeds=inputs, use_cache=False).last_hidden_state[rows, columns]


def _eager_is_faster(inputs: Tensor) -> bool:
    """Whether rows [B, L, H] are short ones in bfloat16 on a CPU, whose SDPA takes its time for the backward pass."""
    device = inputs.device
    dtype = torch.get_autocast_dtype(device.type) if is_autocast(device) else inputs.dtype
    is_short = inputs.shape[1] <= _SHORT and torch.is_grad_enabled()
    return is_short and device.type == "cpu" and dtype == torch.bfloat16


@contextmanager
def _attending(llm: PreTrainedModel, how: str) -> Iterator[None]:
    """Let an LLM whose attention is SDPA attend in another way, causal, on whole rows.

    CAUSAL_SDPA spares the library's look at whether positions begin anew within a row, for which the host waits for
    the device: attention by a name for which the library has no masks is taken as it is.
    """
    config = llm.config
    if config._attn_implementation != "sdpa" or not _attends_to_all_before(config):
        yield
        return
    config._attn_implementation = how
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"


def _attends_to_all_before(config: PretrainedConfig) -> bool:
    """Whether every layer attends to all positions up to its own: a window that slides would be a mask."""
    slides = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    return config.model_type in _PLAIN_DECODERS and not slides
