"""The index of an annotation file: made once, checked on the way, found again as long as the file stays the same.

One file `.NAME.index` beside the annotation file, or in the cache folder where that folder cannot
be written: a line of JSON, then a record per entry, then, where the annotation file is
compressed, its text. Both parts have a checksum: one that was damaged is made anew.
"""

import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np
from filelock import FileLock

from salmonn.common.errors import UserError
from salmonn.common.files import (
    OpenFile,
    checksum,
    clear_unfinished_of,
    home_folder,
    make_folder,
    replacing,
    sealed,
    unsealed,
)
from salmonn.common.packed import unpacked
from salmonn.common.spelling import did_you_mean
from salmonn.data.annotation_scan import RECORD, SHOWN_PROBLEMS, Place, scan

logger = logging.getLogger(__name__)

_VERSION = 6
_ALIGNMENT = 4096  # of the records in the index file


class _Version(msgspec.Struct):
    """What the first line of an index file of any version tells."""

    version: int


class Header(msgspec.Struct):
    """The first line of an index file."""

    version: int
    source_size: int
    source_mtime_ns: int
    source_ctime_ns: int
    n: int
    tasks: list[str]
    n_without_text: int
    without_text: list[int]  # the first few
    with_symbol: dict[str, tuple[int, list[Place]]]  # of end symbols that were looked for: how often, the first few
    text_offset: int  # of the text in the index file; 0 where the annotation file holds it
    content: str  # checksum of the text
    body: str = "0" * 8  # checksum of what follows this line


@dataclass(frozen=True)
class Index:
    """An opened index: where the text is, and a record per entry. The loader's processes get the same open files."""

    header: Header
    file: OpenFile
    start: int  # of the records in it
    text_path: Path
    text: OpenFile
    text_offset: int

    @cached_property
    def records(self) -> np.ndarray:
        """[n] RECORD, memory-mapped."""
        with os.fdopen(self.file.fileno(), "rb", closefd=False) as file:
            return np.memmap(file, RECORD, mode="r", offset=self.start, shape=(self.header.n,))

    def __reduce__(self) -> tuple:
        return Index, (self.header, self.file, self.start, self.text_path, self.text, self.text_offset)  # not `records`


def open_index(source: Path, end_sym: str = "") -> Index:
    """The index of an annotation file, made first if need be: once, however many processes ask for it.

    It tells where the end symbol stands in texts. Raises UserError for a file that cannot be read or has bad entries.
    """
    try:
        status = source.stat()
    except FileNotFoundError as error:
        raise UserError(f"annotation file {source} does not exist{did_you_mean(source, Path.is_file)}") from error
    except OSError as error:
        raise UserError(f"annotation file {source} cannot be read: {error}") from error
    if not source.is_file():
        raise UserError(f"annotation file {source} is not a file")
    for place in _places(source):
        if (index := _read_index(place, source, status)) and _knows(index, end_sym):
            return index
    problem = ""
    for place in filter(lambda place: _writable(place.parent), _places(source)):
        try:
            return _made_index(source, status, place, end_sym)
        except OSError as error:  # a disk that is full, or a quota
            problem = f" ({error})"
    raise UserError(
        f"no room for the index of {source}: {' and '.join(str(place.parent) for place in _places(source))} cannot "
        f"be written{problem}; set XDG_CACHE_HOME to a folder that can"
    )


def _made_index(source: Path, status: os.stat_result, place: Path, end_sym: str) -> Index:
    """The index at a place, made by this process or by another one before. Raises OSError where it has no room."""
    with _lock(place):
        if not (index := _read_index(place, source, status, tell=True)) or not _knows(index, end_sym):
            known = index.header.with_symbol if index else ()  # so that runs with different ones do not take turns
            _build(source, status, place, sorted({*known, *filter(None, [end_sym])}))
            index = _read_index(place, source, source.stat())
    if index is None:
        raise UserError(f"annotation file {source} changed while it was read; start again")
    return index


# ---- the index file


def _knows(index: Index, end_sym: str) -> bool:
    return not end_sym or end_sym in index.header.with_symbol


