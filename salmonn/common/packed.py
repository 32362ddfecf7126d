"""Text that is compressed by gzip, unpacked as far as it may be text."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from salmonn.common.errors import UserError

_CHUNK = 1 << 20  # bytes
_MOST_OF_SIZE, _SMALL = 300, 1 << 26  # what a file may unpack to: times its size, or bytes


def unpacked(path: Path, file: BinaryIO, size: int, what: str = "") -> Iterator[bytes]:
    """The content of a compressed file of that many bytes; a message begins with `what` it is.

    Raises UserError for damage, and for what only fills disks and memory.
    """
    done = 0
    with gzip.open(file) as packed:
        while True:
            try:
                chunk = packed.read(_CHUNK)
            except (OSError, EOFError, zlib.error) as error:
                raise UserError(f"{what}{path} cannot be read: {error}") from error
            if not chunk:
                return
            done += len(chunk)
            if done > max(_SMALL, _MOST_OF_SIZE * size):
                raise UserError(
                    f"{what}{path} unpacks to more than {_MOST_OF_SIZE} times its size, which no text does; "
                    "if it is right, give it unpacked"
                )
            yield chunk
