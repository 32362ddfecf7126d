"""A file as libsndfile shall see it: where what a header says would make it stop before the end."""

import os
from collections.abc import Mapping
from typing import BinaryIO


class View:
    """A part of a file with some bytes replaced, and as long as it claims to be; what soundfile takes for a file.

    An error of the system is kept in `error`, for libsndfile would take it for the end of the file.
    """

    def __init__(
        self,
        file: BinaryIO,
        start: int = 0,
        stop: int | None = None,
        replaced: Mapping[int, bytes] | None = None,
        claims: int = 1,
    ) -> None:
        """From byte `start` to `stop`; `replaced`: {offset in the view: bytes}; it claims `claims` times its size."""
        self._descriptor, self._start = file.fileno(), start
        self._size = (os.fstat(self._descriptor).st_size if stop is None else stop) - start
        self._replaced, self._claimed = replaced or {}, claims * self._size
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
        at = self._position
        try:
            data = os.pread(self._descriptor, min(len(buffer), max(self._size - at, 0)), self._start + at)
        except OSError as error:
            self.error, data = error, b""
        if at > self._size:  # libmpg123 looks for a tag at the end that it was told of
            data = bytes(len(buffer))
        buffer[: len(data)] = data
        for offset, new in self._replaced.items():
            first, last = max(at, offset), min(at + len(data), offset + len(new))
            if first < last:
                buffer[first - at : last - at] = new[first - offset : last - offset]
        self._position += len(data)
        return len(data)
