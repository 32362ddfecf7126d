"""Tables of Parquet or of Arrow's stream, in which recordings may lie; reading them needs pyarrow."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from salmonn.common.errors import UserError

_AT_ONCE = 16  # rows, with their recordings
_ENDINGS = {b"RIFF": ".wav", b"fLaC": ".flac", b"OggS": ".ogg"}
Rows = Callable[[Sequence[str]], Iterator[dict[str, Any]]]


@contextmanager
def open_table(path: Path) -> Iterator[tuple[Any, Rows]]:
    """A table's schema, and a function that gives the named columns a row at a time.

    Raises UserError, also while rows are read, for what cannot be read.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise UserError(f"{path}: to read it install pyarrow: pip install pyarrow ({error})") from error
    try:
        schema, batches = _open(path)
        yield schema, lambda names: (row for batch in batches(names) for row in batch.to_pylist())
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: no table of Parquet or Arrow that can be read: {error}") from error


def _open(path: Path) -> tuple[Any, Callable[[Sequence[str]], Iterator[Any]]]:
    if path.suffix == ".parquet":
        from pyarrow.parquet import ParquetFile

        file = ParquetFile(path)
        return file.schema_arrow, lambda names: file.iter_batches(_AT_ONCE, columns=list(names))
    from pyarrow import ipc, memory_map

    stream = ipc.open_stream(memory_map(str(path)))
    return stream.schema, lambda names: (batch.select(list(names)) for batch in stream)


def ending_of(recording: bytes) -> str:
    """How the name of a recording's file should end, by its first bytes; of MP3 these tell nothing."""
    return _ENDINGS.get(recording[:4], ".mp3")
