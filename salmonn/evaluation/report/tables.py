"""Markdown tables, and scores, intervals and provenances as they stand in them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from salmonn.common.screen import printable
from salmonn.config.loading import leaves
from salmonn.evaluation.metrics import METRICS, Metric


def metrics_of(report: Mapping[str, Any]) -> list[str]:
    """Names of the metrics of a report, in its order; None may be their score."""
    return [name for name in report["scores"] if name in METRICS]


def heard_clips(report: Mapping[str, Any]) -> int:
    """Number of clips that could be read, on which the scores stand."""
    return report["finished"] + report["unfinished"]


def shown_score(metric: Metric, value: float | None) -> str:
    """A score in a table, or that there is none."""
    return "no score" if value is None else metric.show(value)


def shown_difference(metric: Metric, difference: float) -> str:
    """A difference of two scores in a table, with its sign."""
    return f"{'+' if difference >= 0 else '-'}{metric.show(abs(difference))}"


def shown_interval(metric: Metric, edges: Sequence[float] | None) -> str:
    """An interval in a table."""
    return " to ".join(map(metric.show, edges)) if edges else "-"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose columns also line up as plain text."""
    cells = [[" ".join(printable(str(cell)).replace("|", "\\|").split()) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def provenance_table(provenances: Sequence[Mapping[str, Any]]) -> str:
    """What results depend on, by dotted key; of several provenances what they share."""
    first, *others = [dict(leaves(provenance)) for provenance in provenances]
    shared = {key: value for key, value in first.items() if all(key in one and one[key] == value for one in others)}
    return table(["", ""], [[key, str(value)] for key, value in shared.items() if value not in ("", None, [])])
