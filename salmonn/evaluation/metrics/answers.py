"""Metrics of short answers: exact and containing match, judged, classes with their confusion matrix, keywords."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from salmonn.evaluation.metrics.base import Metric, Texts, percent

KEYWORDS = 3  # the accuracy of keyword extraction is over three keywords (SALMONN, table 3)

# The words that name a class. IEMOCAP: four classes, excited counts as happy.
EMOTIONS = {
    "angry": ("angry", "anger", "ang"),
    "happy": ("happy", "happiness", "hap", "excited", "excitement", "exc"),
    "neutral": ("neutral", "neu"),
    "sad": ("sad", "sadness"),
}
GENDERS = {"man": ("man", "male"), "woman": ("woman", "female")}
YES_NO = {"yes": ("yes",), "no": ("no",)}


def exact(texts: Texts) -> list[tuple[float, float]]:
    """(1 if the output equals one of the references, 1) per clip."""
    return [(float(output in refs), 1.0) for output, refs in zip(texts.outputs, texts.references, strict=True)]


def contains(texts: Texts) -> list[tuple[float, float]]:
    """(1 if the output holds one of the references, as whole words in a row, 1) per clip."""
    spaced = [f" {' '.join(output.split())} " for output in texts.outputs]
    return [
        (float(any(f" {' '.join(ref.split())} " in output for ref in refs)), 1.0)
        for output, refs in zip(spaced, texts.references, strict=True)
    ]


def keywords(texts: Texts) -> list[tuple[float, float]]:
    """(those of the first three different keywords that are among the references', how many could be) per clip.

    A keyword is a line, equal or not; all references of a clip together are its keywords. The
    denominator is three, also where the model names fewer, but not more than there are references.
    SALMONN says "accuracy of 3 keywords"; how they are matched is our definition.
    """

    def of(output: str, candidates: list[str]) -> tuple[float, float]:
        expected = {keyword for reference in candidates for keyword in reference.splitlines()}
        said = list(dict.fromkeys(output.splitlines()))[:KEYWORDS]
        return float(sum(keyword in expected for keyword in said)), float(min(KEYWORDS, len(expected)))

    return [of(output, list(refs)) for output, refs in zip(texts.outputs, texts.references, strict=True)]


def judged(texts: Texts) -> list[tuple[float, float, float]]:
    """(1 if the judge calls the output right, 1, 1 if it says neither yes nor no) per clip."""
    return [(float(reply.correct is True), 1.0, float(reply.correct is None)) for reply in texts.replies]


def _judged_details(sums: np.ndarray) -> Mapping[str, Any]:
    right, n, unclear = map(int, sums)
    note = f"{right} answers right, {n - right - unclear} wrong, {unclear} with an unclear verdict, counted as wrong"
    return {"correct": right, "wrong": n - right - unclear, "unclear": unclear, "note": note}


def classification(title: str, classes: Mapping[str, tuple[str, ...]]) -> Metric:
    """Accuracy over `classes` {class: the words that name it}, with confusion matrix and rates.

    The class of a text is the only one that it names; a text that names none or several has none.
    An output without class is wrong; a clip whose references have no class is counted and skipped.
    """
    names = list(classes)
    n_cells = len(names) * (len(names) + 1)  # reference x (answer or none)

    def class_of(text: str) -> int:
        words = set(text.split())
        named = [i for i, name in enumerate(names) if not words.isdisjoint(classes[name])]
        return named[0] if len(named) == 1 else len(names)

    def statistics(texts: Texts) -> np.ndarray:
        """The clip's cell of the confusion matrix, and in the last column whether it was skipped."""
        found = np.zeros((len(texts.outputs), n_cells + 1))
        for row, (output, refs) in enumerate(zip(texts.outputs, texts.references, strict=True)):
            expected = min(map(class_of, refs))  # a reference with a class before one without
            skipped = expected == len(names)
            found[row, n_cells if skipped else expected * (len(names) + 1) + class_of(output)] = 1
        return found

    def matrix(sums: np.ndarray) -> np.ndarray:
        return sums[..., :n_cells].reshape(*sums.shape[:-1], len(names), len(names) + 1)

    def accuracy(sums: np.ndarray) -> np.ndarray:
        cells = matrix(sums)
        total = cells.sum(axis=(1, 2))
        right = np.trace(cells[:, :, : len(names)], axis1=1, axis2=2)
        return np.divide(right, total, out=np.full(len(sums), np.nan), where=total != 0)

    def details(sums: np.ndarray) -> Mapping[str, Any]:
        return _confusion_details(names, matrix(sums), skipped=int(sums[-1]))

    return Metric(title, statistics, accuracy, details=details, tool="class named")


def _confusion_details(names: list[str], cells: np.ndarray, skipped: int) -> Mapping[str, Any]:
    """Confusion matrix (rows: references; columns: answers, the last one none), recalls and answer rates."""
    of_class, answered, n = cells.sum(axis=1), cells.sum(axis=0), cells.sum()
    recall = {name: cells[i, i] / of_class[i] if of_class[i] else None for i, name in enumerate(names)}
    rate = {name: answered[i] / n if n else None for i, name in enumerate([*names, "none"])}
    parts = [f"{name}: {percent(recall[name])} right, {percent(rate[name])} of the answers" for name in names]
    note = "; ".join([*parts, f"no class in {percent(rate['none'])} of the answers"])
    if skipped:
        note += f"; {skipped} clips skipped, their references are of no class"
    return {
        "classes": names,
        "confusion": cells.astype(int).tolist(),
        "recall": recall,
        "answer_rate": rate,
        "skipped": skipped,
        "note": note,
    }


METRICS = {
    "exact": Metric("exact match", exact),
    "contains": Metric("answer contained", contains),
    "judged": Metric("judged accuracy", judged, needs="replies", details=_judged_details, tool="judge"),
    "contained": Metric("reference contained (no judge)", judged, needs="replies", details=_judged_details),
    "keywords": Metric("accuracy of 3 keywords", keywords, tool="equal keywords"),
    "accuracy_er": classification("emotion accuracy", EMOTIONS),
    "accuracy_gr": classification("gender accuracy", GENDERS),
    "accuracy_sv": classification("yes/no accuracy", YES_NO),
}
