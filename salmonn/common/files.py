"""Atomic writes, and append-only JSON Lines of which a kill leaves whole lines only."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from salmonn.common.errors import UserError

GB = 1e9  # bytes
NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)  # of OSErrors: a path leads nowhere
_LFS_POINTER_BYTES = 1024  # at most, says its specification


def home_folder() -> Path | None:
    """The user's own folder; None where neither HOME nor the system's list of users names one."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def existing_part(folder: Path) -> Path:
    """The folder, or where it is still to be made the nearest one above that is there."""
    return next(part for part in (folder.absolute(), *folder.absolute().parents) if part.exists())


def free_bytes(folder: Path) -> int:
    """What its disk has left, also where the folder is still to be made."""
    return shutil.disk_usage(existing_part(folder)).free


def is_lfs_pointer(path: Path) -> bool:
    """Whether a file is what Git LFS leaves in the place of one that it has not fetched. Raises OSError."""
    if not path.is_file() or path.stat().st_size > _LFS_POINTER_BYTES:
        return False
    return path.read_bytes().startswith(b"version https://git-lfs.github.com/spec/")


class OpenFile:
    """A file opened for reading. It stays the same one when another takes its name, also in a `processes.Worker`."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def at(cls, path: Path) -> "OpenFile":
        """Open a file. Raises OSError."""
        return cls(os.open(path, os.O_RDONLY))

    def fileno(self) -> int:
        """Its descriptor."""
        return self._descriptor

    def __del__(self) -> None:
        os.close(self._descriptor)

    def __reduce__(self) -> tuple:
        raise TypeError("an open file goes to another process in a processes.Parcel only")


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


def read_json(path: Path, what: str = "") -> Any:
    """What a JSON file holds. Raises UserError, which begins with `what` it is, for one that cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{what}{path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # no UTF-8, too
        raise UserError(f"{what}{path} is not valid JSON: {error}") from error
    except RecursionError as error:
        raise UserError(f"{what}{path} is not valid JSON: it is nested too deeply") from error


def appending(path: Path) -> BinaryIO:
    """Open a file of lines for appending, after the last whole line: a kill may have left half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("ab")
    size = file.tell()
    if size:
        with path.open("rb") as reader:
            file.truncate(_end_of_last_line(reader, size))
    return file


def whole_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number, line) of a file of lines, from 1; a last line without an end was being written by a process that died.

    Raises OSError where the file cannot be read.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n"):
                yield number, line


def read_json_lines(path: Path, what: str, kind: Callable[[Any], Any] | None = None) -> Iterator[Any]:
    """What each whole line of a JSON Lines file holds, or what `kind` makes of it; `what` a line is ("an answer").

    Raises UserError that names file and line where one is no JSON, or is refused by `kind`
    (ValueError, KeyError, TypeError, AttributeError).
    """
    number = 0
    try:
        for number, line in whole_lines(path):  # noqa: B007 it is named where a line is refused
            value = json.loads(line)
            yield value if kind is None else kind(value)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}, line {number}: not {what} ({error}); remove that line, or the file") from error


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
