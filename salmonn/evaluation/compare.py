"""Comparison of two results of evaluate.py, with paired bootstrap intervals of the differences. No torch here."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from salmonn.common.errors import UserError
from salmonn.common.files import read_json
from salmonn.config.loading import leaves
from salmonn.evaluation.metrics import METRICS
from salmonn.evaluation.metrics.base import RESAMPLES, paired_interval_of, value_of
from salmonn.evaluation.report.tables import heard_clips, shown_difference, shown_score, table

HEADER = ["task", "metric", "clips", "A", "B", "B - A", "95 % interval", "excludes zero"]
READING = (
    f"The interval is of B - A, by paired bootstrap: {RESAMPLES} resamples of the clips, the same ones for A and B; "
    "of percentages it is in points. "
    "Where it excludes zero, the difference is more than the choice of the clips explains."
)
HASH_SHOWN = 12  # digits of a sha256 in a table
_KEYS = {"name", "n", "finished", "unfinished", "scores", "provenance"}  # by which a report is known
_NOTHING = "nothing to compare: evaluate both on sets with ground truth"
_AGAIN = "run evaluate.py again (answers under the same provenance are kept) and compare then"
_OTHER_SHAPE = (KeyError, IndexError, TypeError, ValueError, AttributeError)  # of what was damaged after it was written

Report = Mapping[str, Any]


@dataclass(frozen=True)
class Result:
    """What one evaluation wrote: its reports, and for each the folder of its other files."""

    label: str  # "A" or "B"
    path: Path
    reports: Mapping[str, Report]  # by task
    folders: Mapping[str, Path]


def compare(first: Path, second: Path) -> str:
    """The page that compares two results of evaluate.py: folders or their report.json.

    Raises UserError where nothing can be compared; what cannot be compared besides is told on the page.
    """
    a, b = read_result(first, "A"), read_result(second, "B")
    shared = [name for name in a.reports if name in b.reports]
    rows, compared = [], []
    apart = [] if shared else ["no task is in both; compare results of the same tasks"]
    for name in shared:
        try:
            more, unscored = _rows(name, a, b)
            _differences([name], a, b)
        except UserError as error:
            apart.append(str(error))
            continue
        except _OTHER_SHAPE as error:
            apart.append(f"{name}: the report or the statistics of A or B were damaged ({error!r}); {_AGAIN}")
            continue
        rows += more
        apart += unscored
        compared.append(name)
    for one, other in ((a, b), (b, a)):
        apart += [f"{name}: only in {one.label}" for name in one.reports if name not in other.reports]
    if not rows:
        reasons = "".join(f"\n  {reason}" for reason in apart)
        raise UserError(f"A = {a.path} and B = {b.path} cannot be compared:{reasons}")
    parts = [f"# A = {a.path}, B = {b.path}", table(HEADER, rows), READING]
    if apart:
        parts += ["## Not compared", "\n".join(f"- {reason}" for reason in apart)]
    return "\n\n".join([*parts, "## What differs", _differences(compared, a, b)])


def read_result(path: Path, label: str) -> Result:
    """Read a result folder or report.json, of one task or of many. Raises UserError for anything else."""
    file = path / "report.json" if path.is_dir() else path
    try:
        found = read_json(file)
    except UserError as error:
        raise UserError(f"{label}: {error}; give a result folder of evaluate.py") from error
    if _is_report(found):
        return Result(label, path, {found["name"]: found}, {found["name"]: file.parent})
    if not (isinstance(found, dict) and all(one is None or _is_report(one) for one in found.values())):
        raise UserError(f"{label}: {file} is not a report of evaluate.py; give a result folder of evaluate.py")
    reports = {name: report for name, report in found.items() if report is not None}
    if not reports:
        raise UserError(f"{label}: {file} has no evaluated task; {_NOTHING}")
    return Result(label, path, reports, {name: file.parent / name for name in reports})


def _is_report(values: Any) -> bool:
    return isinstance(values, dict) and values.keys() >= _KEYS


def _rows(name: str, a: Result, b: Result) -> tuple[list[list[str]], list[str]]:
    """A task's row per metric, and why some have none. Raises UserError where the sets or the scoring differ."""
    sides = [(one.label, one.reports[name]) for one in (a, b)]
    for label, report in sides:
        _refuse_alone(name, label, report)
    _refuse_together(name, sides)
    statistics = [_read_statistics(name, one) for one in (a, b)]
    rows, unscored = [], []
    for metric in sides[0][1]["scoring"]["metrics"]:
        reasons = [f"{label}: {one['unavailable'][metric]}" for label, one in sides if one["scores"][metric] is None]
        if reasons:
            unscored.append(f"{name}: {METRICS[metric].title} has no score in {'; in '.join(reasons)}")
        else:
            rows.append(_row(name, metric, statistics[0][metric], statistics[1][metric]))
    return rows, unscored


