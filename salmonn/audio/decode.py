"""Any audio file to mono float32 at 16 kHz, reading only what is needed; what is damaged is refused.

Resampling is soxr at its HQ setting (librosa's default resampler): the stop band lies far below
the -60 dB that speech needs, and it is several times faster than a windowed-sinc convolution in torch.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from salmonn.audio.ffmpeg import container_of, open_with_ffmpeg
from salmonn.audio.libsndfile import open_with_libsndfile
from salmonn.audio.ogg import is_plain_ogg
from salmonn.audio.silence import is_silent
from salmonn.audio.sound import Sound

SAMPLE_RATE = 16_000  # Hz
MIN_SECONDS = 1.0  # shorter clips are zero-padded, as published
JOIN_SECONDS = 0.1  # silence between a clip and its `expand_wav` clips, as published

_GUARD_SECONDS = 0.1  # read past the cut, so that the resampler's edge lies outside the clip
_BLOCK_SECONDS, _BLOCK_VALUES = 30, 1 << 20  # decoded at once: at most so long, and of so many samples in all channels
_LOUDEST = 64.0  # where 1 is full scale; a mix of floats may go beyond 1, 36 dB beyond it are another scale
_IF_CUT = "if it is a piece that was cut or joined without decoding, decode and encode it once"


class AudioError(Exception):
    """A file that cannot be used as audio, and why."""

    def __init__(self, path: str | Path, reason: object) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = str(path), str(reason)


@dataclass(frozen=True)
class AudioInfo:
    """What a file's header says, or what came of decoding it."""

    rate: int  # Hz
    channels: int
    frames: int
    format: str  # such as "FLAC PCM_16"
    is_silent: bool | None = None  # None: not decoded

    @property
    def seconds(self) -> float:
        """Duration."""
        return self.frames / self.rate


def load_audio(path: str | Path, max_seconds: float = 30.0, channel: str = "first") -> np.ndarray:
    """Read the first `max_seconds` of a file at 16 kHz: its first channel (as published), or their mean.

    Returns [N] float32, N at most max_seconds * 16000. Raises AudioError for whatever cannot be
    read: missing, not audio, damaged, shorter than its header says, empty, not finite.
    """
    with _open(path) as sound:
        limit = int((max_seconds + _GUARD_SECONDS) * sound.rate)
        wav = np.concatenate([_heard(samples, channel) for samples in _blocks(sound, limit)])
        if sound.rate != SAMPLE_RATE:
            wav = soxr.resample(wav, sound.rate, SAMPLE_RATE, quality="HQ")
    return np.ascontiguousarray(wav[: int(max_seconds * SAMPLE_RATE)])


def load_clip(
    paths: str | Path | Sequence[str | Path],
    max_seconds: float = 30.0,
    channel: str = "first",
    expand_cut: str = "head",
) -> np.ndarray:
    """Read a clip, or an entry's clip and its `expand_wav` clips, joined after 0.1 s of silence each.

    Returns [N] float32 at 16 kHz, at least 1 s (zero-padded), at most max_seconds. Of longer clips
    the head of the whole is kept (`expand_cut` "head", as published), or the time is shared among
    the clips ("share"), so that each is heard.
    """
    if isinstance(paths, str | Path):
        paths = [paths]
    limit, gap = int(max_seconds * SAMPLE_RATE), int(JOIN_SECONDS * SAMPLE_RATE)
    wavs: list[np.ndarray] = []
    for path in paths:
        is_heard = expand_cut == "share" or sum(map(len, wavs)) + gap * len(wavs) < limit
        wavs.append(load_audio(path, max_seconds, channel) if is_heard else np.zeros(0, np.float32))
    if expand_cut == "share":
        shares = share_time([len(wav) for wav in wavs], limit - gap * (len(wavs) - 1))
        wavs = [wav[:share] for wav, share in zip(wavs, shares, strict=True)]
    silence = np.zeros(gap, dtype=np.float32)
    wav = np.concatenate([part for wav in wavs for part in (silence, wav)][1:])[:limit]
    missing = int(MIN_SECONDS * SAMPLE_RATE) - len(wav)
    return np.pad(wav, (0, missing)) if missing > 0 else wav


def stream_audio(path: str | Path, channel: str = "first") -> Iterator[np.ndarray]:
    """Read a whole file of any length at 16 kHz, a block [N] float32 of up to 30 s at a time; else as `load_audio`."""
    with _open(path) as sound:
        resampler = soxr.ResampleStream(sound.rate, SAMPLE_RATE, num_channels=1, dtype="float32", quality="HQ")
        for samples in _blocks(sound):
            yield resampler.resample_chunk(_heard(samples, channel))
        yield resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True)


