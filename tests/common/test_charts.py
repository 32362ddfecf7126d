"""What all pictures share."""

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor

from salmonn.common.charts import name_bands, new_figure
from salmonn.model.features import LogMel


@pytest.mark.parametrize("n_mels", [20, 80, 128])
def test_mel_bands_are_told_in_hertz_at_their_places(n_mels):
    """A tone sounds loudest in the band at whose height the axis says its frequency."""
    log_mel = LogMel(WhisperFeatureExtractor(feature_size=n_mels), max_seconds=1.0)
    hertz = log_mel.band_hertz.numpy()
    assert (np.diff(hertz) >= 0).all()
    panel = new_figure(2, 2).subplots()
    name_bands(panel, hertz)
    ticks = dict(zip([label.get_text() for label in panel.get_yticklabels()], panel.get_yticks(), strict=True))
    assert panel.get_ylabel() == "Hz"
    assert len(ticks) >= 3
    for label, place in ticks.items():
        frequency = 1000 * float(label[:-1]) if label.endswith("k") else float(label)
        tone = torch.sin(2 * torch.pi * frequency * torch.arange(16_000) / 16_000)
        loudest = int(log_mel(tone[None])[0].mean(dim=1).argmax())
        assert abs(place - (loudest + 0.5)) <= 1.5


def test_bands_of_another_range_have_the_ticks_that_lie_in_it():
    panel = new_figure(2, 2).subplots()
    name_bands(panel, np.linspace(300, 1500, 24))
    assert [label.get_text() for label in panel.get_yticklabels()] == ["500", "1k"]
