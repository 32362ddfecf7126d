"""Checkpoints: `.pth` files with the parameters that no frozen backbone's own file holds.

Names are those of the published checkpoints, so `salmonn_v1.pth` loads here and ours load there.
"""

import logging
import math
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from salmonn.common.errors import UserError, examples
from salmonn.common.files import is_lfs_pointer, replacing
from salmonn.common.screen import counted
from salmonn.common.spelling import did_you_mean

logger = logging.getLogger(__name__)

# What the published writer leaves in its files beside the parameters: accepted and ignored, nothing else is.
PUBLISHED_EXTRAS = re.compile(
    r"llama_model\..*\.rotary_emb\.inv_freq"
    r"|speech_Qformer\.bert\.embeddings\.position_ids"
    r"|beats\.encoder\.layers\.[1-9]\d*\.self_attn\.relative_attention_bias\.weight"
)
# What a model that spells (model/spelling.py) has beside the rest: others have no use for it.
CTC_PARAMETERS = ("ctc_blank", "ctc_log_scale")
# The LLMs of the released checkpoints by their width: name, positions. Their versions share all names and shapes.
_VICUNAS = {5120: ("vicuna-13b-v1.1", 2048), 4096: ("vicuna-7b-v1.5", 4096)}
_SOUND = "sound_proj."  # of the LLM's reader (model/sound_tokens.py)
_BACKBONES = ("speech_encoder.", "beats.", "llama_model.")


class _ChecksumError(Exception):
    """A part of an archive is not what was written; the message is its name."""


def own_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters a checkpoint must hold: the connector, LoRA, and encoders that are trained."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad or not name.startswith(_BACKBONES)
    }


def read(path: str | Path, kind: str = "SALMONN checkpoint", lazily: bool = False) -> dict[str, Any]:
    """Read a torch file holding a dictionary with "model", or a .safetensors file as that "model" alone.

    Raises UserError for anything else. `lazily`: values come from the disk when they are looked at;
    names and shapes cost nothing, and damage to values is not seen (of .safetensors never: it has no checksums).
    """
    if not Path(path).is_file():
        raise UserError(f"{kind} {path} {_why_no_file(Path(path))}")
    try:
        if Path(path).suffix == ".safetensors":
            return {"model": load_file(path)}
        is_archive = zipfile.is_zipfile(path)  # files of torch before 1.6 are not
        if is_archive and not lazily and (damaged := zipfile.ZipFile(path).testzip()):
            raise _ChecksumError(damaged)  # the library does not look at checksums
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=lazily and is_archive)
    except OSError as error:  # what the system says of the disk or the rights, not of the content
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # damage can make the library raise anything
        raise UserError(f"{path} is not a {kind}, or damaged: {_what_is_wrong(Path(path), error)}") from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise UserError(f'{path} is not a {kind}: it has no "model" dictionary')
    foreign = [str(name) for name, value in content["model"].items() if not _is_dense(value)]
    if foreign:
        raise UserError(f'{path} is not a {kind}: "model" holds something else than dense tensors, e.g. {foreign[0]}')
    return content


def _is_dense(value: Any) -> bool:
    """Whether it is a tensor with a number in each place: what others hold cannot even be looked at everywhere."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized


def _why_no_file(path: Path) -> str:
    if not path.is_dir():
        return f"does not exist{did_you_mean(path, Path.is_file)}"
    inside = sorted(str(file) for file in path.iterdir() if file.suffix in (".pth", ".pt", ".safetensors"))
    return f"is a folder: name the file, {examples(inside) if inside else 'of which none is in it'}"


def _what_is_wrong(path: Path, error: Exception) -> str:
    """Why a file cannot be read, in words of ours: the library advises to load it unsafely."""
    if not path.stat().st_size:
        return "it is empty"
    if is_lfs_pointer(path):
        return "it is a pointer of Git LFS, which has no content: run `git lfs pull` where it is from, or download it"
    if path.suffix == ".safetensors":
        return "it is no whole safetensors file"
    if isinstance(error, _ChecksumError):
        return f"the checksum of {error} in it does not fit"
    if isinstance(error, pickle.UnpicklingError) and zipfile.is_zipfile(path):
        return "it holds more than tensors and plain values, which is never loaded"
    return "it is no whole file of torch.save"


def load_parameters(model: nn.Module, path: str | Path, partial: bool = False) -> None:
    """Copy a checkpoint's parameters into the model, and log what they are; see `take_parameters`."""
    content = read(path)
    take_parameters(model, content["model"], path, partial)
    logger.info("starting from %s: %s", path, _described(content))


