"""Whether an Ogg file is whole. libsndfile plays what is left of a cut or damaged one as if that were all."""

import struct
from pathlib import Path

_HEADER = struct.Struct("<4sBBqIIIB")  # capture, version, flags, granule position, serial, page, crc, segments
_LAST_PAGE = 4  # flag of the page that ends a stream
_MAX_PAGE = 27 + 255 + 255 * 255  # bytes
_OPUS_RATE = 48_000  # Hz in which Opus counts, whatever the file's rate


def ogg_problem(path: str | Path, rate: int, frames: int, subtype: str) -> str | None:
    """What is wrong with the end of an Ogg file of which `frames` at `rate` Hz can be decoded; None if nothing.

    A whole file ends with the last page of its stream, and the position in that page is its length.
    """
    with Path(path).open("rb") as file:
        head = file.read(_MAX_PAGE)
        size = file.seek(0, 2)
        file.seek(max(0, size - _MAX_PAGE))
        tail = file.read()
    start = tail.rfind(b"OggS")
    if start < 0 or len(tail) - start < _HEADER.size:
        return "truncated: it ends within a page of the Ogg stream"
    _, _, flags, position, _, _, _, segments = _HEADER.unpack_from(tail, start)
    sizes = tail[start + _HEADER.size : start + _HEADER.size + segments]
    if len(sizes) < segments or start + _HEADER.size + segments + sum(sizes) > len(tail):
        return "truncated: it ends within a page of the Ogg stream"
    if not flags & _LAST_PAGE:
        return "truncated: the last page of the Ogg stream is missing"
    if subtype == "OPUS":
        start = head.find(b"OpusHead") + len(b"OpusHead") + 2  # version, channels, then what the encoder put in front
        skipped = int.from_bytes(head[start : start + 2], "little")
        whole = abs((position - skipped) * rate / _OPUS_RATE - frames) <= 1
    else:
        whole = position == frames
    return None if whole else f"damaged: only {frames} samples can be decoded of what its last page counts"
