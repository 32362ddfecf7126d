"""The second decoder: FFmpeg's libraries (PyAV), for what libsndfile does not read."""

import ctypes
import errno
import io
import os
import re
import shlex
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from salmonn.audio.containers import ASF_PARTS
from salmonn.audio.joined import HEAD, require_no_file
from salmonn.audio.mp3 import TAG_HEAD, after_tags, before_tags
from salmonn.audio.sound import Sound
from salmonn.audio.view import Bytes

if TYPE_CHECKING:
    from av import AudioFrame
    from av.container import InputContainer

_SLACK_SECONDS = 0.15  # two frames of a codec, of which a header may count more than are decoded
_GAP_SECONDS = {"asf": 0.25}  # whose times are within a frame of what is decoded
_OTHER_GAP_SECONDS = 0.5  # Opus may leave out 0.4 s of silence
_MAGIC = {  # FFmpeg's name: (where, what); asking for it by name, nothing else is taken for sound by chance
    "mov": (4, (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")),
    "matroska": (0, (b"\x1a\x45\xdf\xa3",)),
    "ogg": (0, (b"OggS",)),
    "aac": (0, (b"\xff\xf0", b"\xff\xf1", b"\xff\xf8", b"\xff\xf9")),
    "amr": (0, (b"#!AMR",)),
    "asf": (0, (ASF_PARTS[0][:8],)),
    "wv": (0, (b"wvpk",)),
    "caf": (0, (b"caff",)),  # of which libsndfile reads some codecs
    "flv": (0, (b"FLV\1",)),
    "avi": (8, (b"AVI ",)),
    "mpeg": (0, (b"\0\0\1\xba",)),
    "tta": (0, (b"TTA1",)),
}
_UNHEARD = {  # known by name only: nobody has made sure that FFmpeg tells a damaged one from a whole one
    "ac3": (0, (b"\x0b\x77",)),
    "dts": (0, (b"\x7f\xfe\x80\x01",)),
    "rm": (0, (b".RMF",)),
    "nut": (0, (b"nut/",)),
    "ape": (0, (b"MAC ",)),
    "mpc": (0, (b"MP+", b"MPCK")),
    "dsf": (0, (b"DSD ",)),
    "dff": (0, (b"FRM8",)),
    "shn": (0, (b"ajkg",)),
    "tak": (0, (b"tBaK",)),
    "optimfrog": (0, (b"OFR ",)),
    "mxf": (0, (b"\x06\x0e\x2b\x34",)),
    "wtv": (0, (b"\xb7\xd8\x00\x20\x37\x49\xda\x11",)),
}
_BOXES = b"ftyp moov mdat free skip wide udta uuid meta styp sidx moof mfra prft emsg".split()
_PARTS = {  # how the parts in a row begin, with name and size, and names that are common
    "mov": (struct.Struct(">I4s"), _BOXES),
    "asf": (struct.Struct("<16sQ"), ASF_PARTS),
}
_HEADERS = (b"moov", ASF_PARTS[0])  # the part of which a file has one
_BEGINNINGS = {  # what stands once in a file; looked for behind those parts
    "mov": (b"\0\0\0\x6cmvhd", b"\0\0\0\x78mvhd"),
    "asf": ASF_PARTS[:1],
    "flv": (b"FLV\1\1\0\0\0\t", b"FLV\1\4\0\0\0\t", b"FLV\1\5\0\0\0\t"),
    "tta": (b"TTA1\1\0",),
}
_LARGEST_BLOCK = 96 << 20  # bytes that FFmpeg may ask for at once: more than the index of a day of sound takes
_LARGEST_FRAME = 2_000_000  # samples in all channels; of a TTA it is a second, of an ALAC up to 2**24
_OPTIONS = {"max_samples": str(_LARGEST_FRAME)}  # of all decoders
_COUNTS = ((b"stsz", 12), (b"trun", 8))  # tables of an MP4's samples, and how far behind the name their number is
_TIME = re.compile(rb"tfhd.{4}(.{4}).*?tfdt(?:\x00.{3}(.{4})|\x01.{3}(.{8}))", re.DOTALL)  # of a fragment: track, begin
_PACKETS = ((0, 188), (4, 192))  # of MPEG-TS: where the first begins, bytes of each
_OF_SOUND = re.compile(rb"\0\0\x01[\xbd\xc0-\xdf]")  # how its parts in MPEG-TS begin
_LAST_PACKETS = 50_000  # of MPEG-TS: those in which a part that is not whole has begun


def container_of(path: Path) -> str | None:
    """FFmpeg's name for what a file is by its first bytes; None for what is not to be read in this way."""
    with path.open("rb") as file:
        file.seek(after_tags(file.read(TAG_HEAD)))
        head = file.read(1024)
    if _packet_bytes(head):
        return "mpegts"
    return next((name for name, (at, magics) in (_MAGIC | _UNHEARD).items() if head[at:].startswith(magics)), None)


def _packet_bytes(head: bytes) -> int:
    """The size of an MPEG-TS file's packets; 0 where it is none."""
    return next((size for first, size in _PACKETS if {*head[first::size][:4]} == {ord("G")}), 0)


class _File(io.FileIO):
    """A file in which a damaged one may lead FFmpeg to places that cannot be: that is no error of the system."""

    start = 0  # byte at which it begins for FFmpeg, which would unpack whatever a tag in front holds
    end: int | None = None  # byte at which it ends for FFmpeg, which takes tags behind a WavPack for damage

    def read(self, size: int | None = -1) -> bytes:
        """So many bytes, fewer at the end."""
        if self.end is not None:
            left = max(0, self.end - super().tell())
            size = left if size is None or size < 0 else min(size, left)
        return super().read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a byte; -1, for FFmpeg, where there can be none."""
        try:
            return super().seek(offset + (self.start if whence == io.SEEK_SET else 0), whence) - self.start
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return -1

    def tell(self) -> int:
        """The byte that is read next."""
        return super().tell() - self.start


@contextmanager
def open_with_ffmpeg(path: Path, container_name: str) -> Iterator[Sound]:
    """A file whose first audio stream is decoded. Raises ValueError for damage, and where nothing here decodes it."""
    if container_name in _UNHEARD:
        raise ValueError(f"undecodable: such a file ({container_name}) is not read; convert it: {_conversion(path)}")
    try:
        import av  # takes a while, and most files never need it
    except ImportError as error:
        raise ValueError(  # of the machine, not of the file: so no verdict comes of it
            f"unreadable: libsndfile does not read such a file ({container_name}), and PyAV is not installed; "
            f"pip install av, or convert it: {_conversion(path)}"
        ) from error
    _limit_memory(av._core.__file__)
    with _File(path) as file:  # not by its path: so errors of the system come as they are
        start = after_tags(file.read(TAG_HEAD))
        file.seek(0)
        if container_name == "mov":
            _require_bytes_for_samples(file)
        if container_name in _BEGINNINGS:
            _require_one(file, container_name)
        elif container_name == "wv":
            file.end = before_tags(file)
        elif container_name == "mpegts":
            _require_whole_parts(file, _packet_bytes(file.read(1024)))
        file.start = start
        file.seek(0)
        try:
            with av.open(file, "r", format=container_name, options=_OPTIONS) as container:
                yield _sound(container)
        except av.error.PatchWelcomeError as error:
            raise ValueError("undecodable: FFmpeg reads no streams of several rates or channels in a row") from error
        except av.FFmpegError as error:
            raise ValueError(f"undecodable: FFmpeg says {error.strerror}") from error


@cache
def _limit_memory(library: str) -> None:
    """Let FFmpeg, which this library is linked to, refuse what a few bytes of a header may ask it for."""
    ctypes.CDLL(library).av_max_alloc(ctypes.c_size_t(_LARGEST_BLOCK))


def _require_bytes_for_samples(file: BinaryIO) -> None:
    """Raise ValueError where tables of an MP4 count more samples than it has bytes: FFmpeg makes an index of all."""
    position, total, counted = 0, os.fstat(file.fileno()).st_size, 0
    while position + 16 <= total:
        file.seek(position)
        size, name, large_size = struct.unpack(">I4sQ", file.read(16))
        size = {0: total - position, 1: large_size}.get(size, size)
        if size < 8:
            break
        box = Bytes(file, position, 0 if name == b"mdat" else min(size, total - position))
        for table, behind in _COUNTS:
            at = -1
            while (at := box.find(table, at + 1)) >= 0:
                counted += int.from_bytes(box[at + behind : at + behind + 4])
        position += size
    if counted > total:
        raise ValueError(f"damaged: its tables count {counted} samples, in a file of {total} bytes")


def _conversion(path: Path) -> str:
    """The command that makes a file of it that is read everywhere."""
    return shlex.join(["ffmpeg", "-i", str(path), str(path.with_suffix(".wav" if path.suffix == ".flac" else ".flac"))])


def _require_whole_parts(file: BinaryIO, size: int) -> None:
    """Raise ValueError where an MPEG-TS of packets of that size ends within one, or within a part made of several."""
    total = os.fstat(file.fileno()).st_size
    if total % size:
        raise ValueError("truncated: it ends within a packet of the stream")
    missing: dict[int, int] = {}  # bytes of the part of a sound that has begun, by stream; < 0 where it does not say
    file.seek(max(0, total - _LAST_PACKETS * size))
    while packet := file.read(size)[-188:]:
        stream, kind = int.from_bytes(packet[1:3]) & 0x1FFF, packet[3] >> 4
        content = packet[5 + packet[4] if kind & 2 else 4 :] if kind & 1 else b""
        if packet[1] & 0x40 and _OF_SOUND.match(content):
            missing[stream] = int.from_bytes(content[4:6]) + 6 if any(content[4:6]) else 0
        if stream in missing:
            missing[stream] -= len(content)
    if any(left > 0 for left in missing.values()):
        raise ValueError("truncated: the last part of the stream is not whole")


def _require_one(file: BinaryIO, container_name: str) -> None:
    """Raise ValueError where another file, or parts of one, were put behind the first, which FFmpeg would pass over."""
    parts = list(_parts(file, *_PARTS[container_name])) if container_name in _PARTS else []
    headers = sum(name in _HEADERS for name, _ in parts)
    rest = Bytes(file, parts[-1][1].stop if parts else 0)
    if parts:
        require_no_file(rest[:HEAD])
    for beginning in _BEGINNINGS[container_name]:
        at = -1
        while headers < 2 and (at := rest.find(beginning, at + 1)) >= 0:
            headers += 1
    if headers > 1:
        raise ValueError(
            "several files one behind the other, of which the first alone would be heard: decode and encode them once"
        )
    _require_order(file, [place for name, place in parts if name == b"moof"])


def _parts(file: BinaryIO, parts: struct.Struct, names: Sequence[bytes]) -> Iterator[tuple[bytes, range]]:
    """Name and bytes of the parts in a row that a file is made of, up to one of an unknown name or no told size."""
    position, total = 0, os.fstat(file.fileno()).st_size
    while position + parts.size <= total:
        file.seek(position)
        first, second = parts.unpack(file.read(parts.size))
        name, size = (first, second) if isinstance(first, bytes) else (second, first)
        if size == 1:  # it follows, for a box is large
            size = int.from_bytes(file.read(8))
        if name not in names or size < parts.size or position + size > total:  # no part, up to the end, or cut
            break
        yield name, range(position, position + size)
        position += size


def _require_order(file: BinaryIO, fragments: Iterable[range]) -> None:
    """Raise ValueError where a fragment of an MP4 begins no later than one in front of it: it would not be heard."""
    last: dict[bytes, int] = {}  # by track
    for place in fragments:
        file.seek(place.start)
        for track, short, long in _TIME.findall(file.read(len(place))):
            begin = int.from_bytes(short or long)
            if begin <= last.get(track, -1):
                raise ValueError(
                    "parts of it begin before those in front of them, as of files that were put together, and would "
                    "not be heard: decode and encode them once"
                )
            last[track] = begin


def _sound(container: "InputContainer") -> Sound:
    if not container.streams.audio:
        raise ValueError("no sound in it")
    stream = container.streams.audio[0]
    if (context := stream.codec_context) is None:
        raise ValueError("undecodable: FFmpeg knows no such codec")
    context.options = _OPTIONS
    if container.format.name == "tta":
        context.options |= {"err_detect": "crccheck+explode"}  # by itself it passes over its checksums
    frames = container.decode(stream)
    first = next(frames, None)
    if first is None:
        raise ValueError("no samples")
    rate, channels = first.sample_rate, first.layout.nb_channels
    kind = container.format.name.partition(",")[0]
    all_frames: Iterator[AudioFrame] = chain([first], frames)
    if kind != "ogg":  # where the pages tell what is missing, and a chain has times of its own
        all_frames = _without_gaps(all_frames, _GAP_SECONDS.get(kind, _OTHER_GAP_SECONDS))
    seconds = None  # elsewhere it is a guess
    if kind in ("mov", "caf", "tta") and stream.duration and stream.time_base:
        seconds = float(stream.duration * stream.time_base)
    elif kind in ("matroska", "flv") and container.duration and len(container.streams) == 1:
        seconds = container.duration / 1e6
    return Sound(
        rate,
        channels,
        f"{kind} {context.name}".upper(),
        None if seconds is None else round(seconds * rate),
        int(_SLACK_SECONDS * rate),
        _reader((_samples(frame, rate, channels) for frame in all_frames), channels),
        is_exact=False,  # codecs work in whole frames
    )


def _without_gaps(frames: Iterable["AudioFrame"], largest: float) -> Iterator["AudioFrame"]:
    """The same frames. Raises ValueError where their times say that more than so many seconds are missing."""
    end = None
    for frame in frames:
        if frame.time is not None:
            if end is not None and frame.time > end + largest:
                raise ValueError(f"damaged: nothing can be decoded from {end:.2f} to {frame.time:.2f} s")
            end = frame.time + frame.samples / frame.sample_rate
        yield frame


def _samples(frame: "AudioFrame", rate: int, channels: int) -> np.ndarray:
    """[N, channels] float32 of what was decoded at once."""
    if (frame.sample_rate, frame.layout.nb_channels) != (rate, channels):
        raise ValueError("changes its rate or channels midway, as files that were put together")
    samples = frame.to_ndarray()  # [channels, N], or [1, N * channels]
    samples = samples.T if frame.format.is_planar else samples.reshape(-1, channels)
    if samples.dtype.kind == "f":
        return samples.astype(np.float32)
    middle = 128 if samples.dtype.kind == "u" else 0
    return (samples.astype(np.float32) - middle) / np.float32(2.0 ** (8 * samples.itemsize - 1))


def _reader(parts: Iterator[np.ndarray], channels: int) -> Callable[[int], np.ndarray]:
    rest = np.zeros((0, channels), np.float32)

    def read(frames: int) -> np.ndarray:
        nonlocal rest
        got, n = [rest], len(rest)
        while n < frames and (part := next(parts, None)) is not None:
            got.append(part)
            n += len(part)
        samples = np.concatenate(got)
        rest = samples[frames:]
        return samples[:frames]

    return read
