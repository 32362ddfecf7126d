"""Sound events and melodies, synthesised with numpy. Every function returns [N] float32 at RATE, peak 1."""

from collections.abc import Callable

import numpy as np
from numpy.random import Generator

RATE = 24_000  # Hz; files get their own rates later
SEMITONE = 2 ** (1 / 12)
CONTOUR_STEPS = {
    "rising": (0, 2, 4, 5, 7, 9, 11, 12),
    "falling": (12, 11, 9, 7, 5, 4, 2, 0),
    "level": (0, 0, 0, 0, 0, 0, 0, 0),
}
TEMPO_SECONDS = {"slow": (0.6, 0.8), "fast": (0.15, 0.22)}  # per note
PARTIALS = {  # relative strength of the harmonics, decay per second (0: held), attack in seconds
    "piano": ((1, 0.5, 0.25, 0.12, 0.06), 4.0, 0.004),
    "flute": ((1, 0.12, 0.04), 0.0, 0.06),
    "organ": ((1, 0.8, 0.6, 0.7, 0.2, 0.5, 0.1, 0.4), 0.0, 0.01),
    "guitar": ((1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3), 8.0, 0.002),
}


def event(name: str, seconds: float, rng: Generator) -> np.ndarray:
    """One sound event of about `seconds` (counted beeps take what they need)."""
    return _peak(_EVENTS[name](_time(seconds), rng))


def melody(instrument: str, tempo: str, contour: str, seconds: float, rng: Generator) -> np.ndarray:
    """A phrase of the contour, repeated until the time is over."""
    strengths, decay, attack = PARTIALS[instrument]
    length = rng.uniform(*TEMPO_SECONDS[tempo])
    root = 220 * SEMITONE ** rng.integers(0, 12)
    t = _time(length)
    envelope = np.minimum(t / attack, 1) * np.exp(-decay * t) * np.minimum((length - t) / 0.03, 1)
    steps = CONTOUR_STEPS[contour]
    vibrato = 0.004 * np.sin(2 * np.pi * 5 * t) / 5 if instrument == "flute" else 0
    notes = []
    for i in range(int(seconds / length)):
        pitch = root * SEMITONE ** steps[i % len(steps)]
        wave = sum(s * np.sin(2 * np.pi * pitch * (k + 1) * (t + vibrato)) for k, s in enumerate(strengths))
        notes.append(wave * envelope)
    return _peak(np.concatenate(notes))


def _time(seconds: float) -> np.ndarray:
    return np.arange(int(seconds * RATE)) / RATE


def _peak(wave: np.ndarray) -> np.ndarray:
    return (wave / max(np.abs(wave).max(), 1e-6)).astype(np.float32)


def _sweep(frequency: np.ndarray) -> np.ndarray:
    """Sine whose frequency follows [N] values in Hz."""
    return np.sin(2 * np.pi * np.cumsum(frequency) / RATE)


def _band(t: np.ndarray, low: float, high: float, rng: Generator) -> np.ndarray:
    """White noise between two frequencies."""
    size = 2 ** int(np.ceil(np.log2(len(t))))  # other lengths take several times longer
    spectrum = np.fft.rfft(rng.normal(size=size))
    hertz = np.fft.rfftfreq(size, 1 / RATE)
    return np.fft.irfft(spectrum * ((hertz >= low) & (hertz < high)))[: len(t)]


def _strikes(t: np.ndarray, period: float, stroke: Callable[[np.ndarray], np.ndarray], rng: Generator) -> np.ndarray:
    """A short sound again and again, with a little unevenness."""
    wave, start = np.zeros(len(t)), 0.02
    while start < t[-1] - 0.1:
        after = t[t >= start] - start
        wave[len(t) - len(after) :] += stroke(after)
        start += period * rng.uniform(0.93, 1.07)
    return wave


def _tone(low: float, high: float) -> Callable[[np.ndarray, Generator], np.ndarray]:
    def make(t: np.ndarray, rng: Generator) -> np.ndarray:
        return np.sin(2 * np.pi * rng.uniform(low, high) * t) * np.minimum(1, np.minimum(t, t[-1] - t) / 0.03)

    return make


