"""Configurations inside files: those that we write hold no secret, and those of others are taken literally."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from salmonn.common.errors import UserError

SECRETS = ("model.token",)  # the one list of keys whose values no file and no message holds
_REFERENCE = re.compile(r"\$\{oc\.env:\w+\}")  # without a default: that would be a secret itself
DEEPEST = 16  # sections inside sections; ours have three


def is_reference(value: Any) -> bool:
    """Whether a value is `${oc.env:NAME}`: it tells where a secret is, not what it is."""
    return isinstance(value, str) and bool(_REFERENCE.fullmatch(value))


def without_secrets(config: Mapping[str, Any], keep_references: bool = False) -> dict[str, Any]:
    """Plain values of a configuration with its secrets emptied; `keep_references`: but for `${oc.env:NAME}`."""
    kept = dict(config)
    for section, _, key in (secret.rpartition(".") for secret in SECRETS):
        values = kept.get(section)
        if isinstance(values, dict) and key in values and not (keep_references and is_reference(values[key])):
            kept[section] = {**values, key: ""}
    return kept


def written_config(config: DictConfig) -> dict[str, Any]:
    """What a run's own files say of its configuration."""
    return without_secrets(OmegaConf.to_container(config), keep_references=True)


def options_without_secrets(options: Sequence[str]) -> list[str]:
    """`key=value` of a command line as they may be written down: without those that set a secret."""
    return [option for option in options if option.partition("=")[0] not in SECRETS]


def require_literal(values: Any, where: str) -> None:
    """Raise UserError where the file of another asks for values of the reader's environment, or is nested without end.

    `${...}` would be filled in here, and what it stood for would end up in the next file.
    """
    left = [(values, 0)]
    while left:
        value, depth = left.pop()
        if isinstance(value, str) and "${" in value:
            raise UserError(f"{where} holds {value[:60]!r}: ${{...}} is not filled in from the file of others")
        if depth > DEEPEST:
            raise UserError(f"{where} is nested more than {DEEPEST} deep: it is no configuration")
        inside = [*value, *value.values()] if isinstance(value, Mapping) else value
        if isinstance(inside, list | tuple):
            left += [(part, depth + 1) for part in inside]
