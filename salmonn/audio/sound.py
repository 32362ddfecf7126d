"""A sound file that is open, whichever library decodes it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

RATES = range(1_000, 768_001)  # Hz; beyond it a header is damaged, and its buffers would not fit in memory
MAX_CHANNELS = 64


@dataclass(frozen=True)
class Sound:
    """What a file says of itself, and how its samples are read."""

    rate: int  # Hz
    channels: int
    format: str  # such as "FLAC PCM_16"
    frames: int | None  # its length, where it says so
    slack: int  # frames that a whole file may have less
    read: Callable[[int], np.ndarray]  # the next so many frames, [N, channels] float32; fewer at the end
    is_exact: bool = True  # whether nothing is lost where it is read to that length, and no further
    check_end: Callable[[], None] = lambda: None  # raises ValueError where more follows the length that it says
