"""A picture of what the model hears: waveform and log-mel spectrogram."""

from io import BytesIO

import numpy as np

from salmonn.audio.decode import SAMPLE_RATE
from salmonn.common.charts import BLUE, name_bands, new_figure

_PIXELS_PER_INCH = 210
_GREY = "#72809a"  # of the axes: seen on a light page and on a dark one
_COLUMNS = 1200  # of the waveform: more than the picture has pixels for


def picture_clip(wav: np.ndarray, log_mel: np.ndarray, frames_per_second: float, band_hertz: np.ndarray) -> bytes:
    """Draw a clip: its wav [N] float32 at 16 kHz above its log_mel [bands, frames], which may be longer.

    `band_hertz` [bands]: the middle of each band.
    Returns a PNG with a transparent ground.
    """
    seconds = len(wav) / SAMPLE_RATE
    figure = new_figure(5.6, 3.4)
    above, below = figure.subplots(2, sharex=True, height_ratios=(2, 3))
    above.fill_between(*_envelope(wav), color=BLUE, linewidth=0.5, edgecolor=BLUE)
    loudest = max(float(np.abs(wav).max()), 1e-3)
    above.set(ylabel="waveform", yticks=[], ylim=(-1.05 * loudest, 1.05 * loudest), xlim=(0, seconds))
    above.spines[["top", "right", "left"]].set_visible(False)
    log_mel = log_mel[:, : int(np.ceil(seconds * frames_per_second))]
    shown_seconds = log_mel.shape[1] / frames_per_second
    extent = (0, shown_seconds, 0, len(log_mel))
    below.imshow(log_mel, origin="lower", aspect="auto", extent=extent, cmap="magma", interpolation="nearest")
    below.set(xlabel="seconds", xlim=(0, seconds))
    name_bands(below, band_hertz)
    for axes in (above, below):
        axes.tick_params(colors=_GREY)
        for part in (axes.xaxis.label, axes.yaxis.label, *axes.spines.values()):
            part.set(color=_GREY)
    figure.align_ylabels()
    png = BytesIO()
    figure.savefig(png, dpi=_PIXELS_PER_INCH, format="png", transparent=True)
    return png.getvalue()


def _envelope(wav: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times in seconds, lowest and highest sample of each column: what a plot of all samples would show."""
    starts = np.linspace(0, len(wav), min(_COLUMNS, len(wav)), endpoint=False, dtype=np.int64)
    return starts / SAMPLE_RATE, np.minimum.reduceat(wav, starts), np.maximum.reduceat(wav, starts)
