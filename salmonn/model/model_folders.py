"""What `llama_path` and `whisper_path` name, a folder or a name on the hub: told before the library guesses.

The library makes a tokenizer of nothing and a model of another kind's settings, and asks a hub that it cannot reach
for minutes.
"""

import json
import pickle
import re
import shlex
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import get_session
from omegaconf import DictConfig
from safetensors import safe_open
from torch import Tensor

from salmonn.common.errors import UserError, examples, reason
from salmonn.common.files import is_lfs_pointer
from salmonn.model.checkpoint import is_finite

HUB_SECONDS = 10  # that the hub has for its first answer
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_LAYOUT = {
    "llama_path": "config.json, model.safetensors (or shards with model.safetensors.index.json), tokenizer_config.json "
    "and tokenizer.json or tokenizer.model",
    "whisper_path": "config.json, model.safetensors and preprocessor_config.json",
}
# What else models are stored as, by a file of theirs where a folder lacks the weights or the configuration.
_OTHER_KINDS = {
    "*.gguf": "a GGUF model, as llama.cpp runs it",
    "model.bin": "a CTranslate2 model, as faster-whisper runs it; the model that it was made from is on the hub",
    "consolidated.*": "a LLaMA in the files of Meta; the same model is on the hub in the other layout",
    "adapter_config.json": "a LoRA adapter, which holds no model",
    "*.pt": "a file of torch, as OpenAI's own Whisper; the same model is on the hub in the other layout",
    "*.onnx": "an ONNX model; the model that it was made from is on the hub",
    "snapshots/*/config.json": "a folder of the hub's cache; the model is in a folder under its snapshots/",
}
# Of these what writes the other layout, by the key that asks for it, and whether it reads the file or its folder.
_CONVERTERS = {("llama_path", "*.gguf"): ("gguf", True), ("whisper_path", "model.bin"): ("ctranslate2", False)}