def _described(content: Mapping[str, Any]) -> str:
    """How many parameters a checkpoint holds and, as far as it tells, when which run wrote them."""
    parameters = content["model"].values()
    parts = [f"{sum(value.numel() for value in parameters):,} parameters in {counted(len(parameters), 'tensor')}"]
    parts += [f"{key} {content[key]}" for key in ("epoch", "step") if isinstance(content.get(key), int)]
    run = content["config"].get("run") if isinstance(content.get("config"), Mapping) else None
    name = run.get("exp_name") if isinstance(run, Mapping) else None
    return ", ".join(parts + ([f"of the run {name}"] if isinstance(name, str) and name else []))


def take_parameters(model: nn.Module, parameters: dict[str, Tensor], path: str | Path, partial: bool = False) -> None:
    """Copy the parameters that were read from `path` into the model, if they fit: see `require_fit`."""
    wanted = own_parameters(model)
    fitting = require_fit(model, parameters, path, partial)
    with torch.no_grad():
        for name, value in fitting.items():
            wanted[name].copy_(value)
    if is_of_stage_0(parameters) and any(map(_is_lora, wanted.keys() - fitting.keys())):
        logger.info("%s is of stage 0: the connector goes on from it, LoRA starts anew", path)


def require_fit(
    model: nn.Module, parameters: dict[str, Tensor], path: str | Path, partial: bool = False
) -> dict[str, Tensor]:
    """The parameters that the model takes from `path`; the model may be on the meta device.

    With `partial` there may be fewer; of stage 0 the connector is taken, and what reads it keeps its own.
    Raises UserError naming missing and unexpected keys and both shapes where they differ.
    """
    wanted = own_parameters(model)
    has_ctc = not wanted.keys().isdisjoint(CTC_PARAMETERS)
    found = to_take(parameters, has_ctc)
    if found and not found.keys() & wanted.keys():
        raise UserError(f"{path} is not a SALMONN checkpoint: {other_tensors(found)}")
    for encoder in ("speech_encoder.", "beats."):
        # written while this encoder was frozen: it keeps what its own file gave it
        if any(name.startswith(encoder) for name in wanted) and not any(name.startswith(encoder) for name in found):
            logger.info("%s holds no %s weights: they stay as loaded from their own file", path, encoder.rstrip("."))
            wanted = {name: p for name, p in wanted.items() if not name.startswith(encoder)}
    if is_of_stage_0(parameters):
        wanted = {name: p for name, p in wanted.items() if not _is_lora(name) and not name.startswith(_SOUND)}
    is_read = getattr(getattr(model, "config", None), "spelled_tokens", False)  # else CTC may start anew
    if has_ctc and not is_read and found.keys().isdisjoint(CTC_PARAMETERS):
        wanted = {name: p for name, p in wanted.items() if name not in CTC_PARAMETERS}
    problems = fit_problems(found, {name: p.shape for name, p in wanted.items()}, partial)
    if problems:
        shown = problems if len(problems) <= 12 else [*problems[:12], f"... and {len(problems) - 12} more"]
        raise UserError("\n  ".join([f"{path} does not fit this model{_other_width(found, wanted)}:", *shown]))
    require_finite(found, path)
    return found


def require_finite(parameters: Mapping[str, Tensor], path: str | Path) -> None:
    """Raise UserError where values are NaN or infinite: everything that is computed with them would be."""
    if problem := not_finite(parameters):
        raise UserError(f"{path} {problem}")


def not_finite(parameters: Mapping[str, Tensor]) -> str:
    """What to say of tensors with NaN or infinite values; "" where there is none."""
    broken = [name for name, value in parameters.items() if not is_finite(value)]
    if not broken:
        return ""
    return (
        f"holds NaN or infinite values in {len(broken)} of {len(parameters)} tensors, e.g. {broken[0]}: what wrote it "
        "had failed, so take an earlier file"
    )


