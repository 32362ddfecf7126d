"""A file of which little is in memory: as its bytes, and as libsndfile shall see it."""

import os
import re
from collections.abc import Sequence
from typing import BinaryIO

_BLOCK, _BEHIND = 1 << 20, 1 << 13  # bytes that are read at once, and of them those before the one that is asked for


class Bytes:
    """The bytes of a file from one on, for slices that move forward. Raises OSError where it cannot be read."""

    def __init__(self, file: BinaryIO, start: int = 0, size: int | None = None) -> None:
        """`size`: how many of them; None: up to its end."""
        self._descriptor, self._start = file.fileno(), start
        self._size = os.fstat(self._descriptor).st_size - start if size is None else size
        self._at, self._block = 0, b""  # what is in memory

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        first, last, _ = part.indices(self._size)
        if not self._at <= first <= last <= self._at + len(self._block):
            self._at = max(0, first - _BEHIND)
            self._block = os.pread(self._descriptor, max(_BLOCK, last - self._at), self._start + self._at)
        return self._block[first - self._at : last - self._at]

    def find(self, what: bytes, position: int = 0) -> int:
        """The first byte from `position` on at which it stands; -1 for nowhere."""
        return self.search(re.compile(re.escape(what)), len(what), position)

    def search(self, pattern: re.Pattern[bytes], size: int, position: int = 0, stop: int | None = None) -> int:
        """The first byte from `position` on, and before `stop`, at which a pattern of so many bytes stands; else -1."""
        stop = len(self) if stop is None else stop
        while position < stop and len(self[position : position + size]) == size:  # which brings more into memory
            if found := pattern.search(self._block, position - self._at, stop + size - 1 - self._at):
                return self._at + found.start()
            position = self._at + len(self._block) - size + 1
        return -1


class View:
    """Parts of a file and other bytes in a row, as long as it claims to be; what soundfile takes for a file.

    So libsndfile goes on where what a header says would make it stop before the end.

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
