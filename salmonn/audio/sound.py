"""A sound file that is open, whichever library decodes it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

_RATES = range(1_000, 768_001)  # Hz; beyond it a header is damaged
_MAX_CHANNELS = 64
_MAX_VALUES = 1_536_000  # a second: 32 channels of 48 kHz, 8 of 192 kHz; more takes too long, and is no recording


@dataclass(frozen=True)
class Sound:
    """What a file says of itself, and how its samples are read. Raises ValueError for an absurd header."""

    rate: int  # Hz
    channels: int
    format: str  # such as "FLAC PCM_16"
    frames: int | None  # its length, where it says so
    slack: int  # frames that a whole file may have less
    read: Callable[[int], np.ndarray]  # the next so many frames, [N, channels] float32; fewer at the end
    is_exact: bool = True  # whether nothing is lost where it is read to that length, and no further
    check_end: Callable[[], None] = lambda: None  # raises ValueError where its end is not as the header says

    def __post_init__(self) -> None:
        if self.rate not in _RATES:
            raise ValueError(f"absurd header: {self.rate} Hz")
        if not 1 <= self.channels <= _MAX_CHANNELS or self.rate * self.channels > _MAX_VALUES:
            raise ValueError(f"absurd header: {self.channels} channels of {self.rate} Hz")
