"""Configurations inside files: those that we write hold no secret, and those of others are taken literally."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from salmonn.common.errors import UserError

SECRETS = ("model.token",)  # the one list of keys whose values no file and no message holds
# What other programs call theirs: a file of theirs may hold them, and none of ours takes them over.
_FOREIGN = re.compile(
    r".*(token|passw(or)?d|passphrase|secret|credentials?|authorization|bearer)|(.*[_.-])?(auth|pwd|(api)?key)", re.I
)
_USER = re.compile(r"(\w+://)[^/\s]+@")  # of an address, with the password
_REFERENCE = re.compile(r"\$\{oc\.env:\w+\}")  # without a default: that would be a secret itself
DEEPEST = 16  # sections inside sections; ours have three


def is_reference(value: Any) -> bool:
    """Whether a value is `${oc.env:NAME}`: it tells where a secret is, not what it is."""
    return isinstance(value, str) and bool(_REFERENCE.fullmatch(value))


def without_secrets(config: Mapping[str, Any], keep_references: bool = False) -> dict[str, Any]:
    """Plain values of a configuration with its secrets emptied; `keep_references`: but for `${oc.env:NAME}`.

    What is nested deeper than a configuration is left as it is: see `require_shallow`.
    """
    return _emptied(config, "", keep_references)


def _emptied(values: Any, place: str, keep_references: bool) -> Any:
    if place.count(".") > DEEPEST:
        return values
    if isinstance(values, list | tuple):
        return [_emptied(value, f"{place}.", keep_references) for value in values]
    if not isinstance(values, Mapping):
        return _USER.sub(r"\1", values) if isinstance(values, str) else values
    kept = {}
    for key, value in values.items():
        where = f"{place}.{key}" if place else str(key)
        is_text = not isinstance(value, bool | int | float | None)
        is_secret = where in SECRETS or (is_text and _FOREIGN.fullmatch(str(key)))
        if is_secret and not (keep_references and is_reference(value)):
            kept[key] = ""
        else:
            kept[key] = _emptied(value, where, keep_references)
    return kept


def written_config(config: DictConfig) -> dict[str, Any]:
    """What a run's own files say of its configuration."""
    return without_secrets(OmegaConf.to_container(config), keep_references=True)


def sets_secret(option: str) -> bool:
    """Whether `key=value` of a command line sets a secret; ours in any form in which a key may be written."""
    key, _, value = option.partition("=")
    names = [name for name in re.split(r"[^\w-]+", key) if name]
    if any(map(_FOREIGN.fullmatch, names)) and not value.isdecimal():
        return True
    paths = [secret.split(".") for secret in SECRETS]
    return any(names[: len(path)] == path or (path[: len(names)] == names and path[-1] in value) for path in paths)


def options_without_secrets(options: Sequence[str]) -> list[str]:
    """`key=value` of a command line as they may be written down: without those that set a secret."""
    return [option for option in options if not sets_secret(option)]


def require_literal(values: Any, where: str) -> None:
    """Raise UserError where the file of another asks for values of the reader's environment, or is nested without end.

    `${...}` would be filled in here, and what it stood for would end up in the next file.
    """
    for value in _inside(values, where):
        if isinstance(value, str) and "${" in value:
            raise UserError(f"{where} holds {value[:60]!r}: ${{...}} is not filled in from the file of others")


def require_shallow(values: Any, where: str) -> None:
    """Raise UserError where a configuration is nested deeper than any is."""
    for _ in _inside(values, where):
        pass


def _inside(values: Any, where: str) -> Iterator[Any]:
    """All values and keys. Raises UserError where they are nested without end."""
    left = [(values, 0)]
    while left:
        value, depth = left.pop()
        yield value
        if depth > DEEPEST:
            raise UserError(f"{where} is nested more than {DEEPEST} deep: it is no configuration")
        inside = [*value, *value.values()] if isinstance(value, Mapping) else value
        if isinstance(inside, list | tuple):
            left += [(part, depth + 1) for part in inside]
