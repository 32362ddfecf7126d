"""From files to a batch: our dataset, collate and features against the published ones."""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import WhisperFeatureExtractor

from salmonn.audio.decode import SAMPLE_RATE
from salmonn.data.annotations import Annotations
from salmonn.data.clip_paths import ClipPaths
from salmonn.data.collate import collate
from salmonn.data.dataset import SALMONNDataset
from salmonn.model.features import LogMel, kaldi_fbank
from util.benchmarks import plain_features
from util.benchmarks.measure import in_turns, row

MAX_SECONDS = 30.0
RATES, SUFFIXES = (SAMPLE_RATE, 24_000, 32_000, 44_100), ("wav", "flac", "mp3")
CLIPS = 4  # of each kind
LINES = ("", ", no features", ", what each loader does")


def bench_load(args: argparse.Namespace) -> Iterator[dict]:
    """CPU seconds of one core from files to a batch, clips of args.seconds each, in three lines for each kind of file.

    With the features of both encoders on both sides; with none; and what each loader does: the published one makes
    Whisper's features, clip by clip, and leaves BEATs' to the model, ours leaves both to the model's device.
    """
    torch.set_num_threads(1)
    extractor = WhisperFeatureExtractor()
    mel = LogMel(extractor)
    for seconds in args.seconds:
        with tempfile.TemporaryDirectory() as folder:
            for rate in RATES:
                for suffix in SUFFIXES:
                    dataset, paths = _clips(Path(folder), rate, suffix, seconds)
                    plain = (extractor, True), (None, False), (extractor, False)
                    ways: list[Callable[[], object]] = [partial(our_batch, dataset, of) for of in (mel, None)]
                    ways += [partial(plain_batch, paths, *features) for features in plain]
                    whole, bare, *published = in_turns(ways, args.repeats, time.process_time)
                    for name, ours, theirs in zip(LINES, (whole, bare, bare), published, strict=True):
                        what = f"{seconds:g} s {suffix} {rate} Hz{name}"
                        yield row(what, (ours, theirs), clips_per_second=CLIPS / ours)


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


def our_batch(dataset: SALMONNDataset, mel: LogMel | None) -> object:
    """A batch as ours makes it; with `mel` also the features of both encoders."""
    samples = collate([dataset[i] for i in range(len(dataset))])
    return (samples, mel(samples["raw_wav"]), kaldi_fbank(samples["raw_wav"])) if mel else samples


def plain_batch(
    paths: list[Path], extractor: WhisperFeatureExtractor | None, with_fbank: bool = False
) -> dict[str, Tensor]:
    """A batch as the published dataset and collate make it: raw_wav [B, N] float64, its padding_mask [B, N].

    With an extractor also spectrogram [B, 80, 3000], on demand fbank [B, T, 128], which the model makes. A clip is read
    whole, at least 1 s of it and at most 30 kept. The published code takes 16 kHz only; other rates are resampled as
    its forks do it.
    """
    wavs = [plain_clip(path) for path in paths]
    raw_wav = pad_sequence([torch.from_numpy(wav) for wav in wavs], batch_first=True)
    lengths = torch.tensor([len(wav) for wav in wavs])
    batch = {"raw_wav": raw_wav, "padding_mask": torch.arange(raw_wav.shape[1])[None] >= lengths[:, None]}
    if extractor:
        batch["spectrogram"] = torch.stack([plain_features.log_mel(wav, extractor) for wav in wavs])
    if with_fbank:
        batch["fbank"] = torch.stack([plain_features.fbank(wav) for wav in raw_wav])
    return batch


def plain_clip(path: Path) -> np.ndarray:
    """A file's first channel [N], float64."""
    samples, rate = soundfile.read(path)
    wav = samples if samples.ndim == 1 else samples[:, 0]
    if rate != SAMPLE_RATE:
        import librosa  # only the yardstick needs it

        wav = librosa.resample(wav, orig_sr=rate, target_sr=SAMPLE_RATE)
    if len(wav) < SAMPLE_RATE:
        wav = np.concatenate([wav, np.zeros(SAMPLE_RATE - len(wav))])
    return wav[: int(MAX_SECONDS * SAMPLE_RATE)]
