"""What a run needs and does not find, told before anything big is loaded. No torch here."""

import re
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from salmonn.errors import UserError

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")  # org/name, unless a folder `org` lies here

_ORIGIN = {
    "model.llama_path": "Hugging Face lmsys/vicuna-13b-v1.1 (7B: lmsys/vicuna-7b-v1.5)",
    "model.whisper_path": "Hugging Face openai/whisper-large-v2",
    "model.beats_path": "BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt, see github.com/microsoft/unilm, beats/",
    "model.ckpt": "the checkpoint of the stage before; or salmonn_v1.pth from Hugging Face tsinghua-ee/SALMONN",
    "datasets.train_ann_path": "salmonn_stageN_data.json, linked from github.com/bytedance/SALMONN, under this name",
    "other annotations": "none were released: util/anns_inspector.py --split makes one, or write it (ann/README.md)",
    "datasets.prefix": "the folder with your corpora (LibriSpeech/, AudioCaps/, ...); see ann/README.md",
}


def require_files(config: DictConfig, annotations: Sequence[str] = ("train_ann_path", "valid_ann_path")) -> None:
    """Check every path that a run will open; raises one UserError that lists all that is missing.

    `annotations`: keys of the datasets section that the command reads.
    """
    model, datasets = config.model, config.datasets
    missing: list[str] = []
    for key in ("llama_path", "whisper_path"):
        _want(missing, f"model.{key}", model[key], required=True, hub=True)
    for key in ("beats_path", "ckpt", "speech_llama_proj_model", "prompt_path", "test_prompt_path"):
        _want(missing, f"model.{key}", model[key])
    for key in annotations:
        _want(missing, f"datasets.{key}", datasets[key], required=True)
    for key in ("prefix", "quarantine"):
        _want(missing, f"datasets.{key}", datasets[key])
    if missing:
        raise UserError(
            "\n  ".join(["this run needs files that are not here:", *missing])
            + "\nSet the paths in the config file or with --options KEY=PATH."
            + "\nTo see everything work without downloads, run the miniature world: make quickstart"
        )


def _want(missing: list[str], key: str, path: str, required: bool = False, hub: bool = False) -> None:
    if not path and not required:
        return
    if path and Path(path).exists():
        return
    if hub and _HUB_NAME.fullmatch(path) and not Path(path).parent.exists():
        return  # a hub name: transformers finds it in its cache or downloads it
    where = _ORIGIN.get(key) or (_ORIGIN["other annotations"] if "ann_path" in key else "")
    shown = f"{path} does not exist" if path else "is not set"
    missing.append(f"{key}: {shown}" + (f"\n      get it: {where}" if where else ""))
