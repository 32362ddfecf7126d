"""How long a training step waits for its batch, with the runner's loader over real files."""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

from salmonn.config.schema import RunConfig
from salmonn.data.annotations import Annotations
from salmonn.data.clip_paths import ClipPaths
from salmonn.data.dataset import SALMONNDataset
from salmonn.data.loader import PREFETCH, eval_loader
from util.benchmarks.loading import write_noise

RATE = 44_100  # Hz: resampled on the way, as most sound corpora are
# Of batches, one for each worker: those that are taken at once, those that are not timed, those that are; and as many
# to come, or the workers would be idle while the last ones are timed.
DRAINED, UNTIMED, TIMED = PREFETCH, 1, 1
ROUNDS = DRAINED + UNTIMED + TIMED + PREFETCH


def data_wait(step: Callable[[], object], batch: int, max_seconds: float) -> float:
    """Mean seconds of a step between asking for a batch of FLAC files of full length and having it."""
    workers = min(RunConfig().num_workers, os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as folder:
        write_noise(Path(folder) / "clip.flac", RATE, max_seconds)
        entries = [{"path": "/clip.flac", "text": "noise"}] * (batch * workers * ROUNDS)
        annotation = Path(folder) / "clips.json"
        annotation.write_text(json.dumps({"annotation": entries}), encoding="utf-8")
        dataset = SALMONNDataset(Annotations(annotation), ClipPaths(folder), max_seconds)
        with closing(eval_loader(dataset, batch, workers, 0, 1)) as batches:  # its processes end before the folder does
            return mean_wait(batches, workers, step)


def mean_wait(batches: Iterator[object], workers: int, step: Callable[[], object]) -> float:
    """Mean seconds that a step waits once nothing is left of what was loaded ahead.

    The workers finish together, so that only one batch of a round is waited for: the mean of a round tells, no median.
    """
    for _ in islice(batches, DRAINED * workers):
        pass
    waits = []
    for _ in range((UNTIMED + TIMED) * workers):
        step()
        asked = time.perf_counter()
        next(batches)
        waits.append(time.perf_counter() - asked)
    return statistics.mean(waits[UNTIMED * workers :])
