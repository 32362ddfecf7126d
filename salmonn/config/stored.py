"""Configurations inside files: those that we write hold no secret, and those of others are taken literally."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from salmonn.common.errors import UserError
from salmonn.config.keys import known_keys

SECRETS = ("model.token",)  # the one list of keys whose values no file and no message holds
# By what words in a key's name, of camelCase too, other programs' secrets are known: none of ours takes them over.
_PASSWORD = r"[a-z]*(passw(or)?d|passphrase|secret|credential)|pwd"  # which may be a number; of the others none is
_WORDS = rf"{_PASSWORD}|[a-z]*(token|apikey)|key|authorization|o?auth|bearer|cookie|dsn|sig(nature)?|conn\w*_?str(ing)?"
_SECRET, _NUMERIC = (re.compile(rf"(^|_)({words})s?(_|$)") for words in (_WORDS, _PASSWORD))
_PIECES = re.compile(
    r"(^|_)((max|min|num|n|batch|query)_(\w+_)?tokens|(bos|eos|pad|unk|stop|special)_tokens?)$"
)  # of text
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_OURS = {key.rpartition(".")[2] for key in known_keys() if key not in SECRETS}
_QUERIED = re.compile(r"(?<=[?&])([\w.-]+)=[^&#\s]+")  # of an address
_NAMED = re.compile(r"[{[,?&]\s*['\"]?([\w.-]+)['\"]?\s*[:=]")  # keys inside a value
_USER = re.compile(r"(\w+://)[^/\s]+@")  # of an address, with the password
_REFERENCE = re.compile(r"\$\{oc\.env:\w+\}")  # without a default: that would be a secret itself
DEEPEST = 16  # sections inside sections; ours have three


def is_reference(value: Any) -> bool:
    """Whether a value is `${oc.env:NAME}`: it tells where a secret is, not what it is."""
    return isinstance(value, str) and bool(_REFERENCE.fullmatch(value))


def without_secrets(config: Mapping[str, Any], keep_references: bool = False) -> dict[str, Any]:
    """Plain values of a configuration with its secrets emptied; `keep_references`: but for `${oc.env:NAME}`.

    What is nested deeper than a configuration is left as it is: see `require_plain`.
    """
    return _emptied(config, "", keep_references)


def _emptied(values: Any, place: str, keep_references: bool) -> Any:
    if place.count(".") > DEEPEST:
        return values
    if isinstance(values, list | tuple):
        return [_emptied(value, f"{place}.", keep_references) for value in values]
    if not isinstance(values, Mapping):
        return plain_address(values) if isinstance(values, str) else values
    kept = {}
    for key, value in values.items():
        where = f"{place}.{key}" if place else str(key)
        if (where in SECRETS or _is_foreign_secret(str(key), value)) and not (keep_references and is_reference(value)):
            kept[key] = ""
        else:
            kept[key] = _emptied(value, where, keep_references)
    return kept


def _is_foreign_secret(name: str, value: Any) -> bool:
    """Whether a value is another program's secret, by the name of its key."""
    words = "_".join(_WORD.findall(name)).lower()
    if isinstance(value, bool | None) or name in _OURS or _PIECES.search(words):
        return False
    is_number = value.isdecimal() if isinstance(value, str) else isinstance(value, int | float)
    return bool((_NUMERIC if is_number else _SECRET).search(words))


def plain_address(text: str) -> str:
    """A text whose addresses are without user, password and the secrets behind their `?`."""
    return _QUERIED.sub(
        lambda found: f"{found[1]}=" if _is_foreign_secret(found[1], "") else found[0], _USER.sub(r"\1", text)
    )


def written_config(config: DictConfig) -> dict[str, Any]:
    """What a run's own files say of its configuration."""
    return without_secrets(OmegaConf.to_container(config), keep_references=True)


def sets_secret(option: str) -> bool:
    """Whether `key=value` of a command line sets a secret; ours in any form in which a key may be written."""
    key, _, value = option.partition("=")
    names = [name for name in re.split(r"[^\w-]+", key) if name]
    if any(_is_foreign_secret(name, value) for name in names + _NAMED.findall(value)):
        return True
    paths = [secret.split(".") for secret in SECRETS]
    return any(names[: len(path)] == path or (path[: len(names)] == names and path[-1] in value) for path in paths)


def options_without_secrets(options: Sequence[str]) -> list[str]:
    """`key=value` of a command line as they may be written down: without those that set a secret."""
    return [option for option in options if not sets_secret(option)]


def without_other_names(message: str) -> str:
    """A message of OmegaConf's without what stands in the place of a variable's name: it may be the secret itself."""
    return re.sub(r"(?<=Environment variable ')(?![A-Z_][A-Z0-9_]*')[^']*", "(no usual name)", message)


def require_literal(values: Any, where: str) -> None:
    """Raise UserError where the file of another asks for values of the reader's environment, or is nested without end.

    `${...}` would be filled in here, and what it stood for would end up in the next file.
    """
    for value in _inside(values, where):
        if isinstance(value, str) and "${" in value:
            raise UserError(f"{where} holds {value[:60]!r}: ${{...}} is not filled in from the file of others")


def require_plain(values: Any, where: str) -> None:
    """Raise UserError where a configuration is nested deeper than any is, or holds more than text and numbers."""
    for _ in _inside(values, where):
        pass


def _inside(values: Any, where: str) -> Iterator[Any]:
    """All values and keys. Raises UserError where they are nested without end, or no plain ones."""
    left = [(values, 0)]
    while left:
        value, depth = left.pop()
        yield value
        if depth > DEEPEST:
            raise UserError(f"{where} is nested more than {DEEPEST} deep: it is no configuration")
        inside = [*value, *value.values()] if isinstance(value, Mapping) else value
        if isinstance(inside, list | tuple):
            left += [(part, depth + 1) for part in inside]
        elif not isinstance(value, str | int | float | None):
            raise UserError(f"{where} holds {type(value).__name__}, which is neither text nor number: it is damaged")
