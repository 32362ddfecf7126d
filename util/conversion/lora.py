"""The LoRA adapters alone: in PEFT's own format, or merged into their language model."""

from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from safetensors import torch as safetensors
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from salmonn.common.errors import UserError
from salmonn.config.loading import model_config
from salmonn.model import checkpoint
from salmonn.model.llm import quantised_by
from salmonn.model.lora import add_lora, lora_config
from salmonn.model.meta_model import meta_llm
from salmonn.model.model_folders import loading, require_all_weights
from salmonn.model.tokenizer import load_tokenizer
from util.conversion.fit import LLM_PREFIX

ADAPTER_WEIGHTS = "adapter_model.safetensors"


def at_scaling(section: DictConfig, scaling: float | None) -> DictConfig:
    """The section with `lora_alpha` such that the adapters weigh `scaling`, or what the section says.

    Raises UserError for a scaling that cannot be, and for a model without LoRA.
    """
    if not section.lora:
        raise UserError("this model has no LoRA (model.lora = False): there is nothing to export")
    if scaling is None:
        scaling = section.lora_scaling
    if scaling is None:
        return section
    section = model_config(OmegaConf.merge(section, {"lora_scaling": scaling}))
    return OmegaConf.merge(section, {"lora_alpha": scaling * section.lora_rank})


def write_adapter(folder: Path, parameters: dict[str, Tensor], section: DictConfig) -> int:
    """Write adapter_config.json and adapter_model.safetensors; returns the number of tensors."""
    adapter = {
        name.removeprefix(LLM_PREFIX).replace(".default.", "."): value.clone(memory_format=torch.contiguous_format)
        for name, value in checkpoint.to_take(parameters).items()
        if name.startswith(LLM_PREFIX)
    }
    config = lora_config(section)
    config.base_model_name_or_path, config.inference_mode = section.llama_path, True
    config.target_modules = sorted(section.lora_target_modules)  # as a set, in another order each time
    config.save_pretrained(str(folder))
    (folder / ADAPTER_WEIGHTS).write_bytes(safetensors.save(adapter, metadata={"format": "pt"}))
    return len(adapter)


def write_merged(
    folder: Path, parameters: dict[str, Tensor], section: DictConfig, path: Path, dtype: str | None
) -> None:
    """Write the LLM with the adapters added to its weights, and its tokenizer, as a Hugging Face folder.

    `dtype`: float32, float16, bfloat16, or None for the precision in which the LLM is stored. Raises UserError
    when the LLM is absent, quantised, or of another size; that is known before its weights are read.
    """
    section = OmegaConf.merge(section, {"llm_quantization": "none", "low_resource": False})
    adapter = {name: value for name, value in parameters.items() if name.startswith(LLM_PREFIX)}
    tokenizer = load_tokenizer(section)
    meta_model = meta_llm(section)
    if method := quantised_by(meta_model.config):
        raise UserError(
            f"model.llama_path = {section.llama_path} is quantised ({method}): adapters merge into plain weights"
        )
    with torch.device("meta"):
        checkpoint.require_fit(_as_model(meta_model, section), adapter, path)
    with loading("model.llama_path", section.llama_path):
        llm, info = AutoModelForCausalLM.from_pretrained(
            section.llama_path,
            dtype=dtype or "auto",
            token=section.token or None,
            output_loading_info=True,
            trust_remote_code=False,
        )
        require_all_weights(info, section.llama_path)
    model = _as_model(llm.requires_grad_(False), section)
    checkpoint.take_parameters(model, adapter, path)
    model["llama_model"].merge_and_unload(safe_merge=True).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _as_model(llm: nn.Module, section: DictConfig) -> nn.ModuleDict:
    """The LLM with adapters under the name that it has in SALMONN."""
    return nn.ModuleDict({"llama_model": add_lora(llm, section)})
