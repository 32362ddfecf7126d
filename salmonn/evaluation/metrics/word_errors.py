"""Errors per word or phone by editdistance, and with the sentences of two speakers in either order."""

from collections.abc import Callable, Mapping, Sequence
from itertools import permutations
from typing import Any

import editdistance
import numpy as np

from salmonn.evaluation.metrics.base import Metric, Texts, UnavailableError

SPEAKERS_AT_MOST = 5  # every order of the sentences is tried
TRANSCRIBES_BELOW = 0.3  # WER against the spoken question under which an answer repeats it (SALMONN, table 3)

Counts = tuple[float, ...]  # edits, words of the reference, ...


def word_errors(texts: Texts) -> list[Counts]:
    """(word edits, words of the reference) per clip, by the reference that fits best."""

    def count(output: str, reference: str) -> Counts:
        return editdistance.eval(output.split(), reference.split()), len(reference.split())

    return _best(texts, count)


def separated_word_errors(texts: Texts) -> list[Counts]:
    """(word edits, words of the reference, 1 if the number of sentences differs, 1) per clip.

    Sentences are lines. As many in the output as in the reference: they are paired in the order
    with the fewest edits. Another number (the line break forgotten, a sentence missing or one too
    many): all words of the output are compared with the reference's sentences joined, in the order
    that fits best, which is the best way to cut the output into that many parts. So no word of
    either side is ever left out, and a line break is not a word.
    """

    def count(output: str, reference: str) -> Counts:
        said, expected = _sentences(output), _sentences(reference)
        if len(expected) > SPEAKERS_AT_MOST:
            raise UnavailableError(
                f"a reference of {len(expected)} sentences; at most {SPEAKERS_AT_MOST} are put in order"
            )
        orders = permutations(expected)
        if len(said) == len(expected):
            edits = min(sum(map(editdistance.eval, said, order)) for order in orders)
        else:
            joined = ([word for sentence in order for word in sentence] for order in orders)
            edits = min(editdistance.eval(output.split(), order) for order in joined)
        return edits, sum(map(len, expected)), float(len(said) != len(expected)), 1.0

    return _best(texts, count)


def following(texts: Texts) -> list[Counts]:
    """(1 unless the output transcribes what is spoken, 1) per clip: WER against it of at least 30 %."""
    pairs = [(output.split(), spoken.split()) for output, spoken in zip(texts.outputs, texts.spoken, strict=True)]
    return [(float(editdistance.eval(said, words) / len(words) >= TRANSCRIBES_BELOW), 1.0) for said, words in pairs]


def _best(texts: Texts, count: Callable[[str, str], Counts]) -> list[Counts]:
    def rate(counts: Counts) -> float:
        return counts[0] / counts[1]

    pairs: Sequence[tuple[str, Sequence[str]]] = list(zip(texts.outputs, texts.references, strict=True))
    return [min((count(output, reference) for reference in candidates), key=rate) for output, candidates in pairs]


def _sentences(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if line.split()]


def _separated_details(sums: np.ndarray) -> Mapping[str, Any]:
    different, n = int(sums[2]), int(sums[3])
    note = f"{different} of {n} outputs do not hold as many sentences as their reference"
    return {"other_number_of_sentences": different, "note": note}


EDITS = "edit distance"
METRICS = {
    "wer": Metric("WER", word_errors, tool=EDITS, lower_is_better=True),
    "per": Metric("PER", word_errors, tool=EDITS, lower_is_better=True),  # phones are the words of their normaliser
    "wer_separated": Metric(
        "WER, best order",
        separated_word_errors,
        tool=f"{EDITS}, best order",
        details=_separated_details,
        lower_is_better=True,
    ),
    "following": Metric("following rate", following, needs="spoken", tool="WER rule"),
    # The same rule where publications have a judge's following rate: another measure has another name.
    "not_transcribing": Metric("answers that do not transcribe", following, needs="spoken", tool="WER rule"),
}
