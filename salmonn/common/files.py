"""Files that outlive a kill, a full disk and a power cut: written whole or not at all, damage to them noticed."""

import errno
import fcntl
import json
import logging
import os
import secrets
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from salmonn.common.errors import UserError

logger = logging.getLogger(__name__)

GB = 1e9  # bytes
NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)  # of OSErrors: a path leads nowhere
UNFINISHED = ".*.[0-9]*.tmp"  # pattern of the files that `replacing` writes to
_LFS_POINTER_BYTES = 1024  # at most, says its specification
_SEAL, _SEAL_KEY = b', "crc32": "%08x"}\n', b', "crc32": "'  # the end of a line of JSON that tells its checksum
_BLOCK = 1 << 20  # bytes that are read at once


def home_folder() -> Path | None:
    """The user's own folder; None where neither HOME nor the system's list of users names one."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def existing_part(folder: Path) -> Path:
    """The folder, or where it is still to be made the nearest one above that is there."""
    return next(part for part in (folder.absolute(), *folder.absolute().parents) if part.exists())


def unwritable_part(folder: Path) -> Path | None:
    """Its `existing_part` where that is no folder that can be written to; None where files can be put there."""
    there = existing_part(folder)
    return None if there.is_dir() and os.access(there, os.W_OK | os.X_OK) else there


def visible(folder: Path, pattern: str) -> list[Path]:
    """What lies below a folder by a pattern, sorted, without what is hidden, as a Mac's `._NAME` beside each NAME."""
    found = sorted(folder.glob(pattern))
    return [path for path in found if not any(name.startswith(".") for name in path.relative_to(folder).parts)]


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, where they are not there; thousands in each other, too. Raises OSError."""
    missing = [part for part in (folder, *folder.parents) if not part.is_dir()]
    for part in reversed(missing):
        part.mkdir(exist_ok=True)


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
    """A temporary file beside `path`, to be written; it takes that place when all went well, and else goes.

    Its folder is made. What is written is on the disk before it takes the place of what was there.
    """
    make_folder(path.parent)
    temporary = _beside(path)
    try:
        temporary.touch()
        with _held(temporary):
            yield temporary
            _to_disk(temporary)
            temporary.replace(path)
            _to_disk(path.parent)  # the name, too
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def making_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`, to be filled; it takes that name when all went well, and else goes."""
    make_folder(path.parent)
    temporary = _beside(path)
    try:
        temporary.mkdir()
        with _held(temporary):
            yield temporary
            for part in (*temporary.rglob("*"), temporary):
                _to_disk(part)
            temporary.rename(path)
            _to_disk(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def clear_unfinished(paths: Iterable[Path]) -> None:
    """Remove those (of the pattern UNFINISHED) over which a process was killed; what others still write stays."""
    for path in list(paths):
        with suppress(OSError), _opened(path) as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def clear_unfinished_of(path: Path) -> None:
    """The same beside a file or folder, of its own temporary ones."""
    clear_unfinished(part for part in path.parent.glob(UNFINISHED) if part.name.startswith(f".{path.name}."))


def _beside(path: Path) -> Path:
    # no process's number: on a shared disk those of several machines are the same
    return path.with_name(f".{path.name}.{secrets.randbelow(10**9)}.tmp")


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Locked as long as this process lives, where the file system has locks: so `clear_unfinished` leaves it."""
    with _opened(path) as descriptor:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _to_disk(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, would outlive a power cut."""
    with _opened(path) as descriptor:
        os.fsync(descriptor)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def write_text(path: Path, content: str) -> None:
    """Write a file whole or not at all, and make its folder; what a killed process has left of it goes."""
    clear_unfinished_of(path)
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
    make_folder(path.parent)
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


def sealed(line: bytes) -> bytes:
    """A JSON object as a line that tells its own checksum, under a last key `crc32`."""
    return line[:-1] + _SEAL % zlib.crc32(line)


def unsealed(line: bytes) -> bytes:
    """The object of a `sealed` line; a line without a checksum as it is. Raises ValueError where it was damaged."""
    at = len(line) - len(_SEAL % 0)
    if not line.startswith(_SEAL_KEY, max(at, 0)):
        return line
    content = line[:at] + b"}"
    if line != sealed(content):
        raise ValueError("its checksum does not fit")
    return content


def read_json_lines(
    path: Path, what: str, parse: Callable[[bytes], Any] = json.loads, is_given: bool = False
) -> Iterator[Any]:
    """What `parse` makes of each whole line of a JSON Lines file; `what` a line is ("an answer").

    Damaged lines are left out, and told in one warning. `is_given`: a person has named the file. Raises UserError
    where it cannot be read, and where a given one holds something else.
    """
    n_whole = n_sealed = n_damaged = 0
    first = ""
    try:
        for number, line in whole_lines(path):
            n_sealed += _SEAL_KEY in line
            try:
                value = parse(unsealed(line))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                first = first or f"line {number}: {error}"
                n_damaged += 1
                continue
            n_whole += 1
            yield value
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if is_given and n_damaged and not n_whole and not n_sealed:
        raise UserError(f"{path} holds no line that is {what} ({first}); name another file, or remove it")
    if n_damaged:
        logger.warning(
            "%s: %d of %d lines are damaged and left out, as if they had not been written (%s is not %s)",
            path, n_damaged, n_damaged + n_whole, first, what,
        )  # fmt: skip


def checksum(file: BinaryIO) -> str:
    """CRC-32 of what is left to read of an open file, in eight digits."""
    crc = 0
    while block := file.read(_BLOCK):
        crc = zlib.crc32(block, crc)
    return f"{crc:08x}"


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
