"""What a step waits for its data: loading that is too slow is seen, whatever was loaded ahead."""

import math
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from salmonn.data import loader
from util.benchmarks import data_wait

WORKERS, LOADING = 2, 0.5


class Slow:
    """A data set whose batches of two take `LOADING` seconds, as one on a slow disk."""

    def __getitem__(self, i: int) -> dict:
        time.sleep(LOADING / 2)
        return {"i": i}

    def paths(self, _indices: list[int]) -> list[str]:
        return []


def load_slowly(dataset: Slow, indices: list[int]) -> list[dict]:
    return [dataset[i] for i in indices]


def test_loading_that_is_slower_than_the_step_is_waited_for(monkeypatch):
    monkeypatch.setattr(loader, "load_items", load_slowly)
    monkeypatch.setattr(loader, "collate", lambda items, **_: items)
    batches = loader.load(Slow(), [[0, 1]] * (WORKERS * data_wait.ROUNDS), WORKERS)
    try:
        assert data_wait.mean_wait(batches, WORKERS, lambda: None) > 0.1 * LOADING / WORKERS
    finally:
        batches.close()


def in_bursts(clock: SimpleNamespace, workers: int, loading: float) -> Iterator[int]:
    """Batches of workers that each take `loading` seconds for one and have up to PREFETCH of them ready."""
    ready = [0.0] * workers
    taken: list[float] = []
    for i in range(10_000):
        asked = taken[i - loader.PREFETCH * workers] if i >= loader.PREFETCH * workers else 0.0
        ready[i % workers] = max(ready[i % workers], asked) + loading
        clock.now = max(clock.now, ready[i % workers])
        taken.append(clock.now)
        yield i


@pytest.mark.parametrize("workers", [1, 2, 8, 16])
@pytest.mark.parametrize("loading", [0.01, 0.9, 1.5, 7.5, 8.5, 40.0])
def test_what_is_waited_for_is_what_loading_lacks(monkeypatch, workers, loading):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(data_wait.time, "perf_counter", lambda: clock.now)

    def step() -> None:
        clock.now += 1.0

    found = data_wait.mean_wait(in_bursts(clock, workers, loading), workers, step)
    assert math.isclose(found, max(0.0, loading / workers - 1.0), abs_tol=1e-6)
