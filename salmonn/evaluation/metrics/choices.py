"""Metrics of multiple choice: the option that an answer names, and the one that the model finds likeliest.

A choice is right, wrong, or of the answer not to be told; what is not told is counted, and never guessed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

import numpy as np

from salmonn.evaluation.metrics.base import Metric, Texts, percent

LETTERS = ascii_uppercase
_COUNTS = 3  # columns before the places: right, 1, chance


@dataclass(frozen=True)
class Pick:
    """Which of a clip's options the model chose; options are counted from 0 in the order of the file."""

    n_options: int
    right: int | None  # None: no option is the right answer, or it is withheld
    named: int | None  # by the generated answer, asked in the order of the file; None: not to be told
    likeliest: int  # by the losses averaged over the orders
    places: tuple[int, ...]  # at which place the likeliest option stood, for each order


def likelihood(texts: Texts) -> np.ndarray:
    """Per clip: right, 1, chance, whether orders disagree; then how often each place is chosen, and if even."""
    widest = _widest(texts)
    found = np.zeros((len(texts.picks), _COUNTS + 1 + 2 * widest))
    for row, pick in zip(found, texts.picks, strict=True):
        options = {(place + order) % pick.n_options for order, place in enumerate(pick.places)}
        row[: _COUNTS + 1] = pick.likeliest == pick.right, 1, 1 / pick.n_options, len(options) > 1
        chosen, even = row[_COUNTS + 1 :].reshape(2, widest)
        np.add.at(chosen, list(pick.places), 1)
        even[: pick.n_options] = len(pick.places) / pick.n_options
    return found


def named(texts: Texts) -> np.ndarray:
    """Per clip: right, 1, chance, whether none is named, whether none is right; then the places named and right."""
    widest = _widest(texts)
    found = np.zeros((len(texts.picks), _COUNTS + 2 + 2 * widest))
    for row, pick in zip(found, texts.picks, strict=True):
        is_right = pick.named is not None and pick.named == pick.right
        row[: _COUNTS + 2] = is_right, 1, 1 / pick.n_options, pick.named is None, pick.right is None
        places = row[_COUNTS + 2 :].reshape(2, widest)
        for counts, place in zip(places, (pick.named, pick.right), strict=True):
            if place is not None:
                counts[place] = 1
    return found


def _widest(texts: Texts) -> int:
    return max(pick.n_options for pick in texts.picks)


def _likelihood_details(sums: np.ndarray) -> Mapping[str, Any]:
    n, chance, disagreeing = sums[1], sums[2] / sums[1], int(sums[_COUNTS])
    chosen, even = _shares(sums[_COUNTS + 1 :])
    note = (
        f"chance {percent(chance)}; the likeliest option depends on the order for {disagreeing} of {n:.0f} clips; "
        f"over all orders the likeliest stands at {_listed(chosen)} (even: {_listed(even)})"
    )
    return {
        "chance": chance,
        "order_dependent": disagreeing,
        "places_chosen": chosen,
        "places_even": even,
        "note": note,
    }


def _named_details(sums: np.ndarray) -> Mapping[str, Any]:
    n, chance, unparsed, without = sums[1], sums[2] / sums[1], int(sums[_COUNTS]), int(sums[_COUNTS + 1])
    chosen, right = _shares(sums[_COUNTS + 2 :])
    note = f"chance {percent(chance)}; {unparsed} of {n:.0f} answers name no single option, counted as wrong"
    if unparsed < n:
        note += f"; those that do name {_listed(chosen)} (right: {_listed(right)})"
    if without:
        note += f"; {without} clips have no option that is the right answer, and count as wrong"
    places = {"places_named": chosen, "places_right": right}
    return {"chance": chance, "unparsed": unparsed, "without_right_option": without, **places, "note": note}


def _shares(counts: np.ndarray) -> list[dict[str, float]]:
    """Two lists of counts by place, each as {letter: share}; places that no clip has were never counted."""
    both = counts.reshape(2, -1)
    return [
        {letter: float(count / max(1.0, places.sum())) for letter, count in zip(LETTERS, places, strict=False)}
        for places in both
    ]


def _listed(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{letter} {percent(share)}" for letter, share in shares.items())


METRICS = {
    "choice_likelihood": Metric(
        "accuracy by option likelihood",
        likelihood,
        needs="picks",
        details=_likelihood_details,
        tool="length-normalised likelihood over orders",
    ),
    "choice_named": Metric(
        "accuracy of the option named", named, needs="picks", details=_named_details, tool="letter or option named"
    ),
}
