"""What config files and command lines say, as plain values: text stays as it was written.

YAML makes numbers of 007, 1e5 and 20240501_1, a truth value of `no`, and of `a #b` only `a`. Where the schema wants
text, none of that is meant.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from salmonn.common.errors import UserError
from salmonn.common.spelling import did_you_mean
from salmonn.config.installed import CONFIGS, here_or_installed
from salmonn.config.schema import Config
from salmonn.config.stored import DEEPEST, sets_secret

# ValueError: a tag that its value does not fit. RecursionError: an anchor inside itself.
_NOT_YAML = (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError)
_QUOTED = re.compile(r"""'(?:[^']|'')*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)
_NONE = ("", "null")
_MOST_VALUES, _LARGEST = 100_000, 10**100


def read_yaml(path: Path, seen: tuple[Path, ...] = ()) -> DictConfig:
    """The keys of a YAML file over those of its `base`. Raises UserError for anything else."""
    given, path = path, here_or_installed(path)
    if not os.path.isfile(path):
        problem = "is a folder" if os.path.isdir(path) else "does not exist"
        ready, meant = here_or_installed(CONFIGS), did_you_mean(path, Path.is_file)
        raise UserError(f"config file {given} {problem}; the ready ones are in {ready}/{meant}")
    if path.resolve() in seen:
        raise UserError(f"{path}: `base` leads back to the same file")
    try:
        plain = _parse(path.read_text(encoding="utf-8"), Config)
        config = OmegaConf.create({} if plain is None else plain)
    except OSError as error:
        raise UserError(f"config file {path} cannot be read: {error.strerror}") from error
    except _NOT_YAML as error:
        raise UserError(f"{path} is not valid YAML: {_said(error)}") from error
    if not isinstance(config, DictConfig):
        raise UserError(f"{path}: expected keys at the top level, as the files in configs/ have them")
    base = config.pop("base", [])
    bases = [base] if isinstance(base, str) else base
    if not isinstance(bases, list | ListConfig) or not all(isinstance(name, str) for name in bases):
        raise UserError(f"{path}: base = {base!r}: expected the name of a config file, or a list of names")
    return OmegaConf.merge(*(read_yaml(path.parent / name, (*seen, path.resolve())) for name in bases), config)


def read_options(options: Sequence[str]) -> DictConfig:
    """What `--options KEY=VALUE ...` set. Raises UserError for what cannot be read."""
    read = OmegaConf.create()
    for option in options:
        key, equals, value = option.partition("=")
        shown = "(a secret)" if sets_secret(option) else option
        if not (equals and key):
            raise UserError(f"--options {shown}: write it as key=value, e.g. run.batch_size_train=4")
        if key.count(".") > DEEPEST:
            raise UserError(f"--options {key[:60]}...: there is no such key")
        try:
            OmegaConf.update(read, key, _value(value, _type_of(key)))
        except _NOT_YAML as error:
            why = "it cannot be read" if sets_secret(option) else _said(error)
            raise UserError(f"--options {shown}: {why}") from error
    return read


def _said(error: Exception) -> str:
    """What is wrong and where, without the lines of the file that the library quotes: they may hold a secret."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return str(error)
    marks = {error.context: error.context_mark, error.problem: error.problem_mark}
    return ", ".join(
        what + (f" (line {mark.line + 1}, column {mark.column + 1})" if mark else "")
        for what, mark in marks.items()
        if what
    )


def _value(value: str, kind: Any) -> Any:
    """What stands behind `=` for a key of that type. Text in quotes is YAML's: in "..." `\\n` is a new line."""
    if kind is not str or _QUOTED.fullmatch(value):
        return _parse(value, kind)
    return None if value in _NONE else value


def _type_of(key: str) -> Any:
    """The type of a dotted key; None for one that the schema does not have."""
    kind: Any = Config
    for name in key.split("."):
        kind = {f.name: f.type for f in fields(kind)}.get(name) if is_dataclass(kind) else None
    return kind


def _parse(text: str, kind: Any) -> Any:
    """YAML with numbers and truth values where the type has them, and text as it is written where it has that."""
    written = yaml.load(text, yaml.BaseLoader)
    _require_few(written)
    # read by OmegaConf: 1e-6 is a number, and a key that stands twice is refused
    read = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]
    _require_few(read)
    return _with_text(read, written, kind)


def _require_few(written: Any) -> None:
    """Raise ValueError for more values, levels or digits than a configuration has, as aliases make of a short text."""
    left, n = [(written, 0)], 0
    while left:
        value, depth = left.pop()
        inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        left += [(part, depth + 1) for part in inside]
        n += 1
        if n > _MOST_VALUES:
            raise ValueError(f"it holds more than {_MOST_VALUES} values (an anchor that is used again and again?)")
        if isinstance(value, int) and abs(value) > _LARGEST:
            raise ValueError("it holds a number that is longer than any")  # too long to be shown, too
        if depth > DEEPEST:
            raise ValueError(f"it is nested more than {DEEPEST} deep")


def _with_text(read: Any, written: Any, kind: Any) -> Any:
    """`read`, in which text that YAML took for something else is as in `written`."""
    if isinstance(read, dict) and isinstance(written, dict):
        kinds = {f.name: f.type for f in fields(kind)} if is_dataclass(kind) else {}
        default = get_args(kind)[1] if get_origin(kind) is dict else None
        return {key: _with_text(value, written.get(key), kinds.get(key, default)) for key, value in read.items()}
    if isinstance(read, list) and isinstance(written, list) and get_origin(kind) is list:
        return [_with_text(*pair, get_args(kind)[0]) for pair in zip(read, written, strict=True)]
    return written if kind is str and isinstance(read, bool | int | float) and isinstance(written, str) else read
