"""Scores that others published: what they were measured on, and which score of a report may stand beside them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from salmonn.evaluation.metrics import METRICS, Metric

ALL, FINISHED = "all", "finished"  # the outputs that reports score, too
EITHER = "all or finished"  # not told which of the two: the same where every answer is finished


@dataclass
class Published:
    """A published score and what it was measured on. What is not told is empty, and then nothing is compared."""

    value: float = math.nan  # in the metric's own unit: shares for WER and accuracies, 0-100 for BLEU
    outputs: str = ""  # "all", "finished" (by the model itself), "all or finished", else in words which ones
    clips: int = 0  # of the whole set, those whose outputs were left out among them
    tool: str = ""  # what counted it: as Metric.tool where it is the same, else in words
    judge: str = ""  # of judged scores: as the report names its own where it is the same, else in words
    note: str = ""


def score_alike(published: Published, report: Mapping[str, Any], name: str) -> tuple[float | None, str]:
    """(this report's score of metric `name` over the same kind of outputs, why it is no like for like; "" if it is)."""
    source = "scores_finished" if published.outputs == FINISHED else "scores"
    return report[source][name], _why_apart(published, report, name)


def _why_apart(published: Published, report: Mapping[str, Any], name: str) -> str:
    metric, n = METRICS[name], report["n"]
    if unread := n - report["finished"] - report["unfinished"]:
        return f"{unread} of {n} unread"
    if not published.clips:
        return "its number of clips is not told"
    if n != published.clips:
        return f"{n} of {published.clips} clips" if n < published.clips else f"{n} clips, not {published.clips}"
    if published.outputs == EITHER and report["unfinished"]:
        return f"{report['unfinished']} unfinished, all or finished is not told"
    if published.outputs not in (ALL, FINISHED, EITHER):
        return f"over {published.outputs}" if published.outputs else "which outputs is not told"
    if substitute := report["scoring"]["substitute"][name]:
        return str(substitute)
    if published.tool != metric.tool:
        return f"by {published.tool}" if published.tool else "its tool is not told"
    if metric.needs == "replies" and published.judge != report["scoring"].get("judge", ""):
        return f"judged by {published.judge}" if published.judge else "its judge is not told"
    return ""


def with_outputs(metric: Metric, published: Published, among: Sequence[Published]) -> str:
    """A published score as it is shown among those of its metric: with its outputs where they could be mistaken."""
    plain = published.outputs in ("", ALL, EITHER) and len(among) == 1
    return metric.show(published.value) if plain else f"{metric.show(published.value)} {published.outputs}".strip()


def measured_on(published: Published) -> str:
    """All that is told of a published score but its value, for a person."""
    clips = f"{published.clips:,} clips" if published.clips else "number of clips not told"
    outputs = f"{published.outputs or 'not told which'} outputs"
    judge = f"judge {published.judge}" if published.judge else ""
    return "; ".join(filter(None, [outputs, clips, published.tool or "tool not told", judge, published.note]))
