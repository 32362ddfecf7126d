"""Where the time of a training step goes."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch

from util.benchmarks.measure import spent
from util.benchmarks.plain_step import Step

REST = "the rest"


def split_step(
    step: Step, parts: Mapping[str, Sequence[tuple[Any, str]]], repeats: int, device: torch.device
) -> dict[str, float]:
    """Median seconds of each part of a step, backward pass and optimiser, after one step to warm up.

    `parts`: the functions, as (owner, name), that a part consists of; none may call another. The device
    finishes its work at each boundary, so this takes longer than a step that is only timed as a whole.
    """
    steps: list[dict[str, float]] = []
    for _ in range(repeats + 1):
        seconds: dict[str, float] = defaultdict(float)
        with ExitStack() as patches, _timed("step", seconds, device):
            for part, functions in parts.items():
                for owner, name in functions:
                    timed = _timing(getattr(owner, name), part, seconds, device)
                    patches.enter_context(mock.patch.object(owner, name, timed))
            result = step.forward()
            with _timed("backward", seconds, device):
                step.backward(result)
            with _timed("optimiser", seconds, device):
                step.update()
        seconds[REST] = 2 * seconds["step"] - sum(seconds.values())
        steps.append(seconds)
    return {part: statistics.median(seconds[part] for seconds in steps[1:]) for part in [*parts, *_LAST]}


_LAST = ("backward", "optimiser", REST)


@contextmanager
def _timed(part: str, seconds: dict[str, float], device: torch.device) -> Iterator[None]:
    began = spent(device)
    yield
    seconds[part] += spent(device) - began


def _timing(call: Callable, part: str, seconds: dict[str, float], device: torch.device) -> Callable:
    def timed(*args: Any, **kwargs: Any) -> Any:
        with _timed(part, seconds, device):
            return call(*args, **kwargs)

    return timed