def is_finite(value: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity; on the meta device nothing is known against it."""
    if value.is_meta or not value.is_floating_point() or not value.numel():
        return True
    least, most = (value.float() if value.itemsize == 1 else value).aminmax()  # a tenth of the time of `isfinite`
    return math.isfinite(least) and math.isfinite(most)


@cache  # once: before the model is read, and as it is loaded
def tell_other_vicuna(width: int, positions: int, path: str) -> None:
    """Warn where an LLM of a Vicuna's width has other positions than the one that the released checkpoint needs."""
    name, expected = _VICUNAS.get(width, ("", positions))
    if positions != expected:
        logger.warning(
            "%s goes with an LLM %d wide, and this one has %d positions: the released checkpoint of that width was "
            "trained with lmsys/%s (%d positions), and with another version it answers nonsense or nothing. If this "
            "is that checkpoint, or was trained from it, set model.llama_path to that LLM",
            path, width, positions, name, expected,
        )  # fmt: skip


def to_take(parameters: Mapping[str, Tensor], has_ctc: bool = False) -> dict[str, Tensor]:
    """What a model takes of a file: none of the published writer's extras, `ctc_parameters` where it has CTC."""
    left_out = set() if has_ctc else ctc_parameters(parameters).keys()
    return {k: v for k, v in parameters.items() if not PUBLISHED_EXTRAS.fullmatch(k) and k not in left_out}


def ctc_parameters(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What only a model with CTC has a use for; half of it is of no known file, and told as anything unexpected."""
    found = {name: parameters[name] for name in CTC_PARAMETERS if name in parameters}
    return found if len(found) == len(CTC_PARAMETERS) else {}


def is_of_stage_0(parameters: Mapping[str, Tensor]) -> bool:
    """Whether a file was written by a model with CTC and without LoRA."""
    return bool(ctc_parameters(parameters)) and not any(map(_is_lora, parameters))


def _is_lora(name: str) -> bool:
    return ".lora_" in name


def other_tensors(parameters: Mapping[str, Tensor]) -> str:
    """What a file holds instead of the parameters that were looked for."""
    if not parameters:
        return "it holds no tensor"
    return f"it holds {len(parameters)} other tensors, e.g. {next(iter(parameters))}"


def _other_width(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """The usual reason why nothing fits, if it is that."""
    theirs, ours = (parameters.get("speech_llama_proj.bias") for parameters in (found, wanted))
    if theirs is None or ours is None or theirs.shape == ours.shape:
        return ""
    return f", but one whose LLM is {theirs.numel()} wide, not {ours.numel()} (Vicuna 13B: 5120, 7B: 4096)"


def fit_problems(found: dict[str, Tensor], wanted: dict[str, torch.Size], partial: bool = False) -> list[str]:
    """Every key that is missing, unexpected or of another shape, a line each."""
    problems = [] if partial else [f"missing: {name}" for name in wanted if name not in found]
    problems += [f"unexpected: {name}" for name in found if name not in wanted]
    problems += [
        f"shape of {name}: {list(found[name].shape)} in the file, {list(shape)} in the model"
        for name, shape in wanted.items()
        if name in found and found[name].shape != shape
    ]
    return problems


def save(path: str | Path, content: dict[str, Any]) -> None:
    """Write what a checkpoint file holds atomically: a reader sees the old file or the whole new one."""
    with replacing(Path(path)) as temporary:
        write_content(temporary, content)


def own_values(model: nn.Module) -> dict[str, Tensor]:
    """Copies on the CPU of `own_parameters`."""
    return {name: p.detach().to("cpu", copy=True) for name, p in own_parameters(model).items()}


def write_content(path: Path, content: dict[str, Any]) -> None:
    """Write what a checkpoint file holds, through to the disk. Raises OSError when there is no room."""
    with path.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's zip writer hides what the system said
            raise OSError(f"{path} could not be written: {error}") from error
        file.flush()
        os.fsync(file.fileno())
