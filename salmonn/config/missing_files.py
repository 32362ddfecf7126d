"""Which of the files that a config names are not there, and where to get them."""

import re
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from salmonn.common.spelling import did_you_mean
from salmonn.config.installed import here_or_installed

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")  # org/name, unless a folder `org` lies here

_REPOSITORY = Path(__file__).parents[2]
_WORLDS: dict[tuple[str, ...], str] = {  # how paths of their configurations begin
    ("output", "mini"): "the miniature world: `make quickstart`",
    ("output", "small"): "`make small`",
}
_MINI_MODEL = Path("output/mini/stage3/checkpoint_best.pth")  # the last that `make quickstart` makes

_ORIGIN = {
    "model.llama_path": "Hugging Face lmsys/vicuna-13b-v1.1 (7B: lmsys/vicuna-7b-v1.5)",
    "model.whisper_path": "Hugging Face openai/whisper-large-v2",
    "model.beats_path": "BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt, see github.com/microsoft/unilm, beats/",
    "model.ckpt": "the checkpoint of the stage before; or salmonn_v1.pth from Hugging Face tsinghua-ee/SALMONN",
    "model.test_prompt_path": "prompts/test_prompt.json of github.com/bytedance/SALMONN; ours: configs/prompts/",
    "datasets.prefix": "the folder with your corpora (LibriSpeech/, AudioCaps/, ...), see ann/README.md; "
    "of recordings of your own the one that util/make_annotations.py printed",
}
_RELEASED = "salmonn_stageN_data.json, linked from github.com/bytedance/SALMONN, under this name"
_NOT_RELEASED = "none was released; util/anns_inspector.py --split makes one, or write it (ann/README.md)"
_OF_A_STAGE = re.compile(r"stage\d")  # in the names that the README gives the released files
_PART = re.compile(r"(.+)_(train|valid|test)")  # of a file that --split has cut
_SHARES = {False: "0.9 0.1 0", True: "0.8 0.1 0.1"}  # for --split, by whether there is a part to test


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
    if path and not Path(path).is_absolute() and (_REPOSITORY / path).exists():
        return f"{key}: {path} is not in {Path.cwd()}, but in {_REPOSITORY}: run the command there"
    fits = Path.is_dir if key == "datasets.prefix" else Path.is_file if key.startswith("datasets.") else Path.exists
    where = _origin(key, Path(path))
    shown = f"{path} does not exist{did_you_mean(path, fits)}" if path else "is not set"
    return f"{key}: {shown}" + (f"\n    get it: {where}" if where else "")


def _origin(key: str, path: Path) -> str:
    """Where a file is to be had, by its key and name; "" where nothing is known."""
    if maker := _WORLDS.get(path.parts[:2]):
        return f"{maker}, in {_REPOSITORY}, makes it"
    if "ann_path" not in key:
        return _ORIGIN.get(key, "")
    part, is_released = _PART.fullmatch(path.stem), bool(_OF_A_STAGE.search(path.name))
    shares = _SHARES[bool(part and part[2] == "test")]
    for whole in (path.with_stem(part[1]), path.with_stem(f"{part[1]}_train")) if part else ():
        if whole != path and whole.is_file():
            cut = f"--split {'0.99 0.005 0.005' if is_released else shares}"
            made = f"{whole.stem}_{path.stem.rpartition('_')[2]}.json"
            return f"python util/anns_inspector.py --prefix PREFIX --ann {whole} {cut} makes {made}"
    if is_released or not path.name:
        return _RELEASED if key == "datasets.train_ann_path" else _NOT_RELEASED
    if not part and key not in ("datasets.train_ann_path", "datasets.valid_ann_path"):
        return _NOT_RELEASED
    list_of = path.with_stem(part[1]) if part else path
    return (
        f"python util/make_annotations.py RECORDINGS --to {list_of} --split {shares}, of recordings of your own "
        "(docs/own-data.md); the released files: ann/README.md"
    )


def has_mini_model() -> bool:
    """Whether the model of `make quickstart` is here."""
    return _MINI_MODEL.exists()


def annotation_keys(config: DictConfig) -> tuple[str, ...]:
    """Keys of the datasets section that a run reads."""
    return ("test_ann_path",) if config.run.evaluate else ("train_ann_path", "valid_ann_path")
