"""What is said of recordings in which there is nothing, or hardly anything, to be heard."""

import numpy as np
import pytest
import soundfile

from salmonn.audio.decode import decode_all, inspect_header
from salmonn.audio.silence import is_silent, seconds_of_sound, too_little

RATE = 16_000  # Hz
STEP = 2.0**-15  # of 16 bits


def padded(*parts: tuple[float, float]) -> np.ndarray:
    """A tone of each (seconds, amplitude) after the other."""
    waves = [amplitude * np.cos(np.arange(round(seconds * RATE))) for seconds, amplitude in parts]
    return np.concatenate(waves).astype(np.float32)


@pytest.mark.parametrize(
    ("wav", "seconds", "said"),
    [
        (np.zeros(RATE, np.float32), 0, "only silence"),
        (padded((1, 3 * STEP)), 0, "only silence"),  # a dithered nothing
        (padded((0.003, 0.1), (1, 0)), 0.003, "less than 0.1 s of sound"),
        (padded((1, 0), (0.2, 0.1), (1, 0)), 0.2, ""),
        (padded((0.01, 0.1), (1, 0), (0.01, 0.1)), 1.02, ""),
        (padded((1, 4e-4)), 1, ""),  # an empty room
    ],
)
def test_sound_counts_from_its_first_sample_to_its_last(wav, seconds, said):
    found = seconds_of_sound(wav, RATE)
    assert found == pytest.approx(seconds, abs=1e-3)
    assert is_silent(wav) is (found == 0)
    assert (said in too_little(found)) if said else (too_little(found) == "")


def test_a_file_is_silent_where_no_channel_and_no_block_of_it_is_louder(tmp_path):
    path, silence = tmp_path / "a.wav", np.zeros((40 * RATE, 2))
    soundfile.write(path, silence, RATE)
    assert decode_all(path).is_silent is True
    assert inspect_header(path).is_silent is None
    silence[-RATE:, 1] = 0.1
    soundfile.write(path, silence, RATE)
    assert decode_all(path).is_silent is False
