"""Which way of listing recordings a file or folder has."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from salmonn.common.errors import UserError
from salmonn.common.files import visible
from salmonn.common.spelling import did_you_mean
from util.eval_sets.tables import decoded
from util.own_data.base import Reading, Row
from util.own_data.folders import EXTENSIONS, read_folder
from util.own_data.huggingface import SUFFIXES, read_huggingface
from util.own_data.kaldi import read_kaldi
from util.own_data.manifests import read_manifest
from util.own_data.tables import read_table

_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.tsv")  # of Hugging Face's folders of sound files
_PEEK = 1024  # bytes


def read(reading: Reading) -> Iterator[Row]:
    """The rows of a file or folder, by what it holds. Raises UserError."""
    source = reading.source
    if not source.exists():
        raise UserError(f"{source} does not exist{did_you_mean(source)}")
    if source.is_dir():
        yield from _read_folder(reading)
    elif source.suffix in SUFFIXES:
        yield from read_huggingface(reading)
    elif source.name in ("wav.scp", "text", "segments") and (source.parent / "wav.scp").is_file():
        yield from read_kaldi(Reading(source.parent, reading.columns, reading.needs_text))
    elif source.suffix.lower() in EXTENSIONS:
        raise UserError(f"{source} is a recording: give its folder, or a list of recordings")
    elif _is_json(source):
        yield from read_manifest(reading)
    else:
        yield from read_table(reading)


def _read_folder(reading: Reading) -> Iterator[Row]:
    folder = reading.source
    lists = [folder / name for name in _METADATA if (folder / name).is_file()]
    if (folder / "wav.scp").is_file():
        yield from read_kaldi(reading)
    elif lists:
        yield from read(Reading(lists[0], reading.columns, reading.needs_text))
    elif any(path.suffix in SUFFIXES for path in visible(folder, "**/*")):
        yield from read_huggingface(reading)
    else:
        yield from read_folder(reading)


def _is_json(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            start = file.read(_PEEK)
        if start.startswith(b"\x1f\x8b"):
            with gzip.open(path) as file:
                start = file.read(_PEEK)
            if not _begins_json(start):
                raise UserError(f"{path}: of what is compressed only JSON is read: unpack it first, gunzip {path}")
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    return _begins_json(start)


def _begins_json(start: bytes) -> bool:
    return decoded(start, "replace").lstrip().startswith(("{", "["))
