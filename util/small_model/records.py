"""What a part of the job has found or made, kept for the next ones: dataclasses in a JSON file."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from salmonn.common.errors import UserError
from salmonn.common.files import read_json, write_text

Record = TypeVar("Record")


def write_records(path: Path, records: Sequence[Any]) -> None:
    """Keep them."""
    write_text(path, json.dumps([asdict(record) for record in records], indent=0))


def read_records(path: Path, kind: type[Record]) -> list[Record]:
    """What `write_records` has written. Raises UserError where it was damaged since."""
    try:
        return [kind(**values) for values in read_json(path)]
    except TypeError as error:
        raise UserError(f"{path} is damaged ({error}): remove its folder, and it is made anew") from error
