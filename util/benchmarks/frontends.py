"""Batched log-mel and filter bank, against one clip at a time by the libraries' own functions."""

import argparse

import torch
import torchaudio
from transformers import WhisperFeatureExtractor

from salmonn.audio.decode import SAMPLE_RATE
from salmonn.model.features import PCM_SCALE, LogMel, kaldi_fbank
from util.benchmarks.measure import alternate, row

BATCH = 8


def bench_frontends(args: argparse.Namespace) -> list[dict]:
    """Features of args.batch clips of 30 s."""
    batch = args.batch or BATCH
    extractor = WhisperFeatureExtractor()
    log_mel = LogMel(extractor)
    wavs = 0.1 * torch.randn(batch, 30 * SAMPLE_RATE)
    arrays = [wav.numpy() for wav in wavs]

    def plain_mel() -> None:
        for array in arrays:
            extractor(array, sampling_rate=SAMPLE_RATE, return_tensors="pt")

    def plain_fbank() -> None:
        for wav in wavs:
            torchaudio.compliance.kaldi.fbank(
                wav[None].double() * PCM_SCALE, num_mel_bins=128, sample_frequency=SAMPLE_RATE
            )

    pairs = {"log-mel": (lambda: log_mel(wavs), plain_mel), "fbank": (lambda: kaldi_fbank(wavs), plain_fbank)}
    return [row(f"{name}, batch {batch}", alternate(*pair, args.repeats)) for name, pair in pairs.items()]
