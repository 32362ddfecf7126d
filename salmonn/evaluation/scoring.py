"""From outputs to scores: over all clips that could be heard, and over the finished answers."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from salmonn.errors import UserError
from salmonn.evaluation.jobs import Output
from salmonn.evaluation.metrics import (
    CAPTION_TOKENS,
    METRICS,
    Normaliser,
    caption_normaliser,
    english_normaliser,
    total,
    usable_references,
)
from salmonn.evaluation.tasks import Clip, EvalTask

SPELLING_FILE = "normalizer.json"  # in published Whisper folders: British to American spelling


@dataclass(frozen=True)
class Scores:
    """Scores by metric name; None where a metric is not defined."""

    all: dict[str, float | None]
    finished: dict[str, float | None]  # only answers that the model ended by itself
    empty_references: int  # clips whose references hold no word after normalisation


def normaliser_for(task: EvalTask, whisper_path: str) -> tuple[Normaliser, str]:
    """The task's text normaliser, and what the report says about it."""
    if task.normaliser == "caption":
        return caption_normaliser, f"Caption tokens: {CAPTION_TOKENS}."
    from transformers.utils import cached_file

    # local folder or hub name, as the model's own files; absent in folders that hold only the encoder
    spelling_file = cached_file(
        whisper_path,
        SPELLING_FILE,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if spelling_file is None:
        note = f"without spelling mapping ({whisper_path} has no {SPELLING_FILE}): colour and color differ"
        return english_normaliser({}), f"Normaliser: Whisper English, {note}."
    try:
        spelling = json.loads(Path(spelling_file).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{spelling_file} is not valid JSON: {error}") from error
    note = f"British to American spelling by {spelling_file} ({len(spelling)} words)"
    return english_normaliser(spelling), f"Normaliser: Whisper English, {note}."


def score(task: EvalTask, clips: Sequence[Clip], outputs: Mapping[int, Output], normalise: Normaliser) -> Scores:
    """Score {position: output}; unreadable clips are left out.

    Document frequencies of CIDEr-D come from all clips heard, also for the finished ones.
    """
    heard = {position: output for position, output in sorted(outputs.items()) if not output.unreadable}
    texts = [normalise(output.text) for output in heard.values()]
    references = [[normalise(text) for text in clips[position].references] for position in heard]
    scores = Scores({}, {}, sum(usable_references(candidates) == [""] for candidates in references))
    for name in task.metrics:
        parts = METRICS[name].parts(texts, references)
        scores.all[name] = total(parts)
        pairs = zip(heard.values(), parts, strict=True)
        scores.finished[name] = total(part for output, part in pairs if output.finished)
    return scores
