"""Which parameters a checkpoint must hold, by its own widths and its `model` section; no backbone is needed."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig
from torch import Tensor

from salmonn.common.errors import UserError
from salmonn.config.loading import model_config
from salmonn.model import checkpoint
from salmonn.model.qformer import Connector
from util.conversion.source import Source, model_section, read_source

LLM_PREFIX = "llama_model."
PROBLEMS_SHOWN = 12
ENCODERS = ("speech_encoder.", "beats.")
_LORA = re.compile(r"(llama_model\.base_model\.model\.(?:.+?\.)?)(\d+)\.(.+)\.lora_([AB])\.default\.weight")
_CROSS = "speech_Qformer.bert.encoder.layer.0.crossattention.self.key.weight"
_WIDEN = "speech_Qformer.bert.encoder.layer.0.intermediate_query.dense.weight"


class Widths(NamedTuple):
    """Widths of the backbones that the parameters fit."""

    whisper: int
    beats: int  # 0: without BEATs
    llm: int


class Adapters(NamedTuple):
    """The LoRA adapters of a checkpoint."""

    prefix: str  # of a layer's number
    layers: int
    modules: tuple[str, ...]  # inside a layer, e.g. self_attn.q_proj
    rank: int


def read_fitting(path: Path, cfg_path: str | None) -> tuple[Source, DictConfig]:
    """A model to use with its `model` section; what only spells is moved from its parameters to its rest.

    Raises UserError unless they fit each other, and for a checkpoint of stage 0 where the section wants LoRA.
    """
    source = read_source(path)
    section = model_section(source, path, cfg_path)
    if section.lora and checkpoint.is_of_stage_0(source.parameters):
        raise UserError(
            f"{path} is of stage 0: a connector without LoRA, which answers nothing yet. Stage 1 starts from it as it "
            f"is: model.ckpt={path}"
        )
    of = cfg_path or "its own configuration"
    refuse(f"{path} does not fit the model section of {of}:", problems(source.parameters, section))
    spelling = {} if section.spelled_tokens else checkpoint.ctc_parameters(source.parameters)
    kept = {name: value for name, value in source.parameters.items() if name not in spelling}
    return source._replace(parameters=kept, rest=source.rest | spelling), section


def refuse(heading: str, problems: list[str]) -> None:
    """Raise UserError with the problems, if there are any."""
    if problems:
        more = [f"... and {len(problems) - PROBLEMS_SHOWN} more"] if len(problems) > PROBLEMS_SHOWN else []
        raise UserError("\n  ".join([heading, *problems[:PROBLEMS_SHOWN], *more]))


def widths_of(parameters: Mapping[str, Tensor]) -> Widths:
    """Read from the norms and the projection; a norm that is missing, from the cross-attention."""

    def first(*names: str, axis: int = 0) -> int:
        return next((parameters[n].shape[axis] for n in names if n in parameters and parameters[n].ndim > axis), 0)

    both = first(_CROSS, axis=1)  # [hidden, Whisper + BEATs]
    beats = first("ln_audio.weight", "ln_audio.bias")
    whisper = first("ln_speech.weight", "ln_speech.bias") or max(0, both - beats)
    llm = first("speech_llama_proj.weight", "speech_llama_proj.bias")
    return Widths(whisper, beats or max(0, both - whisper), llm)


def adapters_of(parameters: Mapping[str, Tensor]) -> Adapters | None:
    """The adapters, if there are any."""
    found = [(match, value) for name, value in parameters.items() if (match := _LORA.fullmatch(name))]
    if not found:
        return None
    modules = dict.fromkeys(match[3] for match, _ in found)
    rank = next((value.shape[0] if match[4] == "A" else value.shape[-1] for match, value in found))
    return Adapters(found[0][0][1], 1 + max(int(match[2]) for match, _ in found), tuple(modules), rank)


def guessed_section(parameters: Mapping[str, Tensor]) -> DictConfig:
    """The `model` section of a file that does not hold one: sizes as found, all else as published."""
    section: dict[str, Any] = {}
    query, widen = parameters.get("speech_query_tokens"), parameters.get(_WIDEN)
    if query is not None and query.ndim == 3:  # [1, queries, hidden]
        hidden = query.shape[-1]
        layers = {name.split(".")[4] for name in parameters if name.startswith("speech_Qformer.bert.encoder.layer.")}
        section |= {"num_speech_query_token": query.shape[1], "qformer_hidden_size": hidden}
        section |= {"qformer_num_layers": max(1, len(layers)), "qformer_num_heads": 1}  # heads have no shape
    if widen is not None:  # [intermediate, hidden]
        section["qformer_intermediate_size"] = widen.shape[0]
    if adapters := adapters_of(parameters):
        targets = [module.rpartition(".")[2] for module in adapters.modules]
        section |= {"lora_rank": adapters.rank, "lora_target_modules": targets}
    return model_config({**section, "lora": adapters is not None})


def problems(parameters: Mapping[str, Tensor], section: DictConfig) -> list[str]:
    """Every key that is missing, unexpected or of another shape than the section says, a line each.

    Of stage 0 no LoRA is expected. Encoders that were trained are left out: only their own files know their names.
    """
    taken = checkpoint.to_take(parameters)
    found = {name: value for name, value in taken.items() if not name.startswith(ENCODERS)}
    lora = {name: value for name, value in found.items() if name.startswith(LLM_PREFIX)}
    connector = {name: value for name, value in found.items() if name not in lora}
    with_lora = section.lora and not checkpoint.is_of_stage_0(parameters)
    adapters = _lora_problems(lora, section) if with_lora else checkpoint.fit_problems(lora, {})
    return checkpoint.fit_problems(connector, _connector(section, widths_of(found))) + adapters


def _connector(section: DictConfig, widths: Widths) -> dict[str, torch.Size]:
    """Names and shapes of the connector as the model itself makes it, between backbones of these widths."""
    with torch.device("meta"):
        connector = Connector(section, widths.whisper, widths.beats, widths.llm, frames=1500)
    return {name: parameter.shape for name, parameter in connector.named_parameters()}


def _lora_problems(found: Mapping[str, Tensor], section: DictConfig) -> list[str]:
    adapters = adapters_of(found)
    if adapters is None:
        return ["missing: all LoRA parameters (model.lora is True)", *checkpoint.fit_problems(dict(found), {})]
    targets = list(section.lora_target_modules)
    modules = [m for m in adapters.modules if any(m == t or m.endswith(f".{t}") for t in targets)]
    absent = [t for t in targets if not any(m == t or m.endswith(f".{t}") for m in modules)]
    wanted = {}
    for layer in range(adapters.layers):
        for module in modules:
            for side, axis in (("A", 0), ("B", 1)):  # A [rank, in], B [out, rank]
                name = f"{adapters.prefix}{layer}.{module}.lora_{side}.default.weight"
                shape = list(found[name].shape if name in found else (0, 0))
                shape[axis] = section.lora_rank
                wanted[name] = torch.Size(shape)
    return [f"missing: all LoRA parameters of {t}" for t in absent] + checkpoint.fit_problems(dict(found), wanted)
