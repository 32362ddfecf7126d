"""A LLaMA-like language model in a GGUF file as a Hugging Face folder."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def convert_llm(file: Path, target: Path) -> None:
    """Write `target` with the model in float32 and its tokenizer; quantised weights keep what they have lost."""
    read = AutoModelForCausalLM.from_pretrained(
        str(file.parent), gguf_file=file.name, dtype=torch.float32, trust_remote_code=False
    )
    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name, trust_remote_code=False)
    settings = read.config.to_dict()
    # transformers refuses to save what came from a GGUF; the same model built from the settings is none
    for key in ("quantization_config", "_name_or_path"):
        settings.pop(key, None)
    # a GGUF holds it in float32: 1e-5 as 9.9999997e-06
    settings["rms_norm_eps"] = float(f"{settings['rms_norm_eps']:.6g}")
    model = type(read)(type(read.config)(**settings))
    model.load_state_dict(read.state_dict())
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
