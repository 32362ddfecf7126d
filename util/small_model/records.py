"""What a part of the job has found or made, kept for the next ones: dataclasses in a JSON file."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

Record = TypeVar("Record")


def write_records(path: Path, records: Sequence[Any]) -> None:
    """Keep them."""
    path.write_text(json.dumps([asdict(record) for record in records], indent=0))


def read_records(path: Path, kind: type[Record]) -> list[Record]:
    """What `write_records` has written."""
    return [kind(**values) for values in json.loads(path.read_text())]