def share_time(lengths: Sequence[int], limit: int) -> list[int]:
    """Cut lengths to `limit` in all: equal shares, and what a short clip leaves goes to the longer ones."""
    shares, left = [0] * len(lengths), max(limit, 0)
    by_length = sorted(range(len(lengths)), key=lengths.__getitem__)
    for done, i in enumerate(by_length):
        shares[i] = min(lengths[i], left // (len(lengths) - done))
        left -= shares[i]
    return shares


def inspect_header(path: str | Path) -> AudioInfo:
    """What a file says of itself, without decoding it. Raises AudioError for what shows already there."""
    with _open(path) as sound:
        return AudioInfo(sound.rate, sound.channels, sound.frames or 0, sound.format)


def decode_all(path: str | Path) -> AudioInfo:
    """Decode a whole file, a block at a time. Raises AudioError for any damage that a decoder can see."""
    frames, silent = 0, True
    with _open(path) as sound:
        for samples in _blocks(sound):
            frames += len(samples)
            silent = silent and is_silent(samples)
        return AudioInfo(sound.rate, sound.channels, frames, sound.format, silent)


@contextmanager
def _open(path: str | Path) -> Iterator[Sound]:
    """A file whose header is sound; whatever goes wrong, here or while it is read, is an AudioError."""
    path = Path(path)
    try:
        if not path.is_file():
            raise AudioError(path, _no_file(path))
        if path.stat().st_size == 0:
            raise AudioError(path, "empty file")
        with _open_with_either(path) as sound:
            yield sound
    except (soundfile.LibsndfileError, RuntimeError, OSError, ValueError, MemoryError) as error:
        raise AudioError(path, _reason(error)) from error


@contextmanager
def _open_with_either(path: Path) -> Iterator[Sound]:
    """By libsndfile; what it does not read, or only in part, by FFmpeg."""
    container = container_of(path)
    with ExitStack() as stack:
        if container == "ogg" and not is_plain_ogg(path):  # libsndfile hears one stream, to its marked end
            yield stack.enter_context(open_with_ffmpeg(path, container))
            return
        try:
            sound = stack.enter_context(open_with_libsndfile(path))
        except soundfile.LibsndfileError:
            if container is None:
                raise
            sound = stack.enter_context(open_with_ffmpeg(path, container))
        yield sound


def _no_file(path: Path) -> str:
    if path.is_dir():
        return "is a folder"
    return "no regular file" if path.exists() else "file does not exist"


def _reason(error: Exception) -> str:
    """kind[: details], without the path, which the AudioError names."""
    if isinstance(error, soundfile.LibsndfileError):
        if "does not exist" in error.error_string:  # mpg123's guess about what is there, but is no MP3
            return "undecodable: no sound file of this kind"
        return f"undecodable: {error.error_string.removeprefix('Error : ').rstrip('. ')}"
    if isinstance(error, OSError) and error.strerror:
        return f"unreadable: {error.strerror}"
    return str(error) or type(error).__name__


def _heard(samples: np.ndarray, channel: str) -> np.ndarray:
    """[N] of [N, channels]: the first channel, or the mean."""
    return samples.mean(1) if channel == "mean" else np.ascontiguousarray(samples[:, 0])


def _blocks(sound: Sound, limit: int | None = None) -> Iterator[np.ndarray]:
    """The file from its beginning, up to `limit` frames, as `_read` gives it: so much at a time as memory is there."""
    most = min(_BLOCK_SECONDS * sound.rate, _BLOCK_VALUES // sound.channels)
    frames, is_last = 0, False
    while not is_last:
        size = most if limit is None else min(most, limit - frames)
        samples = _read(sound, size, frames)
        frames += len(samples)
        is_last = len(samples) < size or frames == limit
        yield samples


def _read(sound: Sound, frames: int, start: int) -> np.ndarray:
    """The next `frames` from `start` on, or all that is left, as [N, channels] float32. Raises ValueError."""
    said = sound.frames
    samples = sound.read(frames if said is None or not sound.is_exact else min(frames, said - start))
    end = start + len(samples)
    if len(samples) < frames:
        if said is not None and end < said - sound.slack:
            raise ValueError(f"truncated: its header says {said} samples, {end} can be decoded; {_IF_CUT}")
        sound.check_end()
    if not len(samples):
        if not start:
            raise ValueError("no samples")
        return samples
    loudest = max(samples.max(), -samples.min())
    if not np.isfinite(loudest):
        raise ValueError("not finite: some samples are no numbers")
    if loudest > _LOUDEST or (loudest > 1 and not (samples % 1).any()):
        raise ValueError(
            f"wrong scale: float samples up to {loudest:g}, where 1 is full scale, as of integers that were stored as "
            "they are; divide them, by 32768 if they were of 16 bits"
        )
    return samples
