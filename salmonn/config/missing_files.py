"""Which of the files that a config names are not there, and where to get them."""

import re
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from salmonn.config.installed import here_or_installed

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")  # org/name, unless a folder `org` lies here

_REPOSITORY = Path(__file__).parents[2]
_MINI_WORLD = ("output", "mini")  # how paths of its configurations begin

_ORIGIN = {
    "model.llama_path": "Hugging Face lmsys/vicuna-13b-v1.1 (7B: lmsys/vicuna-7b-v1.5)",
    "model.whisper_path": "Hugging Face openai/whisper-large-v2",
    "model.beats_path": "BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt, see github.com/microsoft/unilm, beats/",
    "model.ckpt": "the checkpoint of the stage before; or salmonn_v1.pth from Hugging Face tsinghua-ee/SALMONN",
    "model.test_prompt_path": "prompts/test_prompt.json of github.com/bytedance/SALMONN; ours: configs/prompts/",
    "datasets.train_ann_path": "salmonn_stageN_data.json, linked from github.com/bytedance/SALMONN, under this name",
    "other annotations": "none was released; util/anns_inspector.py --split makes one, or write it (ann/README.md)",
    "datasets.prefix": "the folder with your corpora (LibriSpeech/, AudioCaps/, ...); see ann/README.md",
}


def missing_files(config: DictConfig, annotations: Sequence[str], unread: Sequence[str] = ()) -> list[str]:
    """Every path that a run will open and that is not there, with where to get it."""
    datasets = config.datasets
    wanted = [(f"datasets.{key}", datasets[key], True) for key in annotations]
    wanted += [(f"datasets.{key}", datasets[key], False) for key in ("prefix", "quarantine")]
    return missing_model_files(config.model, unread) + _missing(wanted)


def missing_model_files(model: DictConfig, unread: Sequence[str] = ()) -> list[str]:
    """Every path that loading a `model` section will open and that is not there, with where to get it."""
    wanted = [(f"model.{key}", model[key], True) for key in ("llama_path", "whisper_path")]
    optional = ("beats_path", "ckpt", "speech_llama_proj_model", "prompt_path", "test_prompt_path")
    wanted += [(f"model.{key}", model[key], False) for key in optional if model[key] not in unread]
    return _missing(wanted)


def _missing(wanted: Sequence[tuple[str, str, bool]]) -> list[str]:
    return [_absent(key, path) for key, path, needed in wanted if (path or needed) and not _is_there(key, path)]


def _is_there(key: str, path: str) -> bool:
    if not path or here_or_installed(path).exists():
        return bool(path)
    hub = key in ("model.llama_path", "model.whisper_path")  # transformers finds a name in its cache or downloads it
    return hub and bool(_HUB_NAME.fullmatch(path)) and not Path(path).parent.exists()


def _absent(key: str, path: str) -> str:
    where = _ORIGIN.get(key) or (_ORIGIN["other annotations"] if "ann_path" in key else "")
    if path and not Path(path).is_absolute() and (_REPOSITORY / path).exists():
        return f"{key}: {path} is not in {Path.cwd()}, but in {_REPOSITORY}: run the command there"
    if Path(path).parts[:2] == _MINI_WORLD:
        where = f"`make quickstart`, in {_REPOSITORY}, makes it: it is of the miniature world"
    shown = f"{path} does not exist" if path else "is not set"
    return f"{key}: {shown}" + (f"\n    get it: {where}" if where else "")


def annotation_keys(config: DictConfig) -> tuple[str, ...]:
    """Keys of the datasets section that a run reads."""
    return ("test_ann_path",) if config.run.evaluate else ("train_ann_path", "valid_ann_path")
