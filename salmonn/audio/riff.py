"""Where the samples of a file made of chunks are (WAV, AIFF, CAF, AU), and whether its header leaves some out."""

import os
import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

STREAMED_SIZE = 0x7FFFF000  # sizes from here on mean "not known", as programs write that cannot seek back


class _Layout(NamedTuple):
    samples: bytes  # name of the chunk that holds them
    chunk: struct.Struct  # name and size, before each chunk
    first: int = 12  # byte at which the first chunk begins


_LITTLE, _BIG = struct.Struct("<4sI"), struct.Struct(">4sI")
_LAYOUTS = {
    b"RIFF": _Layout(b"data", _LITTLE),
    b"RF64": _Layout(b"data", _LITTLE),
    b"BW64": _Layout(b"data", _LITTLE),
    b"RIFX": _Layout(b"data", _BIG),
    b"FORM": _Layout(b"SSND", _BIG),
    b"caff": _Layout(b"data", struct.Struct(">4sq"), first=8),
}
_KINDS = (b"WAVE", b"AIFF", b"AIFC")
_NOT_METADATA = {*_LAYOUTS, *(layout.samples for layout in _LAYOUTS.values())}
_MAY_BE_CUT = (b"LIST", b"id3 ", b"ID3 ")  # no samples are lost
_HARMLESS = 1024  # bytes behind the samples that belong to nothing, such as a tag
_BLOCK = 65_536  # bytes that may be filled with zeros
_MPEG_CODECS = (0x50, 0x55)


class SampleBytes(NamedTuple):
    """The samples in a file."""

    start: int
    size: int  # as far as they are there
    is_unfinished: bool  # the header says 0, as a recorder leaves it that was stopped; what is there counts
    is_mpeg: bool  # an mp3 in a WAV


def find_samples(path: Path) -> SampleBytes | None:
    """The samples of a file made of chunks; None for others. Raises ValueError where more is there than it says."""
    with path.open("rb") as file:
        total, magic = os.fstat(file.fileno()).st_size, file.read(12)
        if magic[:4] == b".snd" and len(magic) == 12:  # AU: a header, then nothing but samples
            start, size = struct.unpack(">II", magic[4:])
            _refuse_more(size, total - start - size)
        layout = _LAYOUTS.get(magic[:4])
        if not layout or (layout.first == 12 and magic[8:] not in _KINDS):
            return None
        codec, large_size, position = 0, None, layout.first
        while head := _chunk(file, position, layout):
            name, size = head
            start = position + layout.chunk.size
            if name == b"fmt " and layout.chunk is _LITTLE:
                codec = int.from_bytes(file.read(2), "little")
            elif name == b"ds64":
                large_size = struct.unpack("<8xQ", file.read(16).ljust(16, b"\0"))[0]
            elif name == layout.samples:
                size = large_size if large_size is not None and size == 0xFFFFFFFF else size
                return _samples(file, start, size, total, layout, codec in _MPEG_CODECS)
            if size < 0:
                return None
            position = start + size + size % 2
    return None


def _samples(file: BinaryIO, start: int, size: int, total: int, layout: _Layout, is_mpeg: bool) -> SampleBytes:
    is_told = 0 <= size < STREAMED_SIZE
    left = total - start - size
    is_more = is_told and left > 0 and not _is_metadata(file, start + size, total, layout)
    if is_more:
        _refuse_more(size, left)
    if is_mpeg and is_told and left < 0:  # elsewhere libsndfile sees it
        raise ValueError(f"truncated: its header says {size} bytes of samples, it has {total - start}")
    there = size if is_told and 0 < size <= total - start else total - start
    return SampleBytes(start, there, is_more and layout is _LAYOUTS[b"RIFF"], is_mpeg)


def _refuse_more(size: int, left: int) -> None:
    if size and left > _HARMLESS:
        raise ValueError(
            f"lying header: it says {size} bytes of samples, and {left} more follow; "
            "write it anew with the right size (a WAV: ffmpeg -ignore_length 1 -i FILE NEW.wav)"
        )


def _chunk(file: BinaryIO, position: int, layout: _Layout) -> tuple[bytes, int] | None:
    """Name and size of the chunk at a byte; None where there is none."""
    file.seek(position)
    head = file.read(layout.chunk.size)
    is_one = len(head) == layout.chunk.size and all(32 <= byte < 127 for byte in head[:4])
    return layout.chunk.unpack(head) if is_one else None


def _is_metadata(file: BinaryIO, position: int, total: int, layout: _Layout) -> bool:
    """Whether only chunks without samples follow, or next to nothing, or zeros to fill a block."""
    if any(_are_chunks(file, at, total, layout) for at in (position, position + 1)):  # not all fill up to an even size
        return True
    file.seek(position)
    rest = file.read(_BLOCK + 1)
    return len(rest) <= _HARMLESS or (len(rest) <= _BLOCK and not any(rest))


def _are_chunks(file: BinaryIO, position: int, total: int, layout: _Layout) -> bool:
    while position + layout.chunk.size <= total:
        head = _chunk(file, position, layout)
        if not head or head[0] in _NOT_METADATA or head[1] < 0:
            return False
        position += layout.chunk.size + head[1] + head[1] % 2
        if position > total + 1 and head[0] not in _MAY_BE_CUT:
            return False
    return True
