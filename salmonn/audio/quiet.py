"""Keeps what libraries written in C print out of a command's answers and its log."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

_lock, _users = Lock(), 0
_streams: list[tuple[ctypes.c_void_p, int | None]] = []  # C's stdout and stderr, and what they are
_nowhere: int | None = None
if "CS_GNU_LIBC_VERSION" in os.confstr_names:  # elsewhere these are no variables that one may set
    _libc = ctypes.CDLL(None)
    _libc.fopen.restype = ctypes.c_void_p
    _nowhere = _libc.fopen(os.devnull.encode(), b"w")
    for _name in ("stdout", "stderr") if _nowhere else ():
        _stream = ctypes.c_void_p.in_dll(_libc, _name)
        _streams.append((_stream, _stream.value))


@contextmanager
def no_prints_of_c() -> Iterator[None]:
    """Meanwhile what C prints goes nowhere; Python prints as ever, in other threads, too (glibc; else no change)."""
    global _users
    with _lock:
        _users += 1
        for stream, _ in _streams:
            stream.value = _nowhere
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            for stream, own in _streams if not _users else ():
                stream.value = own
