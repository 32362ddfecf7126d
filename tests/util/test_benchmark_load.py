"""The benchmark of the loader: both sides make the same batch and the same features of it."""

import json
from argparse import Namespace

import numpy as np
import soundfile
import torch
from transformers import WhisperFeatureExtractor

from salmonn.audio.decode import SAMPLE_RATE
from salmonn.model.features import LogMel, kaldi_fbank
from util.benchmark import text_line
from util.benchmarks import loading


def test_the_published_batch_is_whole_clips_cut_and_padded_as_ours_and_has_our_features(tmp_path):
    paths = []
    for name, seconds, channels in (("short", 0.5, 1), ("stereo", 1.5, 2), ("long", 31, 1)):
        paths.append(tmp_path / f"{name}.wav")
        noise = 0.1 * np.random.default_rng(0).standard_normal((int(seconds * SAMPLE_RATE), channels))
        soundfile.write(paths[-1], noise, SAMPLE_RATE)
    annotation = tmp_path / "clips.json"
    annotation.write_text(json.dumps({"annotation": [{"path": f"/{path.name}", "text": "t"} for path in paths]}))
    dataset = loading.SALMONNDataset(loading.Annotations(annotation), loading.ClipPaths(str(tmp_path)), 30.0)
    ours = loading.collate([dataset[i] for i in range(3)])

    extractor = WhisperFeatureExtractor()
    published = loading.plain_batch(paths, extractor, with_fbank=True)
    assert (~published["padding_mask"]).sum(1).tolist() == [16_000, 24_000, 480_000]
    assert published["raw_wav"].dtype == torch.float64
    torch.testing.assert_close(published["raw_wav"].float(), ours["raw_wav"])
    assert torch.equal(published["padding_mask"], ours["padding_mask"])
    torch.testing.assert_close(published["spectrogram"], LogMel(extractor)(ours["raw_wav"]), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(published["fbank"], kaldi_fbank(ours["raw_wav"]), rtol=1e-3, atol=1e-3)
    assert loading.plain_batch(paths, extractor).keys() == published.keys() - {"fbank"}  # as its loader gives it
    assert loading.plain_batch(paths, None).keys() == {"raw_wav", "padding_mask"}


def test_each_kind_of_file_has_a_row_with_features_one_without_and_one_of_the_loaders(monkeypatch):
    monkeypatch.setattr(loading, "RATES", (SAMPLE_RATE, 24_000))
    monkeypatch.setattr(loading, "SUFFIXES", ("flac",))
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)  # of the tests behind this one, too
    rows = list(loading.bench_load(Namespace(seconds=[1.0], repeats=1)))
    kinds = ["1 s flac 16000 Hz", "1 s flac 24000 Hz"]
    assert [row["what"] for row in rows] == [kind + which for kind in kinds for which in loading.LINES]
    for whole, bare, loaders in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
        assert loaders["ours"] == bare["ours"]  # which makes no features
        assert min(bare["plain"], loaders["plain"], whole["plain"]) > 0
    assert all(row["ours"] > 0 and text_line(row) for row in rows)
