"""Scores as libraries define them, kept per clip so that any subset can be scored.

A metric turns normalised outputs and references into one (numerator, denominator) per clip;
the score of a set of clips is sum(numerators) / sum(denominators). Knows no model and no files.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import editdistance

Parts = list[tuple[float, float]]
Normaliser = Callable[[str], str]

_QUOTES = str.maketrans("‘’“”", "''\"\"")
_PUNCTUATION = re.compile(r"[^\w\s'-]|_|(?<!\w)['-]+|['-]+(?!\w)")
_CLITIC = re.compile(r"(?<=\w)(n't|'(?:s|re|ve|ll|d|m))(?!\w)")

CAPTION_TOKENS = (
    "lower case, punctuation removed, clitics split (isn't = is n't); "
    "the PTB tokenizer of the published caption scores needs Java and is not used"
)


@dataclass(frozen=True)
class Metric:
    """A score: how it is told to a person, and its per-clip parts."""

    title: str
    percent: bool  # shown as a percentage; stored as a ratio
    parts: Callable[[Sequence[str], Sequence[Sequence[str]]], Parts]

    def show(self, value: float | None) -> str:
        """The score as a person reads it."""
        if value is None:
            return "not defined"
        return f"{100 * value:.2f} %" if self.percent else f"{value:.3f}"


def english_normaliser(spelling: Mapping[str, str]) -> Normaliser:
    """Whisper's English normaliser; `spelling` maps British to American words (may be empty)."""
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    normalise = EnglishTextNormalizer(dict(spelling))
    return lambda text: normalise(text).strip()


def caption_normaliser(text: str) -> str:
    """Caption tokens joined by spaces, close to PTB's without Java: see CAPTION_TOKENS."""
    text = _PUNCTUATION.sub(" ", text.lower().translate(_QUOTES))
    return " ".join(_CLITIC.sub(r" \1", text).split())


def usable_references(references: Iterable[str]) -> list[str]:
    """The references that hold at least one word; [""] where none does."""
    return [reference for reference in references if reference.split()] or [""]


def total(parts: Iterable[tuple[float, float]]) -> float | None:
    """Score of the clips with these parts; None where nothing can be scored."""
    pairs = list(parts)
    denominator = sum(pair[1] for pair in pairs)
    return sum(pair[0] for pair in pairs) / denominator if denominator else None


def word_errors(outputs: Sequence[str], references: Sequence[Sequence[str]]) -> Parts:
    """(word edits, words of the reference) per clip, by the reference that fits best.

    A clip whose references are empty adds its words as insertions and no words.
    """

    def best(output: str, candidates: Sequence[str]) -> tuple[float, float]:
        scored = [(editdistance.eval(output.split(), c.split()), len(c.split())) for c in usable_references(candidates)]
        return min(scored, key=lambda part: part[0] / max(part[1], 1))

    return [best(output, candidates) for output, candidates in zip(outputs, references, strict=True)]


def exact_matches(outputs: Sequence[str], references: Sequence[Sequence[str]]) -> Parts:
    """(1 if the output equals one of the references, 1) per clip; (0, 0) without a reference."""
    pairs = zip(outputs, map(usable_references, references), strict=True)
    return [(float(output in usable), 1.0) if usable != [""] else (0.0, 0.0) for output, usable in pairs]


def rouge_l(outputs: Sequence[str], references: Sequence[Sequence[str]]) -> Parts:
    """(ROUGE-L, 1) per clip by aac-metrics; (0, 0) without a reference."""
    from aac_metrics.functional.rouge_l import rouge_l as score

    return _by_library(lambda o, r: score(o, r)[1]["rouge_l"].tolist(), outputs, references, at_least=1)


def cider_d(outputs: Sequence[str], references: Sequence[Sequence[str]]) -> Parts:
    """(CIDEr-D, 1) per clip by aac-metrics, document frequencies over the references given.

    All (0, 0) with fewer than two clips: the metric is not defined there.
    """
    from aac_metrics.functional.cider_d import cider_d as score

    return _by_library(lambda o, r: score(o, r)[1]["cider_d"].tolist(), outputs, references, at_least=2)


def _by_library(
    score: Callable[[list[str], list[list[str]]], list[float]],
    outputs: Sequence[str],
    references: Sequence[Sequence[str]],
    at_least: int,
) -> Parts:
    """Call a caption metric on the clips that have a reference: the libraries divide by its length."""
    usable = [usable_references(candidates) for candidates in references]
    kept = [i for i, candidates in enumerate(usable) if candidates != [""]]
    parts: Parts = [(0.0, 0.0)] * len(outputs)
    if len(kept) >= at_least:
        for i, value in zip(kept, score([outputs[i] for i in kept], [usable[i] for i in kept]), strict=True):
            parts[i] = (value, 1.0)
    return parts


METRICS: dict[str, Metric] = {
    "wer": Metric("WER", True, word_errors),
    "cider_d": Metric("CIDEr-D", False, cider_d),
    "rouge_l": Metric("ROUGE-L", True, rouge_l),
    "exact": Metric("exact match", True, exact_matches),
}