def _refuse_alone(name: str, label: str, report: Report) -> None:
    """Raise UserError for a result whose scores are comparable with no other's."""
    n, heard = report["n"], heard_clips(report)
    if not report["scores"]:
        raise UserError(f"{name}: {label} has no scores; {_NOTHING}")
    if heard != n:
        raise UserError(
            f"{name}: {label} heard {heard} of {n} clips, so its scores are of another set; mend the clips that its "
            "report.md lists as unreadable, then evaluate again"
        )
    if not report.get("scoring"):
        raise UserError(f"{name}: {label} was written before results could be compared; {_AGAIN}")
    if unknown := [metric for metric in report["scoring"]["metrics"] if metric not in METRICS]:
        raise UserError(f"{name}: {label} has metrics that this code does not know: {', '.join(unknown)}; {_AGAIN}")


def _refuse_together(name: str, sides: Sequence[tuple[str, Report]]) -> None:
    """Raise UserError where two results are of different sets, or scored in different ways."""

    def same(what: str, values: Sequence[Any], remedy: str) -> None:
        if values[0] != values[1]:
            shown = ", ".join(f"{_shown(value)} in {label}" for (label, _), value in zip(sides, values, strict=True))
            raise UserError(f"{name}: {what} differ: {shown}; {remedy}")

    reports = [report for _, report in sides]
    scorings = [report["scoring"] for report in reports]
    hashes = [report["provenance"]["annotation_sha256"][:HASH_SHOWN] for report in reports]
    same("annotation files (annotation_sha256)", hashes, "evaluate both on one file")
    same("numbers of clips", [report["n"] for report in reports], "evaluate both with one version of the code")
    metrics = [", ".join(f"{key} = {title}" for key, title in one["metrics"].items()) for one in scorings]
    same("metrics", metrics, "evaluate both with one tasks file and, for a tokenizer, where the same is installed")
    same("judges", [one["judge"] for one in scorings], "ask one judge in both")
    same("normalisers", [one["normaliser"] for one in scorings], "evaluate both with one tasks file")
    if scorings[0]["references_sha256"] != scorings[1]["references_sha256"]:
        notes = [one["normaliser_note"] for one in scorings]
        same("normalised references", notes, "evaluate both where the same normaliser is there")
        raise UserError(f"{name}: normalised references differ between A and B; {_AGAIN}")


def _read_statistics(name: str, result: Result) -> dict[str, Mapping[str, Any]]:
    """{metric: {score, rows, values}} of a task. Raises UserError where they are absent or of another run."""
    file = result.folders[name] / "statistics.json"
    try:
        found = read_json(file)
    except UserError as error:
        raise UserError(f"{name}: {result.label}: {error}; {_AGAIN}") from error
    scores = result.reports[name]["scores"]
    for metric in result.reports[name]["scoring"]["metrics"]:
        if scores[metric] is not None and found.get(metric, {}).get("score") != scores[metric]:
            raise UserError(f"{name}: {result.label}: {file} is of another run than the report; {_AGAIN}")
    return found


def _row(name: str, metric_name: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Scores and their difference with its interval, of a metric that both results have."""
    metric = METRICS[metric_name]
    if first["rows"] != second["rows"]:
        raise UserError(f"{name}: {metric.title} is of other clips in A than in B; {_AGAIN}")
    scores = (first["score"], second["score"])
    values = [np.asarray(side["values"], dtype=np.float64) for side in (first, second)]  # each [n_clips, k]
    for score, statistics in zip(scores, values, strict=True):
        if not metric.corpus and not np.isclose(value_of(metric, statistics) or 0, score):
            raise ValueError(f"the values of the clips are not those of the score {score}")
    edges = paired_interval_of(metric, values[0], values[1], scores)
    clear = edges and (edges[0] > 0 or edges[1] < 0)
    return [
        name,
        metric.title,
        str(len(first["rows"])),
        *(shown_score(metric, score) for score in scores),
        shown_difference(metric, scores[1] - scores[0]),
        " to ".join(shown_difference(metric, edge) for edge in edges) if edges else "-",
        ("yes" if clear else "no") if edges else "-",
    ]


def _differences(names: Sequence[str], a: Result, b: Result) -> str:
    """A table of what the provenances of the two results do not share, or "Nothing."."""
    tasks_of: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        provenances = [_provenance(one.reports[name]) for one in (a, b)]
        for key in dict.fromkeys([*provenances[0], *provenances[1]]):
            values = [provenance.get(key, "(absent)") for provenance in provenances]
            if values[0] != values[1]:
                tasks_of.setdefault((key, *values), []).append(name)
    if not tasks_of:
        return "Nothing of what the results are known to depend on."
    rows = [[*row, "all" if len(tasks) == len(names) else ", ".join(tasks)] for row, tasks in tasks_of.items()]
    return table(["setting", "A", "B", "tasks"], rows)


def _provenance(report: Report) -> dict[str, str]:
    """All that a result depends on, by dotted key, as shown in a table."""
    known = leaves({**report["provenance"], "scoring": report["scoring"]})
    return {key: _shown(value)[: HASH_SHOWN if key.endswith("_sha256") else None] for key, value in known}


def _shown(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
