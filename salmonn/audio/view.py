"""A file as libsndfile shall see it: where what a header says would make it stop before the end."""

import os
from collections.abc import Sequence
from typing import BinaryIO


class View:
    """Parts of a file and other bytes in a row, as long as it claims to be; what soundfile takes for a file.

    An error of the system is kept in `error`, for libsndfile would take it for the end of the file.
    """

    def __init__(self, file: BinaryIO, parts: Sequence[bytes | range], claims: int = 1) -> None:
        """Bytes as they are and ranges of the file's; it claims `claims` times its size."""
        self._descriptor, self._parts = file.fileno(), parts
        self._size = sum(map(len, parts))
        self._claimed = claims * self._size
        self._position = 0
        self.error: OSError | None = None

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a byte of the view; returns it."""
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._claimed}[whence]
        return self._position

    def tell(self) -> int:
        """The byte that is read next."""
        return self._position

    def readinto(self, buffer: memoryview) -> int:
        """Fill the buffer; returns how many bytes were left to do so. Behind what is there, all are 0."""
        if self._position > self._size:  # libmpg123 looks for a tag at the end that it was told of
            data = bytes(len(buffer))
        else:
            try:
                data = self._read(len(buffer))
            except OSError as error:
                self.error, data = error, b""
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _read(self, size: int) -> bytes:
        data, start = b"", 0
        for part in self._parts:
            first = self._position + len(data) - start  # byte of this part
            if 0 <= first < len(part):
                last = min(first + size - len(data), len(part))
                if isinstance(part, range):
                    data += os.pread(self._descriptor, last - first, part.start + first)
                else:
                    data += part[first:last]
            start += len(part)
        return data
