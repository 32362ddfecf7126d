"""Batched front ends against the libraries' own per-clip ones."""

import numpy as np
import pytest
import torch
import torchaudio
from transformers import WhisperFeatureExtractor

from salmonn.model.features import FBANK_MEAN, FBANK_STD, LogMel, fbank_lengths, kaldi_fbank


def waves(*lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [0.1 * torch.randn(n, generator=generator) for n in lengths]


def test_log_mel_of_a_batch_equals_the_feature_extractor_clip_by_clip():
    for extractor in (WhisperFeatureExtractor(), WhisperFeatureExtractor(feature_size=128, chunk_length=5)):
        clips = waves(16_000, 40_001, 79_999)
        batch = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
        expected = extractor([c.numpy() for c in clips], sampling_rate=16_000, return_tensors="pt").input_features
        torch.testing.assert_close(LogMel(extractor)(batch), expected, rtol=0, atol=1e-4)


def test_log_mel_cuts_what_the_extractor_does_not_hear():
    extractor = WhisperFeatureExtractor(chunk_length=5)
    [clip] = waves(100_000)
    torch.testing.assert_close(LogMel(extractor)(clip[None]), LogMel(extractor)(clip[None, :80_000]))


def test_fbank_of_a_batch_equals_kaldi_of_torchaudio_clip_by_clip():
    clips = waves(16_000, 23_457, 48_000)
    batch = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    lengths = fbank_lengths(torch.tensor([len(c) for c in clips]))
    ours = kaldi_fbank(batch)
    for i, clip in enumerate(clips):
        theirs = torchaudio.compliance.kaldi.fbank(
            clip[None].double() * 2**15, num_mel_bins=128, sample_frequency=16_000, frame_length=25, frame_shift=10
        )
        assert theirs.shape[0] == lengths[i]
        expected = ((theirs - FBANK_MEAN) / (2 * FBANK_STD)).float()
        torch.testing.assert_close(ours[i, : lengths[i]], expected, rtol=0, atol=1e-4)


def test_frames_fit_entirely():
    assert fbank_lengths(torch.tensor([0, 399, 400, 559, 560, 480_000])).tolist() == [0, 0, 1, 1, 2, 2998]


def test_silence_gives_finite_features():
    silence = torch.zeros(1, 16_000)
    assert np.isfinite(kaldi_fbank(silence).numpy()).all()
    assert np.isfinite(LogMel(WhisperFeatureExtractor())(silence).numpy()).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mixed_precision_leaves_the_features_alone(dtype):
    log_mel = LogMel(WhisperFeatureExtractor(chunk_length=5))
    quiet = 1e-3 * waves(32_000)[0][None]
    for wav in (quiet, torch.zeros(1, 16_000)):
        expected = log_mel(wav), kaldi_fbank(wav)
        with torch.autocast("cpu", dtype):
            assert torch.equal(log_mel(wav), expected[0])
            assert torch.equal(kaldi_fbank(wav), expected[1])
