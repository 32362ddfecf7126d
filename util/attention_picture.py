"""Where the model looks while it answers: found by `look`, drawn by `draw` (the command: util/plot_attention.py)."""

from dataclasses import dataclass
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np
import torch

from salmonn.audio.decode import SAMPLE_RATE, AudioError, load_clip
from salmonn.common.charts import name_bands, new_figure
from salmonn.common.errors import UserError
from salmonn.inference.engine import InferenceEngine, Question
from salmonn.model.attention_maps import (
    answer_attention,
    encode_with_attention,
    loudest_heads,
    split_words,
    windows_of_tokens,
)
from salmonn.model.qformer import WHISPER_FRAMES_PER_SECOND, window_frames

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = "viridis"  # even steps of lightness, for every eye
SHARE_OF_HEADS = 0.25


@dataclass(frozen=True)
class Attention:
    """What the picture shows of one clip; windows begin every `stride` seconds and last `window` seconds."""

    seconds: float  # of the clip
    log_mel: np.ndarray  # [mels, frames], `log_mel_seconds` long
    log_mel_seconds: float
    band_hertz: np.ndarray  # [mels] the middle of each band
    window: float
    stride: float
    frames: np.ndarray  # [W, F] sums over F are 1
    words: list[str]
    windows: np.ndarray  # [words, W] sums over W are 1
    answer: str = ""


def look(engine: InferenceEngine, path: str, question: Question) -> Attention:
    """Answer the question about a clip and find where the model looked. Raises UserError for what cannot be heard."""
    model = engine.model
    try:
        wav = load_clip(path, model.max_seconds, engine.config.datasets.channel)
    except AudioError as error:
        raise UserError(str(error)) from error
    raw_wav = torch.from_numpy(wav)[None]
    embeds, weights, spelling = encode_with_attention(model, raw_wav)
    [details] = model.answer_embeds(embeds, [question.prompt], engine.config.generate, spelling)
    words = split_words(model.tokenizer, details["token_ids"])
    if not words:
        raise UserError(f"{path}: the model answers {question.prompt!r} with nothing, so there is nothing to draw")

    frames = weights.float().mean(dim=(0, 2))  # [W, F]
    of_tokens = loudest_heads(answer_attention(model, embeds, question.prompt, details["token_ids"]), SHARE_OF_HEADS)
    of_windows = (of_tokens @ windows_of_tokens(model, len(frames), spelling)).float()  # [T, W]; autocast rounds it
    of_words = torch.stack([of_windows[places].mean(dim=0) for _, places in words])
    stride = window_frames(model.config.second_stride) if model.config.window_level_Qformer else frames.shape[1]
    return Attention(
        seconds=len(wav) / SAMPLE_RATE,
        log_mel=model.log_mel(raw_wav.to(model.device))[0].cpu().numpy(),
        log_mel_seconds=model.max_seconds,
        band_hertz=model.log_mel.band_hertz.numpy(),
        window=frames.shape[1] / WHISPER_FRAMES_PER_SECOND,
        stride=stride / WHISPER_FRAMES_PER_SECOND,
        frames=frames.cpu().numpy(),
        words=[word for word, _ in words],
        answer=model.tokenizer.decode(details["token_ids"], skip_special_tokens=True).strip(),
        windows=(of_words / of_words.sum(dim=-1, keepdim=True)).cpu().numpy(),
    )


def draw(attention: Attention, title: str) -> "Figure":
    """Spectrogram, Q-Former's attention and language model's attention over the same seconds."""
    n_windows, n_frames = attention.frames.shape
    starts = attention.stride * np.arange(n_windows + 1)  # s, edges of the windows
    behind = attention.windows[:, starts[:-1] >= attention.seconds].sum(axis=1).mean()
    heights = [2.0, 1.2, 0.3 + 0.26 * len(attention.words)]
    figure = new_figure(11, 1.8 + sum(heights))
    figure.suptitle(fill(title, 100 if title.isascii() else 60), wrap=True)  # letters may be wide, or shown as codes
    mel, inside, words = figure.subplots(3, 1, sharex=True, height_ratios=heights)

    n_mels, n_mel_frames = attention.log_mel.shape
    _heat(mel, np.linspace(0, attention.log_mel_seconds, n_mel_frames + 1), np.arange(n_mels + 1), attention.log_mel)
    name_bands(mel, attention.band_hertz)
    _name(mel, "log-mel spectrogram")
    _heat(inside, starts, np.linspace(0, attention.window, n_frames + 1), attention.frames.T, "share")
    inside.set(ylabel="s in the window")
    _name(inside, "Q-Former: where in its window each audio token looks")
    _heat(words, starts, np.arange(len(attention.words) + 1), attention.windows, "share")
    words.set_yticks(np.arange(len(attention.words)) + 0.5, attention.words)
    words.invert_yaxis()
    words.set(xlabel="time in s", xlim=(0, min(starts[-1], attention.seconds)))
    _name(
        words,
        f"language model: the windows it looks at before it writes each word ({behind:.0%} behind the clip's end)",
    )
    return figure


def _heat(panel: "Axes", x: np.ndarray, y: np.ndarray, values: np.ndarray, label: str = "") -> None:
    """Values [rows, columns] between the edges x [columns + 1] and y [rows + 1]; a label adds the scale of colours."""
    image = panel.pcolormesh(x, y, values, cmap=COLOURS)
    if label:
        image.set_clim(0, None)
        panel.figure.colorbar(image, ax=panel, label=label, pad=0.01)


def _name(panel: "Axes", text: str) -> None:
    panel.set_title(text, loc="left", fontsize="medium")
