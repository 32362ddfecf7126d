"""What is in a checkpoint, from names, shapes and configuration; of values only whether they are finite."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from salmonn.common.errors import UserError
from salmonn.config.loading import llm_quantization
from salmonn.model import checkpoint
from salmonn.model.beats import PUBLISHED_SIZES, load_beats
from salmonn.model.lineage import LINEAGE, lineage_of
from salmonn.model.parameter_counts import count_by_part
from salmonn.model.pretrained import WEIGHTS
from util.conversion import fit
from util.conversion.source import Source, as_source, is_salmonn, model_section, read_content

Row = tuple[str, str]

LLM_SIZES = {(5120, 40): "Vicuna 13B (v1.1)", (4096, 32): "Vicuna 7B (v1.5)"}  # (width, layers)
LLM_WIDTHS = {width: name for (width, _), name in LLM_SIZES.items()}
WHISPER_WIDTHS = {1280: "large, -v2, -v3", 1024: "medium", 768: "small", 512: "base", 384: "tiny"}
BEATS_WIDTHS = {768: "all published files"}
_OF_STAGE_0 = "none: of stage 0, from whose connector stage 1 starts (model.ckpt), with a new LoRA"
_RESUME_KEYS = {"optimizer", "scaler", "config", "progress"}


def describe(path: Path) -> tuple[list[Row], list[str]]:
    """Rows of (what, value), and the problems that keep the file from being loaded.

    Raises UserError for a file that is neither a SALMONN checkpoint or folder nor a BEATs file.
    """
    content = read_content(path, lazily=True)
    if isinstance(content.get("cfg"), dict):
        return _describe_beats(path, content)
    if is_salmonn(content["model"]):
        return _describe_salmonn(path, content)
    raise UserError(
        f"{path} is a tensor file, but neither a SALMONN checkpoint, nor a folder of save_pretrained, nor a BEATs file "
        f'({{"cfg", "model"}}): {checkpoint.other_tensors(content["model"])}'
    )


def _size(path: Path) -> str:
    return f"{(path / WEIGHTS if path.is_dir() else path).stat().st_size / 1e6:.1f} MB"


# ---- SALMONN


def _describe_salmonn(path: Path, content: Mapping[str, Any]) -> tuple[list[Row], list[str]]:
    source = as_source(content)
    notes = []
    try:
        section = model_section(source, path, None)
    except UserError as error:
        section = fit.guessed_section(source.parameters)
        notes = [("note", str(error).splitlines()[0] if not source.config else str(error))]
    parameters, of_ctc = checkpoint.to_take(source.parameters), checkpoint.ctc_parameters(source.parameters)
    counts = count_by_part({name: value.numel() for name, value in parameters.items() if _is_known(name)})
    widths, adapters = fit.widths_of(parameters), fit.adapters_of(parameters)
    rows = [
        ("file", f"{path}: SALMONN {'folder' if path.is_dir() else 'checkpoint'}, {_size(path)}"),
        ("run", _run(source)),
        ("goes on", "yes, optimiser and position are in it" if content.keys() >= _RESUME_KEYS else "no, for use only"),
        *notes,
        ("LLM", _llm(widths.llm, adapters)),
        ("Whisper", _fits(widths.whisper, WHISPER_WIDTHS)),
        ("BEATs", _fits(widths.beats, BEATS_WIDTHS) if widths.beats else "none"),
        ("windows", _windows(section)),
        *((part, f"{n:,} parameters") for part, n in counts.items()),
        ("in all", f"{sum(counts.values()):,} parameters in {len(parameters)} tensors, {_precisions(parameters)}"),
        ("adapters", _OF_STAGE_0 if checkpoint.is_of_stage_0(source.parameters) else _lora(section, adapters)),
    ]
    if llm_quantization(section) != "none":
        rows.append(("trained on", f"the LLM in {llm_quantization(section)}"))
    if of_ctc:
        of_training = "for training with CTC, left out where nothing is spelled"
        use = "for what the LLM reads" if section.spelled_tokens else of_training
        rows.append(("spelling", f"{', '.join(of_ctc)}: {use}"))
    if extras := len(source.parameters) - len(parameters) - len(of_ctc):
        rows.append(("extras", f"{extras} tensors that the published writer leaves in its files; they are ignored"))
    broken = checkpoint.not_finite(parameters)
    return rows, fit.problems(source.parameters, section) + ([f"it {broken}"] if broken else [])


def _is_known(name: str) -> bool:
    return is_salmonn({name: torch.empty(0)}) or name.startswith((fit.LLM_PREFIX, *fit.ENCODERS))


def _run(source: Source) -> str:
    run, progress = source.config.get("run") or {}, source.rest.get("progress") or {}
    facts = [run["exp_name"]] if run.get("exp_name") else []
    facts += [f"{key} {value}" for key, value in source.training.items() if key != LINEAGE]
    best = progress.get("best") or {}
    facts += [
        f"best validation {key} {best[key]:.4g}" for key in ("accuracy", "loss") if isinstance(best.get(key), float)
    ]
    data = (source.config.get("datasets") or {}).get("train_ann_path")
    facts += [f"trained on {data}"] if data else []
    before = [run.run for run in lineage_of(source.training)[:-1]]
    facts += [f"after {', '.join(before)}"] if before else []
    return ", ".join(facts) or "not recorded"


def _llm(width: int, adapters: fit.Adapters | None) -> str:
    if adapters is None:
        return f"{width} wide; fits {LLM_WIDTHS.get(width, 'no published size')}, as far as width tells (no LoRA in it)"
    layers = adapters.layers
    fits = LLM_SIZES.get((width, layers), "none of the published ones: it has to have this width and these layers")
    return f"{width} wide, {layers} layers; fits {fits}"


def _fits(width: int, known: Mapping[int, str]) -> str:
    return f"{width} wide; fits {known.get(width, 'none of the published ones')}"


def _windows(section: DictConfig) -> str:
    n = section.num_speech_query_token
    queries = f"{n} quer{'y' if n == 1 else 'ies'}"
    if not section.window_level_Qformer:
        return f"one over the whole clip, {queries}"
    return f"{section.second_per_window:g} s every {section.second_stride:g} s, {queries} each"


def _lora(section: DictConfig, adapters: fit.Adapters | None) -> str:
    if adapters is None:
        return "none"
    scaling = section.lora_alpha / section.lora_rank if section.lora_scaling is None else section.lora_scaling
    return (
        f"LoRA of rank {adapters.rank} on {', '.join(adapters.modules)}; "
        f"alpha {section.lora_alpha:g}, scaling {scaling:g}"
    )


def _precisions(parameters: Mapping[str, Tensor]) -> str:
    return " and ".join(sorted({str(value.dtype).removeprefix("torch.") for value in parameters.values()}))


# ---- BEATs


def _describe_beats(path: Path, content: Mapping[str, Any]) -> tuple[list[Row], list[str]]:
    cfg, parameters = content["cfg"], content["model"]
    different = [
        f"{key} {cfg.get(key, 'not given')} (published {value})"
        for key, value in PUBLISHED_SIZES.items()
        if cfg.get(key) != value
    ]
    counts = [value.numel() for name, value in parameters.items() if not name.startswith("predictor.")]
    rows = [
        ("file", f"{path}: BEATs, {_size(path)}"),
        ("variant", _variant(path.name)),
        ("head", _head(content)),
        ("sizes", ", ".join(f"{key} {cfg[key]}" for key in PUBLISHED_SIZES if key in cfg)),
        ("as in cpt2", "yes, every size" if not different else f"no: {', '.join(different)}"),
        ("in all", f"{sum(counts):,} parameters in {len(counts)} tensors, {_precisions(parameters)}, without the head"),
        ("fits", f"SALMONN checkpoints whose ln_audio is {cfg.get('encoder_embed_dim')} wide"),
    ]
    try:
        load_beats(path, device="meta")
    except UserError as error:
        return rows, [line.strip() for line in str(error).splitlines()]
    return rows, []


def _variant(name: str) -> str:
    """Iterations share one architecture, so nothing in the file tells them apart."""
    match = re.search(r"iter(\d)(_plus)?", name)
    found = f"iter{match[1]}{'+' if match[2] else ''}" if match else "not told"
    return f"{found} by the file's name (iterations have the same keys and sizes)"


def _head(content: Mapping[str, Any]) -> str:
    weight, labels = content["model"].get("predictor.weight"), content.get("label_dict") or {}
    if weight is None:
        return "none: pretrained, not fine-tuned"
    return f"fine-tuned, {weight.shape[0]} classes{f', {len(labels)} with names' if labels else ''}; not used here"


def shown(rows: Sequence[Row]) -> str:
    """The rows below each other."""
    width = max(len(what) for what, _ in rows)
    return "\n".join(f"{what:{width}}  {value}" for what, value in rows)