@contextmanager
def loading(key: str, path: str) -> Iterator[None]:
    """Turn the library's failure to load a folder or hub name into a UserError that names the key."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # damage can make the library raise anything
        raise UserError(f"{key} = {path} cannot be loaded{_why(error)}") from error


def _why(error: Exception) -> str:
    """In words of ours where the library advises to load it unsafely."""
    if "trust_remote_code" in str(error):
        return (
            ": it asks to run code of its own (auto_map in its .json files), which is never done. "
            "Take a model of a kind that transformers itself knows"
        )
    if isinstance(error, pickle.UnpicklingError):
        return (
            ": its weights are a pickle (pytorch_model.bin) that is damaged, or holds more than tensors, which is "
            "never loaded. Take the model with model.safetensors"
        )
    return f" (absent, damaged or of another kind): {error}"


def require_all_weights(info: dict, path: str, unused: str | None = None) -> None:
    """Raise ValueError when the weights of a loaded folder are not those of its configuration.

    The library leaves random what is missing and leaves out what is too much. `unused`: a pattern for what the names
    of weights begin with that do not matter.
    """

    def first(names: Iterable[object]) -> str:
        """How many of the names matter, and the first of them; "" where none does."""
        counted = sorted(name for name in map(str, names) if unused is None or not re.match(unused, name))
        return f"{len(counted)} weights, e.g. {counted[0]}" if counted else ""

    if missing := first(info["missing_keys"]):
        raise ValueError(f"{path} lacks {missing}")
    shapes = (f"{name}: {list(stored)}, not {list(said)}" for name, stored, said in info.get("mismatched_keys", ()))
    if misshapen := first(shapes):
        raise ValueError(f"{path} holds other shapes than its config.json says: {misshapen}")
    if left_over := first(info["unexpected_keys"]):
        raise ValueError(f"{path} holds more than its config.json says: {left_over}. The two are of different models")


def require_model_folder(key: str, model: DictConfig) -> None:
    """Raise UserError where `llama_path` or `whisper_path` of a `model` section is not in the layout of Hugging Face.

    A name on the hub is asked for once.
    """
    path = Path(model[key])
    if path.is_file():
        raise _wrong_kind(key, path, path, next((p for p in _OTHER_KINDS if path.match(p)), ""))
    if not path.is_dir():
        if problem := _hub_problem(str(path)):
            raise UserError(f"model.{key} = {path} {problem}")
        return
    found = [*_WEIGHTS, *(f"{name}.index.json" for name in _WEIGHTS)]
    if not (path / "config.json").is_file() or not any((path / name).exists() for name in found):
        for pattern in _OTHER_KINDS:
            if files := sorted(path.glob(pattern)):
                raise _wrong_kind(key, path, files[0], pattern)
    if not (path / "config.json").is_file():
        raise UserError(f"model.{key} = {path} has no config.json, so it is no model's folder. {_needed(key)}")
    pointers = sorted(file.name for file in path.iterdir() if is_lfs_pointer(file))
    if pointers:
        raise UserError(
            f"model.{key} = {path}: {examples(pointers)} hold no content, but pointers of Git LFS: "
            f"run `git lfs pull` in that folder, or download the files"
        )
    _require_kind(key, path)
    needed = "preprocessor_config.json" if key == "whisper_path" else "tokenizer_config.json"
    if not (path / needed).is_file() and not (key == "whisper_path" and (path / "processor_config.json").is_file()):
        raise UserError(
            f"model.{key} = {path} lacks {needed}, without which the library guesses: "
            f"get it from where the other files are from"
        )


def _wrong_kind(key: str, path: Path, file: Path, pattern: str) -> UserError:
    """`file` is what the path names or holds, of the kind of this pattern; "" where that is not known."""
    kind, remedy = _OTHER_KINDS.get(pattern, "no folder"), ""
    if (key, pattern) in _CONVERTERS:
        command, reads_file = _CONVERTERS[key, pattern]
        source = shlex.quote(str(file if reads_file else file.parent))
        remedy = f"To make a folder TARGET of it, for model.{key}: python util/convert.py {command} {source} TARGET. "
    return UserError(f"model.{key} = {path} is {kind}. {remedy}{_needed(key)}")


def _needed(key: str) -> str:
    return f"Needed is the folder of the model in the layout of Hugging Face ({_LAYOUT[key]})"


@cache  # asked once for the parts that are loaded from one name
def _hub_problem(name: str) -> str:
    """Why a name can neither be asked for at the hub nor be found in its cache by itself; "" where it can."""
    try:
        cached = isinstance(try_to_load_from_cache(name, "config.json"), str)
    except HFValidationError:  # output/model/llama
        return "is no folder here, and no name that the hub could have"
    if constants.HF_HUB_OFFLINE and cached:
        return ""
    if constants.HF_HUB_OFFLINE:
        return (
            f"is no folder here and not in the hub's cache ({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE is set: "
            "give a folder, or load it once with a network"
        )
    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS)
    except Exception as error:  # the kinds are those of a library below the hub's
        remedy = (
            "It is in the hub's cache: set HF_HUB_OFFLINE=1 to use it from there"
            if cached
            else "Give a folder with the model; or load it once with a network, and set HF_HUB_OFFLINE=1 from then on"
        )
        return f"is no folder here, and the hub ({constants.ENDPOINT}) cannot be reached ({reason(error)}). {remedy}"
    return ""


def _require_kind(key: str, folder: Path) -> None:
    """Raise UserError where config.json is of a model that belongs to another key."""
    with loading(f"model.{key}", str(folder)):
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    if kind == "salmonn":
        raise UserError(
            f"model.{key} = {folder} is a SALMONN folder, which holds the trained parts alone. {_needed(key)}"
        )
    if (kind == "whisper") != (key == "whisper_path"):
        raise UserError(f'model.{key} = {folder} is a model of another kind ("{kind}" in its config.json)')


def require_weight_files(key: str, model: DictConfig) -> None:
    """Raise UserError where a folder lacks weight files, or a file is cut short, or config.json says other layers.

    Of the files only the beginnings are read. A name on the hub is left to the library.
    """
    folder = Path(model[key])
    if not folder.is_dir():
        return
    names: set[str] = set()
    for file in _weight_files(key, folder):
        if file.suffix == ".safetensors":
            with loading(f"model.{key}", str(file)), safe_open(file, "pt") as opened:
                names.update(opened.keys())
    with loading(f"model.{key}", str(folder)):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        said = config.get("encoder_layers" if key == "whisper_path" else "num_hidden_layers")
        if said is not None and not isinstance(said, int):
            raise ValueError(f"its config.json says that it has {said!r} layers")
    pattern = r"(model\.)?encoder\.layers\.(\d+)\." if key == "whisper_path" else r"(model\.)?layers\.(\d+)\."
    found = {int(match[2]) for match in map(re.compile(pattern).match, names) if match}
    beside = config.get("num_nextn_predict_layers") or 0  # of some families, which the library leaves out
    if said is not None and found and not said <= len(found) <= said + beside:
        raise UserError(
            f"model.{key} = {folder}: its weights have {len(found)} layers, its config.json says {said}: "
            "the two are of different models"
        )


def require_finite_weights(key: str, model: DictConfig, unused: str | None = None) -> None:
    """Raise UserError where a weight that was loaded is NaN or infinite: all that is computed with it would be, too.

    The files are looked at, since quantising hides it. `unused`: as for `require_all_weights`.
    """
    folder = Path(model[key])
    if not folder.is_dir():  # a name on the hub, whose files are in its cache now
        cached = try_to_load_from_cache(str(folder), "config.json")
        if not isinstance(cached, str):
            return
        folder = Path(cached).parent
    for file in _weight_files(key, folder):
        with loading(f"model.{key}", str(file)):
            broken = [
                name
                for name, value in _stored_weights(file)
                if not (unused and re.match(unused, name)) and value.ndim and not is_finite(value)
            ]  # masks of old files are numbers by themselves, and infinite
        if broken:
            raise UserError(
                f"model.{key} = {model[key]}: {file} holds NaN or infinite values in {len(broken)} tensors, e.g. "
                f"{broken[0]}: it is damaged, or what wrote it had failed; get it anew from where the model is from"
            )


def _stored_weights(file: Path) -> Iterator[tuple[str, Tensor]]:
    """Names and values of a file, each read when its turn comes."""
    if file.suffix == ".safetensors":
        with safe_open(file, "pt") as opened:
            yield from ((name, opened.get_tensor(name)) for name in opened.keys())  # noqa: SIM118
    else:
        yield from torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file)).items()


def _weight_files(key: str, folder: Path) -> list[Path]:
    """The files that hold a folder's weights. Raises UserError where one is missing, e.g. was not downloaded."""
    if whole := [folder / name for name in _WEIGHTS if (folder / name).exists()]:
        return whole[:1]
    shards: set[str] = set()
    for index in (folder / f"{name}.index.json" for name in _WEIGHTS):
        if index.exists() and not shards:
            with loading(f"model.{key}", str(index)):
                shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    missing = sorted(name for name in shards if not (folder / name).exists())
    if missing or not shards:
        raise UserError(f"model.{key} = {folder} lacks its weights: {', '.join(missing or _WEIGHTS[:1])}")
    return [folder / name for name in sorted(shards)]
