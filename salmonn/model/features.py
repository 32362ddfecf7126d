"""Batched spectral features, on the device of the waveform.

The published code computes both per sample on the CPU; here a batch goes through at once and each
row equals what the row gives alone, because padding never enters a frame that is used.
"""

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import WhisperFeatureExtractor

# Kaldi filter bank as BEATs was trained with it: 25 ms frames every 10 ms at 16 kHz, FFT of 512
FBANK_FRAME = 400  # samples
FBANK_SHIFT = 160  # samples
FBANK_FFT = 512
FBANK_BINS = 128
FBANK_LOW, FBANK_HIGH = 20.0, 8000.0  # Hz
FBANK_MEAN, FBANK_STD = 15.41663, 6.55582
FBANK_FLOOR = 1.1920929e-07  # float32 epsilon, Kaldi's floor under the logarithm
FBANK_BLOCK = 256  # frames that a CPU works on at once: what is made of more of them leaves its caches
PCM_SCALE = 2.0**15  # BEATs was trained on 16-bit sample values


class LogMel(nn.Module):
    """Whisper's log-mel spectrogram, with the settings of a Hugging Face feature extractor."""

    mel_filters: Tensor  # [n_fft // 2 + 1, n_mels]
    window: Tensor  # [n_fft]

    def __init__(self, feature_extractor: "WhisperFeatureExtractor", max_seconds: float = math.inf) -> None:
        """`max_seconds`: hear no more of a clip than this; what the extractor hears is the most."""
        super().__init__()
        self.n_fft: int = feature_extractor.n_fft
        self.hop: int = feature_extractor.hop_length
        self.sampling_rate: int = feature_extractor.sampling_rate
        whole = 2 * self.hop  # samples of an encoder frame
        self.n_samples = int(min(feature_extractor.n_samples, max_seconds * self.sampling_rate) // whole) * whole
        filters = torch.as_tensor(feature_extractor.mel_filters, dtype=torch.float32)
        self.register_buffer("mel_filters", filters, persistent=False)
        self.register_buffer("window", torch.hann_window(self.n_fft), persistent=False)

    @property
    def max_seconds(self) -> float:
        """Length of audio that fits, in seconds."""
        return self.n_samples / self.sampling_rate

    @property
    def n_frames(self) -> int:
        """Encoder frames of all that fits."""
        return self.n_samples // (2 * self.hop)

    @property
    def band_hertz(self) -> Tensor:
        """[n_mels] the middle of each band in Hz, on the CPU; bands that hear nothing have that of the one before."""
        hertz = torch.linspace(0, self.sampling_rate / 2, len(self.mel_filters))
        weights = self.mel_filters.float().cpu()
        middles = hertz @ weights / weights.sum(dim=0).clamp(min=1e-10)
        return middles.cummax(dim=0).values

    @torch.no_grad()
    def forward(self, raw_wav: Tensor) -> Tensor:
        """[B, N] 16 kHz, zero where padded -> [B, n_mels, n_samples // hop], cut or zero-padded to n_samples."""
        wav = raw_wav.float()[:, : self.n_samples]
        wav = F.pad(wav, (0, self.n_samples - wav.shape[1]))
        with torch.autocast(wav.device.type, enabled=False):  # powers of quiet bins are zero in half precision
            stft = torch.stft(wav, self.n_fft, self.hop, window=self.window, center=True, return_complex=True)
            power = _power(stft[..., :-1])  # [B, n_fft // 2 + 1, T]
            mel = self.mel_filters.T @ power  # [B, n_mels, T]
        log_mel = torch.log10(mel.clamp(min=1e-10))
        log_mel = torch.maximum(log_mel, log_mel.amax(dim=(1, 2), keepdim=True) - 8.0)
        return (log_mel + 4.0) / 4.0


def fbank_lengths(n_samples: Tensor) -> Tensor:
    """Number of whole frames in clips of `n_samples`: [B] -> [B]."""
    return torch.clamp(1 + (n_samples - FBANK_FRAME) // FBANK_SHIFT, min=0)


@torch.no_grad()
def kaldi_fbank(raw_wav: Tensor) -> Tensor:
    """Normalised Kaldi filter bank of BEATs: [B, N] 16 kHz -> [B, T, 128] float32, T = 1 + (N - 400) // 160.

    Computed in float64 like the published path (soundfile's default type): in float32 quiet
    bins move by 0.03 and BEATs' output by 0.01.
    """
    wav = raw_wav.double() * PCM_SCALE
    frames = wav.unfold(1, FBANK_FRAME, FBANK_SHIFT)  # [B, T, 400]
    block = max(1, FBANK_BLOCK // len(wav)) if wav.device.type == "cpu" else frames.shape[1]
    return torch.cat([_fbank(part) for part in frames.split(block, dim=1)], dim=1)


def _fbank(frames: Tensor) -> Tensor:
    """Of frames [B, T, 400] float64: [B, T, 128] float32."""
    frames = frames - frames.mean(dim=-1, keepdim=True)
    previous = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
    frames = (frames - 0.97 * previous) * _povey_window(frames.device)
    power = _power(torch.fft.rfft(frames, n=FBANK_FFT))  # [B, T, 257]
    with torch.autocast(frames.device.type, enabled=False):
        mel = power @ _kaldi_mel_filters(frames.device)  # [B, T, 128]
    log_mel = torch.log(mel.clamp(min=FBANK_FLOOR))
    return ((log_mel - FBANK_MEAN) / (2 * FBANK_STD)).float()


def _power(spectrum: Tensor) -> Tensor:
    # abs() ** 2 takes a square root and squares it again, at four times the cost
    return spectrum.real.square() + spectrum.imag.square()


@lru_cache
def _povey_window(device: torch.device) -> Tensor:
    return torch.hann_window(FBANK_FRAME, periodic=False, dtype=torch.float64, device=device) ** 0.85


@lru_cache
def _kaldi_mel_filters(device: torch.device) -> Tensor:
    """Triangles equally spaced in mel, [257, 128] float64; the Nyquist bin has no weight."""

    def mel(hertz: Tensor | float) -> Tensor:
        return 1127.0 * torch.log1p(torch.as_tensor(hertz, dtype=torch.float64) / 700.0)

    edges = torch.linspace(float(mel(FBANK_LOW)), float(mel(FBANK_HIGH)), FBANK_BINS + 2, dtype=torch.float64)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]  # [128]
    bins = mel(torch.arange(FBANK_FFT // 2, dtype=torch.float64) * (16_000 / FBANK_FFT))[:, None]  # [256, 1]
    rising, falling = (bins - left) / (centre - left), (right - bins) / (right - centre)
    filters = torch.minimum(rising, falling).clamp(min=0.0)
    return F.pad(filters, (0, 0, 0, 1)).to(device)
