"""When a run has left the plateau, read from its curve of validations.

A curve is a list of points {"samples", "loss", "loss_shuffled", "accuracy", "tasks": {task: the same}}.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

SHARE = 0.8  # of the shuffled loss: clearly below it
# of the miniature world: from 0.46, answers by habit, to 0.98, the trained model (stage 1 of `make quickstart`)
HALF_WAY_ACCURACY = 0.72
IN_A_ROW = 2  # validations that must agree

Point = dict[str, Any]


def criterion(half_way_accuracy: float) -> str:
    """In words."""
    return (
        f"The plateau is left where the validation loss falls to {SHARE} x the loss with the audio shuffled between "
        f"clips and stays below it at all validations that follow, at least {IN_A_ROW} (samples interpolated linearly "
        f"between the validations before and after). In the same way half the way is done at a token accuracy of "
        f"{half_way_accuracy:g}, in the middle between answering by habit and the trained model."
    )


def left_plateau(curve: Sequence[Point], task: str | None = None) -> float:
    """Samples after which the right audio clearly helps and goes on to help, in all or in one task; inf = never."""

    def margin(point: Point) -> float:
        values = point if task is None else point["tasks"][task]
        return SHARE * values["loss_shuffled"] - values["loss"]

    return _samples_at_last_rise(curve, margin)


def half_way(curve: Sequence[Point], accuracy: float = HALF_WAY_ACCURACY) -> float:
    """Samples after which the half-way accuracy is reached and kept; inf = never."""
    return _samples_at_last_rise(curve, lambda point: point["accuracy"] - accuracy)


def says_enough(curve: Sequence[Point], accuracy: float = HALF_WAY_ACCURACY) -> bool:
    """Whether both are reached."""
    return math.isfinite(max(left_plateau(curve), half_way(curve, accuracy)))


def at_samples(curve: Sequence[Point], samples: float, key: str, by: str = "samples") -> float:
    """A point's value at so many samples, or at another measure that grows: linear in between; nan outside."""
    points = [(point[by], point[key]) for point in curve if point.get(key) is not None]
    if not points or not points[0][0] <= samples <= points[-1][0]:
        return math.nan
    places, values = zip(*points, strict=True)
    return float(np.interp(samples, places, values))


def _samples_at_last_rise(curve: Sequence[Point], margin: Callable[[Point], float]) -> float:
    """Samples at which the margin rises above 0 to stay there; inf where fewer than IN_A_ROW points show it."""
    margins = [margin(point) for point in curve]
    first = len(curve)
    while first and margins[first - 1] > 0:
        first -= 1
    if len(curve) - first < IN_A_ROW:
        return math.inf
    if first == 0:
        return curve[0]["samples"]
    share = -margins[first - 1] / (margins[first] - margins[first - 1])
    before, after = curve[first - 1]["samples"], curve[first]["samples"]
    return before + share * (after - before)
