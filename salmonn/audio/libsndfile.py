"""The first decoder: libsndfile, shown what makes it hear the whole of a file."""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import soundfile

from salmonn.audio.containers import STREAMED_SIZE, SampleBytes, find_samples
from salmonn.audio.joined import require_no_file_within
from salmonn.audio.mp3 import TAG_HEAD, after_tags, before_tags, read_mp3
from salmonn.audio.quiet import no_prints_of_c
from salmonn.audio.sound import Sound
from salmonn.audio.view import Bytes, View

_UNKNOWN = 1 << 62  # libsndfile's frames of a FLAC without a length
_CLAIMS = 1000  # times the frames of an mp3: more than the largest frame is larger than the smallest
_STREAMINFO = slice(21, 42)  # bytes of a FLAC: 4 bits of something else, 36 of its length, and its MD5
_BITS = {"PCM_S8": 8, "PCM_16": 16, "PCM_24": 24}  # of a FLAC
_TELL_LENGTH = {"WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "NIST", "VOC", "SVX", "HTK", "FLAC", "OGG", "MP3"}


class _Shown(NamedTuple):
    """What libsndfile is given, and what is known of the file without it."""

    source: int | View  # a descriptor: beside a name it would look for a Mac's resources (._NAME), and take those
    frames: int | None = None
    is_told: bool = True  # whether what libsndfile says of the length is more than a guess
    md5: bytes = b""  # of the samples; zeros where the encoder did not know


@contextmanager
def open_with_libsndfile(path: Path) -> Iterator[Sound]:
    """A file as libsndfile decodes it. Raises ValueError for damage that shows at once, and libsndfile's own errors."""
    with path.open("rb") as raw:
        shown = _shown(path, raw)
        try:
            with no_prints_of_c():
                if isinstance(shown.source, int):
                    os.lseek(shown.source, 0, os.SEEK_SET)
                file = soundfile.SoundFile(shown.source, closefd=False)
            with file:
                yield _sound(path, file, shown)
        except soundfile.LibsndfileError:
            _raise_system_error(shown.source)
            raise


def _shown(path: Path, raw: BinaryIO) -> _Shown:
    if samples := find_samples(path):
        if samples.is_mpeg:
            return _shown_mp3(raw, Bytes(raw, samples.start, samples.size), samples.start)
        return _shown_unfinished(raw, samples) if samples.is_unfinished else _Shown(raw.fileno())
    head = raw.read(TAG_HEAD)
    start = after_tags(head)
    raw.seek(start)
    flac = raw.read(_STREAMINFO.stop)
    if flac.startswith(b"fLaC") and len(flac) == _STREAMINFO.stop:
        return _shown_flac(raw, start, flac[_STREAMINFO])
    if start or head[:1] == b"\xff":
        return _shown_mp3(raw, Bytes(raw))
    return _Shown(raw.fileno())


def _shown_unfinished(raw: BinaryIO, samples: SampleBytes) -> _Shown:
    """A WAV with the sizes that it should have."""
    start, end = samples.start, samples.start + samples.size
    riff, data = (min(size, STREAMED_SIZE).to_bytes(4, "little") for size in (end - 8, samples.size))
    return _Shown(View(raw, [range(4), riff, range(8, start - 4), data, range(start, end)]))


def _shown_flac(raw: BinaryIO, start: int, info: bytes) -> _Shown:
    """A FLAC without its length: with it, libsndfile stops there, however much follows."""
    frames = int.from_bytes(info[:5]) & (1 << 36) - 1
    at = start + _STREAMINFO.start
    without = bytes([info[0] & 0xF0]) + bytes(4)
    view = View(raw, [range(start, at), without, range(at + len(without), before_tags(raw))])
    return _Shown(view, frames or None, is_told=False, md5=info[5:])


def _shown_mp3(raw: BinaryIO, data: Bytes, start: int = 0) -> _Shown:
    """An mp3, which begins at byte `start` of the file; without its tag where that cannot be believed."""
    mp3 = read_mp3(data)
    if mp3 and (start or not mp3.is_told):
        parts = [range(start + part.start, start + part.stop) for part in mp3.parts]
        return _Shown(View(raw, parts, claims=_CLAIMS), mp3.samples)
    return _Shown(raw.fileno(), is_told=mp3 is not None)


def _sound(path: Path, file: soundfile.SoundFile, shown: _Shown) -> Sound:
    if file.format not in _TELL_LENGTH:
        raise ValueError(
            f"undecodable: a file of the kind {file.format} does not tell its length, so none can be known to be "
            "whole; make a WAV or FLAC of it, by SoX or FFmpeg"
        )
    if not file.frames:
        raise ValueError("no samples")
    frames = shown.frames
    if frames is None and shown.is_told and file.frames < _UNKNOWN:
        frames = file.frames
    file.seekable = lambda: False  # else soundfile seeks after each read, where an mp3's decoder starts anew
    digest = hashlib.md5(usedforsecurity=False) if any(shown.md5) else None

    def read(n: int) -> np.ndarray:
        with no_prints_of_c():
            samples = file.read(n, dtype="float32", always_2d=True)
        _raise_system_error(shown.source)
        if digest:
            digest.update(_as_stored(samples, _BITS[file.subtype]))
        return samples

    def check_end() -> None:
        if digest and digest.digest() != shown.md5:
            raise ValueError("damaged: its samples do not fit the checksum (MD5) in its header")
        if file.format == "FLAC" and _goes_on(path, read) and frames:
            raise ValueError(f"lying header: it says {frames} samples, and more follow; decode and encode it once")

    slack = 2 * (1152 if file.samplerate > 24_000 else 576) if file.format == "MP3" else 0  # two frames
    kind = f"{file.format} {file.subtype}"
    return Sound(file.samplerate, file.channels, kind, frames, slack, read, check_end=check_end)


def _as_stored(samples: np.ndarray, bits: int) -> memoryview:
    """Samples of full scale 1 as the integers that they were, the lowest byte first."""
    whole = samples * 2.0 ** (bits - 1)
    if bits < 24:
        return whole.astype(f"<i{bits // 8}").data
    return np.ascontiguousarray(whole.astype("<i4").reshape(-1, 1).view(np.uint8)[:, :3]).data


def _goes_on(path: Path, read: Callable[[int], np.ndarray]) -> bool:
    """Whether samples follow where a FLAC should end."""
    try:
        return len(read(1)) > 0
    except soundfile.LibsndfileError:  # something else was put behind it, if not another FLAC
        with path.open("rb") as raw:
            data = Bytes(raw)
            require_no_file_within(data, _after_metadata(data))
        return False


def _after_metadata(data: Bytes) -> int:
    """The first byte of a FLAC behind its metadata, where the head of the WAV that it was made of may stand."""
    position, is_last = after_tags(data) + len(b"fLaC"), False
    while not is_last and (head := data[position : position + 4]):
        is_last, position = head[0] >= 0x80, position + 4 + int.from_bytes(head[1:])
    return position


def _raise_system_error(source: int | View) -> None:
    if isinstance(source, View) and source.error:
        raise source.error
