"""A LLaMA-like language model in a GGUF file as a Hugging Face folder."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

NORM_EPS = 1e-5  # SmolLM2's; the GGUF holds it in float32, as 9.9999997e-06


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
    config = type(read.config)(**{**settings, "rms_norm_eps": NORM_EPS})
    model = type(read)(config)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
