"""The names of all keys, and which of them was meant by another name."""

import difflib
from collections.abc import Sequence
from dataclasses import Field, fields, is_dataclass

from salmonn.config.schema import Config

_MOST = 3  # suggestions
# What other trainers call a key that no comparison of names would find.
_ELSEWHERE = {
    "lr": "run.optims.init_lr",
    "learning_rate": "run.optims.init_lr",
    "epochs": "run.optims.max_epoch",
    "num_epochs": "run.optims.max_epoch",
    "num_train_epochs": "run.optims.max_epoch",
    "warmup": "run.optims.warmup_steps",
    "max_grad_norm": "run.optims.grad_clip_norm",
    "gradient_accumulation_steps": "run.accum_grad_iters",
    "per_device_train_batch_size": "run.batch_size_train",
    "per_device_eval_batch_size": "run.batch_size_eval",
    "fp16": "run.amp_dtype",
    "bf16": "run.amp_dtype",
    "workers": "run.num_workers",
    "load_in_8bit": "model.llm_quantization",
    "load_in_4bit": "model.llm_quantization",
    "checkpoint": "model.ckpt",
    "max_length": "generate.max_new_tokens",
    "max_tokens": "generate.max_new_tokens",
    "train_data": "datasets.train_ann_path",
    "valid_data": "datasets.valid_ann_path",
}


def known_keys(schema: type = Config, prefix: str = "") -> list[str]:
    """Every dotted key of the schema, sections before their keys."""
    keys = []
    for f in fields(schema):
        keys.append(prefix + f.name)
        if section := section_of(f):
            keys += known_keys(section, f"{prefix}{f.name}.")
    return keys


def section_of(field: Field) -> type | None:
    """The schema of a key that is a section; None for one that takes a value."""
    return field.type if isinstance(field.type, type) and is_dataclass(field.type) else None


def nearest(prefix: str, key: str, known: Sequence[str]) -> str:
    """What may have been meant by `key` in a section of the `known` names, as the end of a message.

    A key of the same section, else, in a section of a configuration, one of any.
    """
    same_section = [prefix + name for name in known]
    names_everywhere = {dotted.rpartition(".")[2] for dotted in known_keys()}
    everywhere = known_keys() if set(known) <= names_everywhere else []
    elsewhere = [_ELSEWHERE[key.lower()]] if everywhere and key.lower() in _ELSEWHERE else []
    for found in (
        elsewhere,
        _with_the_words(key, same_section),
        _alike(key, same_section),
        _with_the_words(key, everywhere),
        _alike(key, everywhere),
    ):
        if found:
            return f" (did you mean {' or '.join(found[:_MOST])}?)"
    return f" (known here: {', '.join(known)})" if known else ""


def _with_the_words(key: str, pool: Sequence[str]) -> list[str]:
    """The keys whose names hold all words of this one, those with the fewest other words first."""
    words = set(key.lower().split("_"))
    found = [dotted for dotted in pool if words <= set(_name(dotted).split("_"))]
    return sorted(found, key=lambda dotted: len(_name(dotted).split("_")))


def _alike(key: str, pool: Sequence[str]) -> list[str]:
    by_name = {_name(dotted): dotted for dotted in reversed(pool)}
    return [by_name[name] for name in difflib.get_close_matches(key.lower(), by_name, n=1, cutoff=0.6)]


def _name(dotted: str) -> str:
    return dotted.rpartition(".")[2].lower()
