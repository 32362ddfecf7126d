"""Metrics of stories without a reference: distinct words, repetition, length."""

from collections.abc import Sequence

from salmonn.evaluation.metrics.base import Metric, Texts

STORY_WORDS = 50  # fewer do not follow the request for a story (SALMONN, table 3)
REPEATED = 4  # words; the measure is seq-rep-4 of Welleck et al. 2020 (arXiv 1908.04319)

Counts = list[tuple[float, float]]


def diversity(texts: Texts) -> Counts:
    """(number of distinct words, 1) per clip."""
    return [(float(len(set(output.split()))), 1.0) for output in texts.outputs]


def repeat_rate(texts: Texts) -> Counts:
    """(share of the runs of four words that occurred before in the same output, 1) per clip.

    (0, 0) with fewer than four words: there is nothing that could repeat.
    """

    shares = (repeated_share(output.split()) for output in texts.outputs)
    return [(0.0, 0.0) if share is None else (share, 1.0) for share in shares]


def repeated_share(words: Sequence[str]) -> float | None:
    """Share of the runs of four words that occurred before, 0 to 1; None where there is no such run."""
    runs = [tuple(words[i : i + REPEATED]) for i in range(len(words) - REPEATED + 1)]
    return (len(runs) - len(set(runs))) / len(runs) if runs else None


def following(texts: Texts) -> Counts:
    """(1 if the output has at least 50 words, 1) per clip."""
    return [(float(len(output.split()) >= STORY_WORDS), 1.0) for output in texts.outputs]


METRICS = {
    "diversity": Metric("distinct words", diversity, needs="outputs", percent=False),
    "repeat_rate": Metric("repeat rate (4 words)", repeat_rate, needs="outputs", lower_is_better=True),
    "following_story": Metric("following rate", following, needs="outputs"),
}