def _places(source: Path) -> list[Path]:
    """Beside the file, else in the cache folder, if there is one, under a name that tells apart files of one name."""
    beside, home = source.parent / f".{source.name}.index", home_folder()
    cache = os.environ.get("XDG_CACHE_HOME") or (home and home / ".cache")
    if not cache:
        return [beside]
    folder = hashlib.sha256(str(source.resolve().parent).encode()).hexdigest()[:16]
    return [beside, Path(cache) / "salmonn" / f"{source.name}.{folder}.index"]


def _writable(folder: Path) -> bool:
    try:
        make_folder(folder)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def _lock(place: Path) -> Iterator[None]:
    """One process builds, the others wait. Where files cannot be locked several build, each harmlessly."""
    try:
        lock = FileLock(f"{place}.lock")
        lock.acquire()
    except (NotImplementedError, OSError):
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _read_index(place: Path, source: Path, status: os.stat_result, tell: bool = False) -> Index | None:
    """The index at a place; None if there is none, if it was damaged, or belongs to another version of the file.

    `tell` of damage. Raises UserError for an annotation file that cannot be read.
    """
    try:
        opened = OpenFile.at(place)
        with os.fdopen(opened.fileno(), "rb", closefd=False) as file:
            line = file.readline(1 << 26)
            if msgspec.json.decode(line, type=_Version).version != _VERSION:
                return None
            header = msgspec.json.decode(unsealed(line), type=Header)
            if checksum(file) != header.body:
                raise ValueError("its checksum does not fit")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        if tell:
            logger.warning("%s is damaged and made anew: %s", place, error)
        return None
    start = _aligned(len(line))
    found = (header.source_size, header.source_mtime_ns, header.source_ctime_ns)
    if found != (status.st_size, status.st_mtime_ns, status.st_ctime_ns):
        return None
    if header.text_offset:
        return Index(header, opened, start, place, opened, header.text_offset)
    try:
        return Index(header, opened, start, source, OpenFile.at(source), 0)
    except OSError as error:
        raise UserError(f"annotation file {source} cannot be read: {error}") from error


def _aligned(position: int) -> int:
    return -(-position // _ALIGNMENT) * _ALIGNMENT


def _build(source: Path, status: os.stat_result, place: Path, end_symbols: Sequence[str]) -> None:
    """Write the index of a file to its place, whole or not at all."""
    with contextlib.ExitStack() as stack:
        text = stack.enter_context(_plain_text(source, place.parent))
        try:
            found = scan(source, text, end_symbols)
        except OSError as error:
            raise UserError(f"annotation file {source} cannot be read: {error}") from error
        compressed = source.suffix == ".gz"
        text.seek(0)
        header = Header(
            _VERSION, status.st_size, status.st_mtime_ns, status.st_ctime_ns, len(found.records), found.tasks,
            len(found.without_text), found.without_text[:SHOWN_PROBLEMS],
            {symbol: (len(places), places[:SHOWN_PROBLEMS]) for symbol, places in found.with_symbol.items()},
            text_offset=0, content=checksum(text),
        )  # fmt: skip
        if compressed:
            # the number's own length counts: an offset far enough for any header line
            header.text_offset = _aligned(len(_line(header)) + 32) + found.records.nbytes
        line = _line(header)
        clear_unfinished_of(place)
        with replacing(place) as temporary, temporary.open("w+b") as file:
            file.seek(_aligned(len(line)))
            file.write(found.records.data)  # tofile does not say that the disk is full
            if compressed:
                file.seek(header.text_offset)
                text.seek(0)
                shutil.copyfileobj(text, file)
            file.seek(len(line))
            header.body = checksum(file)  # as long as what stood in the line before
            file.seek(0)
            file.write(_line(header))


def _line(header: Header) -> bytes:
    return sealed(msgspec.json.encode(header))


@contextlib.contextmanager
def _plain_text(source: Path, folder: Path) -> Iterator[BinaryIO]:
    """The file's text; a compressed file is unpacked into a temporary one. Raises OSError where that has no room."""
    with contextlib.ExitStack() as stack:
        try:
            file: BinaryIO = stack.enter_context(source.open("rb"))
        except OSError as error:
            raise UserError(f"annotation file {source} cannot be read: {error}") from error
        if source.suffix == ".gz":
            plain = stack.enter_context(tempfile.TemporaryFile(dir=folder))
            for chunk in unpacked(source, file, source.stat().st_size, "annotation file "):
                plain.write(chunk)
            plain.seek(0)
            file = plain
        yield file
