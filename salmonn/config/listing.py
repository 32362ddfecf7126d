"""Every key with its type, default and line of doc, from the schema: `python train.py --keys [PREFIX]`."""

import inspect
import json
import re
from argparse import Action, ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from typing import Any

from salmonn.common.errors import UserError
from salmonn.config.checks import CHOICES
from salmonn.config.keys import nearest, section_of
from salmonn.config.schema import Config

_LINE = re.compile(r"^    (\w+): .*?  # (.+)$", re.MULTILINE)


class ShowKeys(Action):
    """An option that prints the keys and ends, also where others that are required are absent."""

    def __call__(self, parser: ArgumentParser, namespace: Namespace, prefix: Any, option: str | None = None) -> None:
        """Raises UserError for a prefix that no key has."""
        del namespace, option
        print("\n".join(key_lines(prefix or "")), flush=True)
        parser.exit()


def key_lines(prefix: str = "") -> list[str]:
    """A line for each key that begins with it. Raises UserError where none does."""
    found = [row for row in _rows(Config, "") if row[0].startswith(prefix)]
    if not found:
        section, _, name = prefix.rpartition(".")
        raise UserError(f"--keys {prefix}: no key begins so{nearest(f'{section}.', name, [])}")
    widths = [max(len(row[column]) for row in found) for column in range(2)]
    return [f"{key:{widths[0]}}  {value:{widths[1]}}  {doc}".rstrip() for key, value, doc in found]


def _rows(schema: type, prefix: str) -> Iterator[tuple[str, str, str]]:
    """(key, type = default, doc); the doc is the comment behind the key in the schema."""
    docs = dict(_LINE.findall(inspect.getsource(schema)))
    for field in fields(schema):
        key = prefix + field.name
        if section := section_of(field):
            yield from _rows(section, f"{key}.")
            continue
        choices = f" (one of {', '.join(CHOICES[key])})" if key in CHOICES else ""
        yield key, f"{_type_name(field)} = {_default(field)}", docs.get(field.name, "") + choices


def _type_name(field: Field) -> str:
    return field.type.__name__ if field.type in (str, int, float, bool) else str(field.type)


def _default(field: Field) -> str:
    """As it is written in a configuration."""
    return json.dumps(field.default if field.default_factory is MISSING else field.default_factory())
