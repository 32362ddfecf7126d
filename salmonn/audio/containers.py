"""What a header says of the samples against what is there: libsndfile plays what is left of a cut file as if all."""

import os
import re
import struct
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import BinaryIO, NamedTuple

from salmonn.audio.joined import HEAD, require_no_file
from salmonn.audio.view import Bytes

STREAMED_SIZE = 0x7FFFF000  # bytes; programs that cannot seek back write such sizes
_UNKNOWN = (1 << 31, 1 << 32)  # bytes; sizes about these mean "not known" ...
_ABOUT = 4096  # ... by so many
_HARMLESS = 1024  # bytes behind the samples that belong to nothing, such as a tag
_BLOCK = 65_536  # bytes that may be filled with zeros
_MOST_CHUNKS = 100_000  # of a file
_MAY_BE_CUT = (b"LIST", b"id3 ", b"ID3 ")  # no samples are lost
_MPEG_CODECS = (0x50, 0x55)


class _Layout(NamedTuple):
    samples: bytes  # name of the chunk that holds them
    chunk: struct.Struct  # name and size, before each chunk
    first: int = 12  # byte at which the first chunk begins


_LITTLE, _BIG = struct.Struct("<4sI"), struct.Struct(">4sI")
_LAYOUTS = {
    **dict.fromkeys((b"RIFFWAVE", b"RF64WAVE", b"BW64WAVE"), _Layout(b"data", _LITTLE)),
    b"RIFXWAVE": _Layout(b"data", _BIG),
    **dict.fromkeys((b"FORMAIFF", b"FORMAIFC"), _Layout(b"SSND", _BIG)),
    **dict.fromkeys((b"FORM8SVX", b"FORM16SV"), _Layout(b"BODY", _BIG)),
    b"caff": _Layout(b"data", struct.Struct(">4sq"), first=8),
}
_COMM = struct.Struct(">HIH10x4s")  # of an AIFF: channels, frames, bits, rate; its codec, where it tells one (AIFC)
_AIFC_PLAIN = (b"NONE", b"twos", b"sowt", b"raw ")
_AIFC_BYTES = {  # of a frame of one channel
    **dict.fromkeys((b"ulaw", b"ULAW", b"alaw", b"ALAW"), 1),
    **{b"in24": 3, b"42ni": 3, b"in32": 4, b"23ni": 4, b"fl32": 4, b"FL32": 4, b"fl64": 8, b"FL64": 8, b"ima4": 34},
}
ASF_PARTS = [  # names of what an ASF (wma) is made of: header, packets, indices, XMP (Adobe's tags)
    bytes.fromhex(name)
    for name in (
        "3026b2758e66cf11a6d900aa0062ce6c", "3626b2758e66cf11a6d900aa0062ce6c", "90080033b1e5cf1189f400a0c90349cb",
        "d329e2d6da35d111903400a0c90349be", "f803b1fead12644c840f2a1d2f7ad48c", "d03fb73c4a0c0348953dedf7b6228f0c",
        "cbcf7abea997e8429c71999491e3afac",
    )
]  # fmt: skip
_ASF_EMPTY = 50  # bytes of a part for packets without one, as live recorders leave it
_NOT_METADATA = {*(name[:4] for name in _LAYOUTS), *(layout.samples for layout in _LAYOUTS.values())}


class SampleBytes(NamedTuple):
    """The samples in a file."""

    start: int
    size: int  # as far as they are there
    is_unfinished: bool  # the header says 0, as a recorder leaves it that was stopped; what is there counts
    is_mpeg: bool  # an mp3 in a WAV


def find_samples(path: Path) -> SampleBytes | None:
    """The samples of a file made of chunks; None for others.

    Raises ValueError where the header of any container says more than is there, or less than is.
    """
    with path.open("rb") as file:
        total, magic = os.fstat(file.fileno()).st_size, file.read(12)
        if layout := _LAYOUTS.get(magic[:4] + magic[8:]) or _LAYOUTS.get(magic[:4]):
            return _in_chunks(file, total, layout)
        if end_of := next((reader for name, reader in _ENDS.items() if magic.startswith(name)), None):
            try:
                end = end_of(file)
            except struct.error:
                raise ValueError("truncated: it ends within its header") from None
            if end is not None:
                _compare(end, total)
    return None


