"""The first decoder: libsndfile, shown what makes it hear the whole of a file."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import soundfile

from salmonn.audio.mp3 import after_id3, read_mp3
from salmonn.audio.riff import STREAMED_SIZE, find_samples
from salmonn.audio.sound import MAX_CHANNELS, RATES, Sound
from salmonn.audio.view import View

_UNKNOWN = 1 << 62  # libsndfile's frames of a FLAC without a length
_CLAIMS = 1000  # times the frames of an mp3: more than the largest frame is larger than the smallest
_STREAMINFO_SAMPLES = 21  # byte of a FLAC at which its length begins, with 4 bits of something else
# libsndfile's log tells where the sizes in a header are larger than the file: WAV, AIFF, AU, W64, RF64
_SHORT_DATA = re.compile(r"^\s*(?:data|SSND|Data Size|riff|Riff size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)


class _Shown(NamedTuple):
    """What libsndfile is given, and what is known of the length without it."""

    source: str | View
    frames: int | None = None
    is_told: bool = True  # whether what libsndfile says of the length is more than a guess


@contextmanager
def open_with_libsndfile(path: Path) -> Iterator[Sound]:
    """A file as libsndfile decodes it. Raises ValueError for damage that shows at once, and libsndfile's own errors."""
    with path.open("rb") as raw:
        shown = _shown(path, raw)
        try:
            with soundfile.SoundFile(shown.source) as file:
                yield _sound(path, file, shown)
        except soundfile.LibsndfileError:
            _raise_system_error(shown.source)
            raise


def _shown(path: Path, raw: BinaryIO) -> _Shown:
    if samples := find_samples(path):
        if samples.is_mpeg:
            raw.seek(samples.start)
            return _shown_mp3(path, raw, raw.read(samples.size), samples.start)
        if samples.is_unfinished:
            sizes = {4: samples.start - 8 + samples.size, samples.start - 4: samples.size}
            replaced = {at: min(size, STREAMED_SIZE).to_bytes(4, "little") for at, size in sizes.items()}
            return _Shown(View(raw, replaced=replaced))
        return _Shown(str(path))
    head = raw.read(10)
    start = after_id3(head)
    raw.seek(start)
    flac = raw.read(_STREAMINFO_SAMPLES + 5)
    if flac.startswith(b"fLaC") and len(flac) == _STREAMINFO_SAMPLES + 5:
        return _shown_flac(raw, start, flac[_STREAMINFO_SAMPLES:])
    if start or head[:1] == b"\xff":
        raw.seek(0)
        return _shown_mp3(path, raw, raw.read())
    return _Shown(str(path))


def _shown_flac(raw: BinaryIO, start: int, length: bytes) -> _Shown:
    """A FLAC without its length: with it, libsndfile stops there, however much follows."""
    without = {_STREAMINFO_SAMPLES: bytes([length[0] & 0xF0]) + bytes(4)}
    frames = int.from_bytes(length) & (1 << 36) - 1
    return _Shown(View(raw, start, replaced=without), frames or None, is_told=False)


def _shown_mp3(path: Path, raw: BinaryIO, data: bytes, start: int = 0) -> _Shown:
    """An mp3, which begins at byte `start` of the file; without its tag where that cannot be believed."""
    mp3 = read_mp3(data)
    if mp3 and (start or not mp3.is_told):
        return _Shown(View(raw, start + mp3.start, start + mp3.stop, claims=_CLAIMS), mp3.samples)
    return _Shown(str(path), is_told=mp3 is not None)


def _sound(path: Path, file: soundfile.SoundFile, shown: _Shown) -> Sound:
    if file.samplerate not in RATES:
        raise ValueError(f"absurd header: {file.samplerate} Hz")
    if not 1 <= file.channels <= MAX_CHANNELS:
        raise ValueError(f"absurd header: {file.channels} channels")
    for said, found in _SHORT_DATA.findall(file.extra_info):
        if int(found) < int(said) < STREAMED_SIZE:
            raise ValueError(f"truncated: its header says {said} bytes of samples, it has {found}")
    if not file.frames:
        raise ValueError("no samples")
    frames = shown.frames
    if frames is None and shown.is_told and file.frames < _UNKNOWN:
        frames = file.frames
    if frames is None or isinstance(shown.source, View):
        file.seekable = lambda: False  # soundfile seeks after each read, which libsndfile refuses here

    def read(n: int) -> np.ndarray:
        samples = file.read(n, dtype="float32", always_2d=True)
        _raise_system_error(shown.source)
        return samples

    def check_end() -> None:
        try:
            goes_on = len(read(1)) > 0
        except soundfile.LibsndfileError:  # something else was put behind it, if not another FLAC
            goes_on = b"fLaC" in path.read_bytes()[len(b"fLaC") :]
        if goes_on:
            raise ValueError(f"lying header: it says {frames} samples, and more follow; decode and encode it once")

    slack = 2 * (1152 if file.samplerate > 24_000 else 576) if file.format == "MP3" else 0  # two frames
    sound = Sound(file.samplerate, file.channels, f"{file.format} {file.subtype}", frames, slack, read)
    return replace(sound, check_end=check_end) if file.format == "FLAC" and frames else sound


def _raise_system_error(source: str | View) -> None:
    if isinstance(source, View) and source.error:
        raise source.error
