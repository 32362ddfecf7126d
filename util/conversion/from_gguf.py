"""A language model in a GGUF file, as llama.cpp runs it, as a Hugging Face folder."""

import re
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from salmonn.common.errors import UserError, reason
from salmonn.model.model_folders import require_all_weights
from util.jobs import require_installed

_MAGIC = b"GGUF"
_ONE_OF_SEVERAL = re.compile(r"-\d{5}-of-(?!00001)\d{5}\.gguf")


def convert_gguf(file: Path, target: Path, dtype: str = "float32") -> None:
    """Write `target` with the model and its tokenizer; quantised weights keep what they have lost.

    Raises UserError for a file that is no GGUF of a language model which transformers knows, and without the package.
    """
    _require_readable(file)
    try:
        read, info = AutoModelForCausalLM.from_pretrained(
            str(file.parent),
            gguf_file=file.name,
            dtype=getattr(torch, dtype),
            output_loading_info=True,
            trust_remote_code=False,
        )
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name, trust_remote_code=False)
        require_all_weights(info, str(file))
    except Exception as error:  # of any kind, as damage makes the readers raise anything
        raise UserError(
            f"{file} cannot be converted: {reason(error)}. Whole files of causal language models are, in the "
            "architectures and quantisations that transformers reads; any other model's own folder is on the hub"
        ) from error
    settings = read.config.to_dict()
    # transformers refuses to save what came from a GGUF; the same model built from the settings is none
    for key in ("quantization_config", "_name_or_path"):
        settings.pop(key, None)
    # a GGUF holds it in float32: 1e-5 as 9.9999997e-06
    for key in settings.keys() & {"rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon"}:
        settings[key] = float(f"{settings[key]:.6g}")
    with torch.device("meta"):
        model = type(read)(type(read.config)(**settings))
    model.load_state_dict(read.state_dict(), assign=True)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _require_readable(file: Path) -> None:
    if not file.is_file():
        raise UserError(f"{file}: no such file; name the .gguf file itself")
    with file.open("rb") as stream:
        if stream.read(len(_MAGIC)) != _MAGIC:
            raise UserError(f"{file} is no GGUF file")
    if _ONE_OF_SEVERAL.search(file.name):
        raise UserError(f"{file} is one part of several: make one file of them first, by llama-gguf-split --merge")
    require_installed(["gguf"])