def _in_chunks(file: BinaryIO, total: int, layout: _Layout) -> SampleBytes | None:
    codec, large_size = 0, None
    for name, size, start in _chunks(file, layout):
        if name == b"fmt " and layout.chunk is _LITTLE:
            codec = int.from_bytes(file.read(2), "little")
        elif name == b"ds64":
            large_size = struct.unpack("<8xQ", file.read(16).ljust(16, b"\0"))[0]
        elif name == layout.samples:
            size = large_size if large_size is not None and size == 0xFFFFFFFF else size
            found = _samples(file, start, size, total, layout, codec in _MPEG_CODECS)
            if name == b"SSND":
                _require_frames(file, found, layout)
            return found
    return None


def _samples(file: BinaryIO, start: int, size: int, total: int, layout: _Layout, is_mpeg: bool) -> SampleBytes:
    end, is_more = start + size, False
    if _is_told(size):
        is_more = end < total and not _is_metadata(file, end, total, layout)
        if end > total or (is_more and size):
            _compare(end, total)
    there = size if 0 < size <= total - start else total - start
    return SampleBytes(start, there, is_more and layout is _LAYOUTS[b"RIFFWAVE"], is_mpeg)


def _require_frames(file: BinaryIO, samples: SampleBytes, layout: _Layout) -> None:
    """Raise ValueError where an AIFF counts more frames than its samples are, whatever their chunk's size says."""
    file.seek(samples.start)
    there = samples.size - 8 - int.from_bytes(file.read(4))  # behind two numbers, and as many bytes as the first says
    for name, size, start in _chunks(file, layout):
        if name == b"COMM" and size >= _COMM.size - 4:
            file.seek(start)
            channels, frames, bits, codec = _COMM.unpack(file.read(_COMM.size).ljust(_COMM.size, b"\0"))
            codec = b"NONE" if size < _COMM.size else codec
            frame = channels * _AIFC_BYTES.get(codec, (bits + 7) // 8 if codec in _AIFC_PLAIN else 0)
            if frames * frame > there:
                raise ValueError(f"truncated: its header says {frames} frames, and its samples are {there // frame}")


def _is_told(size: int) -> bool:
    return 0 <= size < 1 << 62 and min(abs(size - unknown) for unknown in _UNKNOWN) > _ABOUT


def _compare(end: int, total: int) -> None:
    """Raise ValueError unless the samples end about where the file does."""
    if end > total:
        raise ValueError(f"truncated: by its header its samples end at byte {end}, the file at byte {total}")
    if total - end > _HARMLESS:
        raise ValueError(
            f"lying header: it says that its samples end at byte {end}, and {total - end} bytes more follow; "
            "write it anew with the right size (a WAV: ffmpeg -ignore_length 1 -i FILE NEW.wav)"
        )


def _chunks(file: BinaryIO, layout: _Layout) -> Iterator[tuple[bytes, int, int]]:
    """Name, size and first byte of each chunk of a file. Raises ValueError for more than any file has."""
    position = layout.first
    for _ in range(_MOST_CHUNKS):
        if not (head := _chunk(file, position, layout)):
            return
        name, size = head
        start = position + layout.chunk.size
        yield name, size, start
        if size < 0:
            return
        position = start + size + size % 2
    raise ValueError(f"damaged: it has more than {_MOST_CHUNKS} chunks")


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


# ---- the byte at which the samples end by the header, None where it does not say; struct.error for a cut header


def _end_of_au(file: BinaryIO) -> int | None:
    start, size = struct.unpack(">4xII", _bytes(file, 0, 12))
    return start + size if size and _is_told(size) else None


def _end_of_sphere(file: BinaryIO) -> int | None:
    (size,) = struct.unpack("8x8s", _bytes(file, 0, 16))
    header = _bytes(file, 0, int(size) if size.strip().isdigit() else 0)
    fields = {name: int(value) for name, value in re.findall(rb"(?m)^(\w+) +-\w+ +(\d+)\s*$", header)}
    sizes = [fields.get(name, 0) for name in (b"sample_count", b"channel_count", b"sample_n_bytes")]
    return len(header) + prod(sizes) if all(sizes) else None


def _end_of_voc(file: BinaryIO) -> int | None:
    (position,) = struct.unpack("<20xH", _bytes(file, 0, 22))
    while kind := _bytes(file, position, 1):  # kind of a block and its size, until one of kind 0
        if kind == b"\0":
            return position + 1
        position += 4 + int.from_bytes(_bytes(file, position + 1, 3), "little")
    return position


def _end_of_avi(file: BinaryIO) -> int | None:
    if _bytes(file, 8, 4) != b"AVI ":
        return None
    position = 0
    while head := _chunk(file, position, _LAYOUTS[b"RIFFWAVE"]):  # those inside others, too: none may be damaged
        name, size = head
        position += 12 if name in (b"RIFF", b"LIST") else 8 + size + size % 2
    if len(_bytes(file, position, _HARMLESS + 1)) > _HARMLESS:
        raise ValueError(f"damaged: no chunk begins at byte {position}, where one should")
    return position


def _end_of_w64(file: BinaryIO) -> int | None:
    (size,) = struct.unpack("<16xQ", _bytes(file, 0, 24))
    return size if size and _is_told(size) else None


def _end_of_ebml(file: BinaryIO) -> int | None:
    """Of a Matroska or WebM; inside its segments and clusters, too, of which live recorders do not tell the size."""
    position = 0
    while head := _bytes(file, position, HEAD):
        if not head.startswith(b"\x1a\x45\xdf\xa3"):  # of those FFmpeg hears one after the other
            require_no_file(head)
        name_bytes = _ebml_number(head)[1]
        size, size_bytes = _ebml_number(head[name_bytes:])
        if not (name_bytes and size_bytes):
            return None  # damage, or the end within an element's head: FFmpeg tells one from the other
        is_known = size + 1 < 1 << 7 * size_bytes
        if is_known and position + name_bytes + size_bytes + size > os.fstat(file.fileno()).st_size:
            return position + name_bytes + size_bytes + size
        is_outer = head[:name_bytes] in (b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75")
        if not (is_known or is_outer):
            return None
        position += name_bytes + size_bytes + (0 if is_outer else size)
    return None


def _ebml_number(data: bytes) -> tuple[int, int]:
    """A number without the bit that tells how many bytes it has, and these; 0 of them where there is none."""
    n = 9 - data[0].bit_length() if data else 9
    if n > 8 or len(data) < n:
        return 0, 0
    return int.from_bytes(data[:n]) & (1 << 7 * n) - 1, n


def _end_of_flv(file: BinaryIO) -> int | None:
    position = int.from_bytes(_bytes(file, 5, 4)) + 4
    while head := _bytes(file, position, 4):  # kind of a tag and its size, which stands behind it again
        if head[0] & 31 not in (8, 9, 18):
            return None
        position += 15 + int.from_bytes(head[1:])
    return position


def _end_of_asf(file: BinaryIO) -> int | None:
    total, position, (name, size) = os.fstat(file.fileno()).st_size, 0, _asf_object(file, 0)
    while name in ASF_PARTS and not (position and name == ASF_PARTS[0]):
        if size <= _ASF_EMPTY or not _is_told(size):
            return None  # of a live stream it is not known
        position += size
        if position > total:
            return position
        name, size = _asf_object(file, position)
    is_another_behind = Bytes(file, position).find(ASF_PARTS[0]) >= 0  # which is told in other words
    return position if position and not is_another_behind else None


def _asf_object(file: BinaryIO, position: int) -> tuple[bytes, int]:
    head = _bytes(file, position, 24)
    return head[:16], int.from_bytes(head[16:], "little")


def _end_of_mpeg(file: BinaryIO) -> int | None:
    position = 0
    while (head := _bytes(file, position, 14))[:3] == b"\0\0\1":
        if head[3:4] == b"\xba":  # a pack, of MPEG-2 or MPEG-1
            position += 14 + (head[-1] & 7) if head[4:5] >= b"\x40" else 12
        else:
            position += 4 if head[3:4] == b"\xb9" else 6 + int.from_bytes(head[4:6])
    return None if head else position


_ENDS = {
    b".snd": _end_of_au,
    b"NIST_1A": _end_of_sphere,
    b"Creative Voi": _end_of_voc,
    b"RIFF": _end_of_avi,
    b"\x1a\x45\xdf\xa3": _end_of_ebml,
    b"FLV\1": _end_of_flv,
    b"\0\0\1\xba": _end_of_mpeg,
    ASF_PARTS[0][:12]: _end_of_asf,
    b"riff\x2e\x91\xcf": _end_of_w64,
}


def _bytes(file: BinaryIO, position: int, size: int) -> bytes:
    file.seek(position)
    return file.read(size)
