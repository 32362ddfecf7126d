"""Files that are there whole or not at all, and files of lines that a kill leaves with whole lines only."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

GB = 1e9  # bytes


def existing_part(folder: Path) -> Path:
    """The folder, or where it is still to be made the nearest one above that is there."""
    return next(part for part in (folder.absolute(), *folder.absolute().parents) if part.exists())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, to be written; it takes that place when all went well, and else goes."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the name, too, outlives a power cut
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, content: str) -> None:
    """Write a file whole or not at all, and make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(content, encoding="utf-8", newline="")


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file for people to read, as `write_text`."""
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def appending(path: Path) -> BinaryIO:
    """Open a file of lines for appending, after the last whole line: a kill may have left half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("ab")
    size = file.tell()
    if size:
        with path.open("rb") as reader:
            file.truncate(_end_of_last_line(reader, size))
    return file


def _end_of_last_line(file: BinaryIO, size: int) -> int:
    step, end = 65_536, size
    while end > 0:
        start = max(0, end - step)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
