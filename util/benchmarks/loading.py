"""From files to a batch: our dataset and collate against reading and resampling whole files."""

import argparse
import json
import tempfile
from pathlib import Path

import librosa
import numpy as np
import soundfile
import torch
from transformers import WhisperFeatureExtractor

from salmonn.audio.decode import SAMPLE_RATE
from salmonn.data.annotations import Annotations
from salmonn.data.clip_paths import ClipPaths
from salmonn.data.collate import collate
from salmonn.data.dataset import SALMONNDataset
from util.benchmarks.measure import alternate, row

MAX_SECONDS = 30.0
RATES, SUFFIXES = (16_000, 24_000, 32_000, 44_100), ("wav", "flac", "mp3")
CLIPS = 4  # of each kind


def bench_load(args: argparse.Namespace) -> list[dict]:
    """Whole `__getitem__` + collate on one core, clips of args.seconds each.

    The plain way is the published code's and its forks': the whole file, librosa.resample, Whisper's
    extractor for each clip in the worker. The second line of each kind leaves that extractor out.
    """
    torch.set_num_threads(1)
    extractor = WhisperFeatureExtractor()
    rows = []
    for seconds in args.seconds:
        with tempfile.TemporaryDirectory() as folder:
            for rate in RATES:
                for suffix in SUFFIXES:
                    dataset, paths = _clips(Path(folder), rate, suffix, seconds)
                    ours = lambda dataset=dataset: collate([dataset[i] for i in range(CLIPS)])  # noqa: E731
                    for name, features in (("", extractor), (", no features", None)):
                        plain = lambda paths=paths, features=features: _plain_batch(paths, features)  # noqa: E731
                        times = alternate(ours, plain, args.repeats)
                        what = f"{seconds:g} s {suffix} {rate} Hz{name}"
                        rows.append(row(what, times, clips_per_second=CLIPS / times[0]))
    return rows


def _clips(folder: Path, rate: int, suffix: str, seconds: float) -> tuple[SALMONNDataset, list[Path]]:
    paths = [folder / f"{rate}_{i}.{suffix}" for i in range(CLIPS)]
    for path in paths:
        write_noise(path, rate, seconds)
    annotation = folder / f"{rate}_{suffix}.json"
    annotation.write_text(json.dumps({"annotation": [{"path": f"/{path.name}", "text": "t"} for path in paths]}))
    return SALMONNDataset(Annotations(annotation), ClipPaths(str(folder)), MAX_SECONDS), paths


def write_noise(path: Path, rate: int, seconds: float) -> None:
    """A file of noise."""
    block = 0.1 * np.random.default_rng(0).standard_normal(int(min(seconds, 30) * rate))
    with soundfile.SoundFile(path, "w", rate, 1) as file:
        for _ in range(int(np.ceil(seconds / 30))):
            file.write(block)


def _plain_batch(paths: list[Path], extractor: WhisperFeatureExtractor | None) -> list:
    batch = []
    for path in paths:
        samples, rate = soundfile.read(path)
        wav = samples if samples.ndim == 1 else samples[:, 0]
        if rate != SAMPLE_RATE:
            wav = librosa.resample(wav, orig_sr=rate, target_sr=SAMPLE_RATE)
        wav = wav[: int(MAX_SECONDS * SAMPLE_RATE)]
        batch.append(extractor(wav, sampling_rate=SAMPLE_RATE, return_tensors="pt") if extractor else wav)
    return batch
