"""From a scene to a file on disk: mixing, sample rate, channels, format, and breaking on purpose."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.random import Generator

from util.mini_world import sounds
from util.mini_world.scenes import Music, Pair, Scene, Sound, Speech
from util.mini_world.speech import engine

RATE = sounds.RATE
MAX_SECONDS = 4.9  # mp3 and ogg may come back a little longer; nothing is longer than 5 s
BEHIND = 0.15  # peak of a sound in the background
SHORT_SECONDS = 2.3  # two of them, with 0.1 s between, fit into one clip
STYLE_SETTINGS = {  # words per minute, pitch, pitch range (0..100), peak
    "neutral": ((100, 120), 50, 45, 0.5),
    "happy": ((112, 132), 72, 95, 0.6),
    "sad": ((90, 102), 30, 5, 0.15),
    "angry": ((112, 132), 45, 60, 0.95),
}
BREAKAGES = {  # kind: suffix of the file
    "empty": "wav",
    "text": "wav",
    "header": "wav",  # cut in the middle of its header
    "missing": "flac",
    "directory": "flac",
    "half": "flac",
    "head": "ogg",  # only the first bytes (of an mp3, libmpg123 would write a warning into every log)
}

Track = list[tuple[float, str]]  # (start in seconds, word or phoneme) in order; "" is silence


@dataclass
class Clip:
    """One file, its ground truth, and when what can be heard in it (known after rendering)."""

    split: str
    path: str  # from the audio folder, with a leading slash
    scene: Scene
    rate: int
    stereo: bool
    seed: tuple[int, ...]
    short: bool = False
    broken: str = ""
    words: list[Track] = field(default_factory=list)  # one per speaker
    phones: list[Track] = field(default_factory=list)
    events: list[tuple[float, float, str]] = field(default_factory=list)  # (start, end, event)
    digest: str = ""  # of the samples


def render(clip: Clip, audio_dir: Path) -> Clip:
    """Write the clip's file and fill in its timings."""
    rng = np.random.default_rng(clip.seed)
    wave = _wave(clip, rng)[: int(MAX_SECONDS * RATE)]
    wave += 10 ** rng.uniform(-4, -2.7) * rng.normal(size=len(wave)).astype(np.float32)
    wave = np.pad(wave, (0, max(0, RATE - len(wave)))).clip(-1, 1)  # at least 1 s
    clip.digest = hashlib.sha1(wave.tobytes()).hexdigest()
    samples = soxr.resample(wave, RATE, clip.rate)
    if clip.stereo:  # the second channel is a poor one: only channel 0 is to be used
        samples = np.stack([samples, 0.3 * samples + 0.05 * rng.normal(size=len(samples))], axis=1)
    path = audio_dir / clip.path[1:]
    soundfile.write(path, samples.clip(-1, 1), clip.rate)
    if clip.broken:
        _break(path, clip.broken)
    return clip


def _wave(clip: Clip, rng: Generator) -> np.ndarray:
    scene = clip.scene
    if isinstance(scene, Speech):
        start = rng.uniform(0.05, 0.15 if clip.short else 0.4)
        limit = SHORT_SECONDS if clip.short else MAX_SECONDS
        return _place([(start, _speech(clip, scene, start, limit - start - 0.1, rng))], limit, pause=0.1)
    if isinstance(scene, Pair):
        first = _speech(clip, scene.first, 0.1, MAX_SECONDS / 2, rng)
        start = 0.1 + rng.uniform(0.5, 0.8) * len(first) / RATE
        return _place([(0.1, first), (start, _speech(clip, scene.second, start, MAX_SECONDS / 2, rng))], MAX_SECONDS)
    if isinstance(scene, Music):
        loudness, seconds = rng.uniform(0.2, 0.8), rng.uniform(3.0, 4.5)
        wave = loudness * sounds.melody(scene.instrument, scene.tempo, scene.contour, seconds, rng)
        return _place([(rng.uniform(0, 0.3), wave)], MAX_SECONDS)
    return _sound(clip, scene, rng)


def _speech(clip: Clip, scene: Speech, start: float, limit: float, rng: Generator) -> np.ndarray:
    """Speak (faster where time is short) and note in the clip when what is said."""
    speed, pitch, pitch_range, peak = STYLE_SETTINGS[scene.style]
    words_per_minute = int(rng.integers(*speed))
    spoken_pitch = pitch + int(rng.integers(-6, 7))
    while True:
        spoken = engine().speak(scene.sentence, f"gmw/en-US+{scene.voice}", words_per_minute, spoken_pitch, pitch_range)
        if len(spoken.audio) <= limit * spoken.rate:
            break
        words_per_minute += 15
    wave = soxr.resample(spoken.audio, spoken.rate, RATE)
    wave *= peak * rng.uniform(0.8, 1.0) / np.abs(wave).max()
    if scene.style == "angry":
        wave = 0.9 * np.tanh(4 * wave)  # a shouting voice overdrives
    end = start + len(wave) / RATE
    clip.words.append([(0.0, ""), *((start + t, word) for t, word in spoken.words), (end, "")])
    clip.phones.append([(0.0, ""), *((start + t, phone) for t, phone in spoken.phones), (end, "")])
    return wave.astype(np.float32)


def _sound(clip: Clip, scene: Sound, rng: Generator) -> np.ndarray:
    if scene.relation == "while":
        whole, inner = rng.uniform(3.5, 4.8), rng.uniform(1.5, 2.5)
        start = rng.uniform(0.4, whole - inner)
        # the event in front is the caption's first
        planned = [(start, inner, scene.events[0], 0.8), (0.0, whole, scene.events[1], BEHIND)]
    else:
        planned, start = [], rng.uniform(0.0, 0.4)
        for name in scene.events:
            seconds = rng.uniform(1.2, 2.0) if scene.relation else rng.uniform(1.5, 4.0)
            planned.append((start, seconds, name, 0.8))
            start += seconds + rng.uniform(0.1, 0.3)
    parts = []
    for start, seconds, name, peak in planned:
        wave = peak * rng.uniform(0.6, 1.0) * sounds.event(name, seconds, rng)
        clip.events.append((start, start + len(wave) / RATE, name))
        parts.append((start, wave))
    return _place(parts, MAX_SECONDS)


def _place(parts: list[tuple[float, np.ndarray]], limit: float, pause: float = 0.0) -> np.ndarray:
    """Add waves at their starts (seconds); the sum ends `pause` after the last one, or at the limit."""
    ends = [int(start * RATE) + len(wave) for start, wave in parts]
    total = np.zeros(max(ends) + int(pause * RATE), dtype=np.float32)
    for (start, wave), end in zip(parts, ends, strict=True):
        total[int(start * RATE) : end] += wave
    return total[: int(limit * RATE)]


def _break(path: Path, kind: str) -> None:
    data = path.read_bytes()
    path.unlink()
    if kind == "directory":
        path.mkdir()
    elif kind != "missing":
        path.write_bytes(
            {
                "empty": b"",
                "text": b"This is a web page that says that the file has moved.\n",
                "header": data[:40],
                "half": data[: len(data) // 2],
                "head": data[:200],
            }[kind]
        )
