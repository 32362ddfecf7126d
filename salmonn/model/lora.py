"""LoRA on the frozen LLM, by peft (paper, section 3.1)."""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from omegaconf import DictConfig
from torch import nn
from transformers import PreTrainedModel

from salmonn.common.device import is_autocast
from salmonn.common.errors import UserError
from salmonn.common.imports import compiling_later

if TYPE_CHECKING:  # it takes its time: imported where it is used
    from peft import LoraConfig, PeftModel
    from peft.tuners.lora import LoraLayer


def lora_config(config: DictConfig) -> "LoraConfig":
    """The adapters of a `model` section as peft describes them."""
    with compiling_later():
        from peft import LoraConfig, TaskType

    return LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=list(config.lora_target_modules),
    )


def add_lora(llm: PreTrainedModel, config: DictConfig) -> "PeftModel":
    """Put LoRA adapters (float32, trainable) on the target modules (paper: q_proj and v_proj, rank 8, alpha 32)."""
    with compiling_later():
        from peft import get_peft_model

    _require_targets(llm, config.lora_target_modules)
    try:
        with warnings.catch_warnings():  # peft asks by the old name, which is its own business
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            return get_peft_model(llm, lora_config(config))
    except ValueError as error:
        raise UserError(f"model.lora_target_modules = {list(config.lora_target_modules)}: {error}") from error


def _require_targets(llm: nn.Module, targets: Sequence[str]) -> None:
    """Raise UserError for a target that is no name of a matrix: peft is content when one of the targets is."""
    named = [(f".{name}", getattr(module, "weight", None)) for name, module in llm.named_modules()]
    matrices = [name for name, weight in named if isinstance(weight, torch.Tensor) and weight.ndim == 2]
    if unknown := [target for target in targets if not any(name.endswith(f".{target}") for name in matrices)]:
        there = sorted({name.rpartition(".")[2] for name in matrices})
        raise UserError(
            f"model.lora_target_modules = {list(targets)}: the LLM has no {', no '.join(unknown)}; "
            f"it has {', '.join(there)}"
        )


def lora_layers(llm: nn.Module) -> "list[LoraLayer]":
    """The modules that carry an adapter; empty without LoRA."""
    return [module for module in llm.modules() if hasattr(module, "lora_A")]


def set_adapter_precision(layers: "Sequence[LoraLayer]") -> None:
    """Under autocast let adapters take their input as it is: it makes the same half-precision product of both.

    Else peft makes a float32 copy first, which dropout doubles and autocast rounds again.
    """
    for layer in layers:
        layer.cast_input_dtype_enabled = not is_autocast(layer.lora_A["default"].weight.device)
