"""Metrics as summable statistics per clip, and bootstrap intervals: a sum gives the score of any subset of the clips.

So one computation serves all clips, the finished answers and every resample of the bootstrap,
and a corpus score (WER, BLEU) stays a corpus score. Knows no model and no files.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

RESAMPLES = 1000
SEED = 0  # one seed: metrics of one set see the same resamples, and a report is reproducible


class UnavailableError(Exception):
    """A metric that cannot be computed here; the message tells why and how to get it."""


@dataclass(frozen=True)
class Texts:
    """Normalised texts of the clips to be scored, one item per clip."""

    outputs: Sequence[str]
    references: Sequence[Sequence[str]]  # only such as hold a word; none where the clip has none
    spoken: Sequence[str] = ()  # what is said in the clip; "" where it is not known; () where for none
    replies: Sequence[Any] = ()  # of a judge on the output: a JudgeReply, None where there is none
    picks: Sequence[Any] = ()  # of multiple choice: a Pick, None where the right answer is not known

    def take(self, rows: Sequence[int]) -> "Texts":
        """These clips only."""
        others = ([values[i] for i in rows] if values else () for values in (self.spoken, self.replies, self.picks))
        return Texts([self.outputs[i] for i in rows], [self.references[i] for i in rows], *others)


def ratio(sums: np.ndarray) -> np.ndarray:
    """First column over second, of [m, 2]; nan where nothing was counted. The default value of a metric."""
    return np.divide(sums[:, 0], sums[:, 1], out=np.full(len(sums), np.nan), where=sums[:, 1] != 0)


def percent(share: float | None) -> str:
    """A share as a note tells it; "-" for none."""
    return "-" if share is None else f"{100 * share:.1f} %"


# What a metric may need of a clip: fields of Texts.
NEEDS = {
    "references": "a reference",
    "spoken": "the text that is spoken in it",
    "outputs": "an output",
    "replies": "a judge's verdict",
    "picks": "options and a known answer",
}


@dataclass(frozen=True)
class Metric:
    """A score: how it is told to a person, what it needs, and how it is computed."""

    title: str
    statistics: Callable[[Texts], Any]  # clips that have what is needed -> [n_clips, k]; may raise UnavailableError
    value: Callable[[np.ndarray], np.ndarray] = ratio  # sums of statistics [m, k] -> scores [m], nan: undefined
    needs: str = "references"  # a key of NEEDS: clips without it are left out
    percent: bool = True  # shown as a percentage; stored as a ratio
    digits: int = 2
    tool: str = "own count"  # what counts it: a published score of another tool is not compared
    substitute: str = ""  # what is counted instead of what publications count: then no difference to theirs is told
    lower_is_better: bool = False
    details: Callable[[np.ndarray], Mapping[str, Any]] | None = None  # sum of statistics [k] -> what there is besides
    # A library's score of a set that is no function of what it tells per clip. It is the score then,
    # and `statistics` only give the width of the interval.
    corpus: Callable[[Texts], float] | None = None

    @property
    def arrow(self) -> str:
        """Which way is better."""
        return "↓" if self.lower_is_better else "↑"

    def show(self, value: float) -> str:
        """The score as a person reads it."""
        return f"{100 * value:.{self.digits}f} %" if self.percent else f"{value:.{self.digits}f}"


@dataclass(frozen=True)
class Measured:
    """One metric over a set; None where it is not defined."""

    value: float | None
    finished: float | None  # over the answers that the model ended by itself
    interval: list[float] | None  # [low, high] of value, 95 %
    rows: Sequence[int]  # the clips scored: those that have what the metric needs
    statistics: np.ndarray = field(compare=False)  # of these clips [n_clips, k]
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def clips(self) -> int:
        """Number of clips scored."""
        return len(self.rows)


def measure(metric: Metric, texts: Texts, finished: Sequence[bool]) -> Measured:
    """Score the clips that have what the metric needs; `finished` is per clip.

    Raises UnavailableError where there is no such clip or the metric cannot be computed here.
    """
    rows = [i for i, given in enumerate(_needed(metric, texts)) if given]
    if not rows:
        raise UnavailableError(f"no clip that could be heard has {NEEDS[metric.needs]}")
    scored = texts.take(rows)
    statistics = np.asarray(metric.statistics(scored), dtype=np.float64)
    ended = [i for i, row in enumerate(rows) if finished[row]]
    value = value_of(metric, statistics)
    edges = interval_of(metric, statistics)
    of_finished = value_of(metric, statistics[ended]) if ended else None
    if metric.corpus:
        whole = metric.corpus(scored)
        edges = [edge + whole - value for edge in edges] if edges and value is not None else None
        value, of_finished = whole, metric.corpus(scored.take(ended)) if ended else None
    details = metric.details(statistics.sum(axis=0)) if metric.details else {}
    return Measured(value, of_finished, edges, rows, statistics, details)


def value_of(metric: Metric, statistics: np.ndarray) -> float | None:
    """Score of the clips with these statistics [n_clips, k]; None where it is not defined."""
    value = metric.value(statistics.sum(axis=0)[None])[0]
    return None if np.isnan(value) else float(value)


def interval_of(metric: Metric, statistics: np.ndarray) -> list[float] | None:
    """95 % bootstrap interval [low, high]: percentiles of the scores of RESAMPLES resamples of the clips.

    None with fewer than two clips: nothing is known of how they vary.
    """
    return _percentiles(_resampled(metric, statistics)) if len(statistics) > 1 else None


def paired_interval_of(
    metric: Metric, first: np.ndarray, second: np.ndarray, scores: tuple[float, float]
) -> list[float] | None:
    """95 % bootstrap interval [low, high] of the second score minus the first, both on the same resampled clips.

    Statistics [n_clips, k] of the same clips in one order, and the scores of the two sets (see Metric.corpus).
    None with fewer than two clips.
    """
    if len(first) < 2:
        return None
    values = _resampled(metric, second) - _resampled(metric, first)  # one seed: both draw the same clips
    edges = _percentiles(values)
    if metric.corpus and edges:
        of_first, of_second = value_of(metric, first), value_of(metric, second)
        if of_first is None or of_second is None:
            return None
        shift = (scores[1] - of_second) - (scores[0] - of_first)
        edges = [edge + shift for edge in edges]
    return edges


def _resampled(metric: Metric, statistics: np.ndarray) -> np.ndarray:
    """Scores [RESAMPLES] of resamples of the clips, which are the same for all statistics of as many clips."""
    n = len(statistics)
    rng = np.random.default_rng(SEED)
    drawn = (np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(RESAMPLES))
    return metric.value(np.stack([times @ statistics for times in drawn]))


def _percentiles(values: np.ndarray) -> list[float] | None:
    values = values[~np.isnan(values)]
    return [float(edge) for edge in np.percentile(values, (2.5, 97.5))] if len(values) else None


def _needed(metric: Metric, texts: Texts) -> Sequence[Any]:
    """Per clip what the metric needs; empty where the clip has none."""
    if metric.needs == "outputs":
        return [True] * len(texts.outputs)
    return getattr(texts, metric.needs)
