"""Measure our way against the plain way, side by side in one run.

  python util/benchmark.py                  all benchmarks
  python util/benchmark.py load --seconds 180
  python util/benchmark.py frontends --batch 8

Each line is the median of alternated repeats after a warm-up; the ratio is plain / ours.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import librosa
import numpy as np
import soundfile
import torch
import torchaudio
from transformers import WhisperFeatureExtractor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from salmonn.audio import SAMPLE_RATE, load_audio  # noqa: E402
from salmonn.features import PCM_SCALE, LogMel, kaldi_fbank  # noqa: E402

MAX_SECONDS = 30.0


def alternate(ours: Callable[[], object], plain: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median seconds of both, run in turns so that a noisy machine disturbs both alike."""
    times: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats + 1):
        for way, measured in zip((ours, plain), times, strict=True):
            started = time.perf_counter()
            way()
            if repeat:  # the first round warms up
                measured.append(time.perf_counter() - started)
    return statistics.median(times[0]), statistics.median(times[1])


def bench_load(args: argparse.Namespace) -> list[dict]:
    """Decode and resample the first 30 s, against reading and resampling the whole file as a fork does."""
    rows = []
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for rate in (16_000, 32_000, 44_100):
            for suffix in ("wav", "flac", "mp3"):
                path = Path(folder) / f"{rate}.{suffix}"
                soundfile.write(path, 0.1 * rng.standard_normal(int(args.seconds * rate)), rate)
                ours, plain = alternate(
                    lambda p=path: load_audio(p, MAX_SECONDS), lambda p=path: plain_load(p), args.repeats
                )
                rows.append({"what": f"load {args.seconds:g} s {suffix} {rate} Hz", "ours": ours, "plain": plain})
    return rows


def plain_load(path: Path) -> np.ndarray:
    """Read everything, resample everything, cut at the end."""
    samples, rate = soundfile.read(path, always_2d=True)
    wav = samples[:, 0].astype(np.float32)
    if rate != SAMPLE_RATE:
        wav = librosa.resample(wav, orig_sr=rate, target_sr=SAMPLE_RATE)
    return wav[: int(MAX_SECONDS * SAMPLE_RATE)]


def bench_frontends(args: argparse.Namespace) -> list[dict]:
    """Batched log-mel and filter bank, against one clip at a time by the libraries' own functions."""
    extractor = WhisperFeatureExtractor()
    log_mel = LogMel(extractor)
    wavs = 0.1 * torch.randn(args.batch, int(min(args.seconds, MAX_SECONDS) * SAMPLE_RATE))
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
    rows = []
    for name, (ours, plain) in pairs.items():
        seconds = alternate(ours, plain, args.repeats)
        rows.append({"what": f"{name}, batch {args.batch}", "ours": seconds[0], "plain": seconds[1]})
    return rows


BENCHMARKS = {"load": bench_load, "frontends": bench_frontends}


def main() -> None:
    """Run the benchmarks that the command line names and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=BENCHMARKS, help="one benchmark (default: all)")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the clips (default 60)")
    parser.add_argument("--batch", type=int, default=8, help="clips per batch (default 8)")
    parser.add_argument("--repeats", type=int, default=5, help="timed repeats (default 5)")
    parser.add_argument("--json", metavar="FILE", help="write the rows to FILE, too")
    args = parser.parse_args()

    machine = (
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    print(machine)
    print(f"{'':34}{'ours':>10}{'plain':>10}{'ratio':>8}")
    rows = []
    for name in [args.what] if args.what else BENCHMARKS:
        for row in BENCHMARKS[name](args):
            row["ratio"] = row["plain"] / row["ours"]
            rows.append(row)
            print(f"{row['what']:34}{1000 * row['ours']:>7.1f} ms{1000 * row['plain']:>7.1f} ms{row['ratio']:>7.2f}x")
    if args.json:
        Path(args.json).write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
