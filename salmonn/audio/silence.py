"""Recordings in which there is nothing to be heard, as of a muted microphone, or hardly anything."""

import numpy as np

# Of full scale, -80 dBFS, three steps of 16 bits: nothing is above it in digital silence, dithered or decoded from mp3;
# rooms and microphones hum louder, at -70 dBFS and more.
SILENCE = 1e-4
SHORTEST = 0.1  # s, half a syllable: less holds no answer to a question


def is_silent(samples: np.ndarray) -> bool:
    """Whether nothing in some samples, [N] or [N, channels], is louder than silence."""
    return not len(samples) or bool(max(samples.max(), -samples.min()) < SILENCE)


def seconds_of_sound(wav: np.ndarray, rate: int) -> float:
    """From the first sample of a waveform [N] that is no silence to the last; 0 for silence."""
    loud = np.flatnonzero(np.abs(wav) >= SILENCE)
    return float(loud[-1] - loud[0] + 1) / rate if len(loud) else 0.0


def too_little(seconds: float) -> str:
    """What is said of a recording with so many seconds of sound; "" where they suffice."""
    if seconds >= SHORTEST:
        return ""
    return f"it holds less than {SHORTEST:g} s of sound" if seconds else "it holds only silence"
