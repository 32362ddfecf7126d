"""Features as the published code computes them: clip by clip, Whisper's by numpy and frame by frame.

transformers 4.28 took a transform per frame in a Python loop; today's `WhisperFeatureExtractor` does a clip at once, in
torch, and several times as fast.
"""

import numpy as np
import torch
from torch import Tensor
from transformers import WhisperFeatureExtractor

from salmonn.audio.decode import SAMPLE_RATE
from salmonn.model.features import FBANK_BINS, FBANK_MEAN, FBANK_STD, PCM_SCALE


def log_mel(wav: np.ndarray, extractor: WhisperFeatureExtractor) -> Tensor:
    """Whisper's spectrogram [80, 3000] of a clip [N] of 16 kHz, zero-padded or cut to what `extractor` takes."""
    n_fft, hop = extractor.n_fft, extractor.hop_length
    heard = np.zeros(extractor.n_samples, dtype=np.float32)
    heard[: len(wav)] = wav[: len(heard)]
    around = np.pad(heard, n_fft // 2, mode="reflect")
    frames = np.stack([around[start : start + n_fft] for start in range(0, len(heard) + 1, hop)])
    window, windowed = np.hanning(n_fft + 1)[:-1], np.zeros(n_fft)
    spectrum = np.empty((len(frames), n_fft // 2 + 1), dtype=np.complex64)
    for number, frame in enumerate(frames):
        np.multiply(frame, window, out=windowed)
        spectrum[number] = np.fft.fft(windowed)[: n_fft // 2 + 1]
    filters = np.asarray(extractor.mel_filters, dtype=np.float32).T  # [80, n_fft // 2 + 1]
    mel = filters @ np.abs(spectrum.T[:, :-1]) ** 2
    levels = np.log10(np.clip(mel, 1e-10, None))
    return torch.from_numpy((np.maximum(levels, levels.max() - 8.0) + 4.0) / 4.0)


def fbank(wav: Tensor) -> Tensor:
    """BEATs' filter bank [T, 128], float32, of a clip [N] of 16 kHz."""
    import torchaudio  # only the yardstick needs it

    bank = torchaudio.compliance.kaldi.fbank(
        wav[None].double() * PCM_SCALE, num_mel_bins=FBANK_BINS, sample_frequency=SAMPLE_RATE
    )
    return ((bank - FBANK_MEAN) / (2 * FBANK_STD)).float()
