"""Scores of predictions: over all clips that could be heard, and over the finished answers."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from salmonn.evaluation.clips import EvalExample
from salmonn.evaluation.judge.judging import Judgement
from salmonn.evaluation.metrics import METRICS, Texts, UnavailableError, measure
from salmonn.evaluation.metrics.choices import Pick
from salmonn.evaluation.normalisers import Normaliser
from salmonn.evaluation.requests import Prediction
from salmonn.evaluation.tasks import EvalTask


@dataclass
class Scores:
    """What is told of each metric by its name; None where a metric is not defined."""

    all: dict[str, float | None] = field(default_factory=dict)
    finished: dict[str, float | None] = field(default_factory=dict)  # answers that the model ended by itself
    intervals: dict[str, list[float] | None] = field(default_factory=dict)  # [low, high], 95 %
    details: dict[str, Mapping[str, Any]] = field(default_factory=dict)  # JSON; "note" is for the page
    clips: dict[str, int] = field(default_factory=dict)  # that have what the metric needs
    unavailable: dict[str, str] = field(default_factory=dict)  # why there is no score
    statistics: dict[str, Mapping[str, Any]] = field(default_factory=dict)  # {score, rows: positions, values: per row}
    references_sha256: str = ""  # of all that the outputs were compared with, as normalised
    empty_references: int = 0  # clips whose references hold no word after normalisation
    words_without_reference: int = 0  # of the outputs for these clips


def score(
    task: EvalTask,
    clips: Sequence[EvalExample],
    predictions: Mapping[int, Prediction],
    normalise: Normaliser,
    judgement: Judgement | None = None,
    picks: Mapping[int, Pick] | None = None,
) -> Scores:
    """Score {position: prediction} by the metrics of the task; unreadable clips are left out.

    Clips without a reference word are counted, and left out of all metrics that compare with
    references. Document frequencies of CIDEr-D come from all clips heard, also for the finished ones.
    """
    heard = {position: prediction for position, prediction in sorted(predictions.items()) if not prediction.unreadable}
    try:
        texts = normalised(normalise, [clips[position] for position in heard], list(heard.values()))
    except UnavailableError as error:  # PTB's tokenizer may fail on what a model writes
        return _no_score(Scores(), task.metrics, str(error))
    positions, finished = list(heard), [prediction.finished for prediction in heard.values()]
    silent = [output for output, candidates in zip(texts.outputs, texts.references, strict=True) if not candidates]
    scores = Scores(empty_references=len(silent), words_without_reference=sum(len(output.split()) for output in silent))
    compared_with = json.dumps([texts.references, texts.spoken]).encode()
    scores.references_sha256 = hashlib.sha256(compared_with).hexdigest()
    if picks is not None:
        known = [picks.get(position) if clips[position].references else None for position in heard]
        texts = replace(texts, picks=known)
    names = list(task.metrics)
    if judgement and task.is_judged:
        texts = replace(texts, replies=[judgement.replies.get(position) for position in heard])
        names[names.index("judged")] = judgement.metric
        if judgement.problem:
            _no_score(scores, ["judged"], judgement.problem)
    for name in names:
        if name not in scores.unavailable:
            _add_metric(scores, name, texts, finished, positions)
    return scores


def _add_metric(scores: Scores, name: str, texts: Texts, finished: Sequence[bool], positions: Sequence[int]) -> None:
    try:
        measured = measure(METRICS[name], texts, finished)
    except UnavailableError as error:
        _no_score(scores, [name], str(error))
        return
    scores.all[name], scores.finished[name] = measured.value, measured.finished
    scores.intervals[name], scores.clips[name] = measured.interval, measured.clips
    scores.statistics[name] = {
        "score": measured.value,
        "rows": [positions[row] for row in measured.rows],
        "values": measured.statistics.tolist(),
    }
    if measured.value is None:
        scores.unavailable[name] = "there is nothing to count in these outputs and references"
    if measured.details:
        scores.details[name] = measured.details


def _no_score(scores: Scores, names: Sequence[str], reason: str) -> Scores:
    for name in names:
        scores.all[name] = scores.finished[name] = scores.intervals[name] = None
        scores.unavailable[name], scores.clips[name] = reason, 0
    return scores


def normalised(normalise: Normaliser, clips: Sequence[EvalExample], predictions: Sequence[Prediction]) -> Texts:
    """The texts to be compared, normalised in one call; of the references those that hold a word."""
    raw = [[answer.text, clip.spoken, *clip.references] for clip, answer in zip(clips, predictions, strict=True)]
    results = iter(normalise([text for texts in raw for text in texts]))
    rows = [[next(results) for _ in texts] for texts in raw]
    return Texts(
        outputs=[row[0] for row in rows],
        references=[[text for text in row[2:] if text.split()] for row in rows],
        spoken=[row[1] for row in rows],
    )