def _siren(t: np.ndarray, rng: Generator) -> np.ndarray:
    middle, speed = rng.uniform(700, 900), rng.uniform(0.8, 1.4)
    return _sweep(middle * (1 + 0.4 * np.sin(2 * np.pi * speed * t + rng.uniform(0, 6))))


def _rain(t: np.ndarray, rng: Generator) -> np.ndarray:
    drops = rng.normal(size=len(t)) * (rng.random(len(t)) < 0.004)
    return 0.25 * _band(t, 1500, 11_000, rng) + drops


def _beeps(count: int) -> Callable[[np.ndarray, Generator], np.ndarray]:
    def make(t: np.ndarray, rng: Generator) -> np.ndarray:
        del t  # the count decides how long it takes
        on, off, pitch = rng.uniform(0.12, 0.2), rng.uniform(0.2, 0.26), rng.uniform(900, 2200)
        t = _time(count * (on + off))
        return np.sign(np.sin(2 * np.pi * pitch * t)) * (t % (on + off) < on)

    return make


def _bell(t: np.ndarray, rng: Generator) -> np.ndarray:
    pitch = rng.uniform(500, 800)
    ratios = (0.5, 1, 1.19, 1.56, 2, 2.66, 3.01)  # a church bell's partials are no harmonics

    def stroke(t: np.ndarray) -> np.ndarray:
        return sum(np.sin(2 * np.pi * pitch * r * t) * np.exp(-t * (1.5 + r)) for r in ratios)  # type: ignore[return-value]

    return _strikes(t, rng.uniform(0.9, 1.2), stroke, rng)


def _engine(t: np.ndarray, rng: Generator) -> np.ndarray:
    turns = _sweep(rng.uniform(28, 45) * (1 + 0.06 * np.sin(2 * np.pi * rng.uniform(0.3, 0.8) * t)))
    return np.tanh(4 * turns) + 0.5 * _band(t, 60, 500, rng) * (1 + turns)


def _clock(t: np.ndarray, rng: Generator) -> np.ndarray:
    pitch = rng.uniform(2500, 3500)
    return _strikes(t, rng.uniform(0.22, 0.3), lambda t: np.sin(2 * np.pi * pitch * t) * np.exp(-t * 60), rng)


def _whistle(t: np.ndarray, rng: Generator) -> np.ndarray:
    start, end = rng.uniform(1300, 1700), rng.uniform(2200, 2800)
    bend = np.abs(np.sin(np.pi * t / rng.uniform(0.7, 1.1)))
    return _sweep(start + (end - start) * bend) * (0.3 + bend) + 0.01 * rng.normal(size=len(t))


def _knocks(t: np.ndarray, rng: Generator) -> np.ndarray:
    pitch = rng.uniform(110, 170)

    def stroke(t: np.ndarray) -> np.ndarray:
        return (np.sin(2 * np.pi * pitch * t) + 0.4 * rng.normal(size=len(t))) * np.exp(-t * 45)

    return _strikes(t, rng.uniform(0.3, 0.45), stroke, rng)


def _wind(t: np.ndarray, rng: Generator) -> np.ndarray:
    gusts = 0.55 + 0.45 * np.sin(2 * np.pi * rng.uniform(0.3, 0.6) * t + rng.uniform(0, 6))
    return _band(t, 150, rng.uniform(600, 900), rng) * gusts


_EVENTS: dict[str, Callable[[np.ndarray, Generator], np.ndarray]] = {
    "low tone": _tone(250, 450),
    "high tone": _tone(1800, 3200),
    "siren": _siren,
    "rain": _rain,
    "two beeps": _beeps(2),
    "four beeps": _beeps(4),
    "bell": _bell,
    "engine": _engine,
    "clock": _clock,
    "whistle": _whistle,
    "knocks": _knocks,
    "wind": _wind,
}
