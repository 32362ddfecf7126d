"""How long a training step waits for its batch, with the runner's loader over real files."""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from salmonn.config.schema import RunConfig
from salmonn.data.annotations import Annotations
from salmonn.data.clip_paths import ClipPaths
from salmonn.data.dataset import SALMONNDataset
from salmonn.data.loader import eval_loader
from util.benchmarks.loading import write_noise

RATE = 44_100  # Hz: resampled on the way, as most sound corpora are


def data_wait(step: Callable[[], object], batch: int, max_seconds: float, steps: int) -> float:
    """Median seconds between asking for a batch of FLAC files of full length and having it, after the first one."""
    waits = []
    with tempfile.TemporaryDirectory() as folder:
        write_noise(Path(folder) / "clip.flac", RATE, max_seconds)
        entries = [{"path": "/clip.flac", "text": "noise"}] * (batch * (steps + 1))
        annotation = Path(folder) / "clips.json"
        annotation.write_text(json.dumps({"annotation": entries}), encoding="utf-8")
        dataset = SALMONNDataset(Annotations(annotation), ClipPaths(folder), max_seconds)
        batches = iter(eval_loader(dataset, batch, min(RunConfig().num_workers, os.cpu_count() or 1), 0, 1))
        for _ in range(steps + 1):
            asked = time.perf_counter()
            next(batches)
            waits.append(time.perf_counter() - asked)
            step()
        del batches  # its processes end before the folder does
    return statistics.median(waits[1:])
