"""Many tasks on one page: this run beside the paper and an earlier reproduction (paper, Table 3)."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from salmonn.common.errors import UserError
from salmonn.common.files import read_json
from salmonn.evaluation.metrics import METRICS
from salmonn.evaluation.published import Published, measured_on, score_alike, with_outputs
from salmonn.evaluation.report.pages import write_page
from salmonn.evaluation.report.plots import overview
from salmonn.evaluation.report.tables import (
    metrics_of,
    shown_difference,
    shown_interval,
    shown_score,
    table,
)
from salmonn.evaluation.report.task_report import summary, without_statistics
from salmonn.evaluation.tasks import EvalTask

logger = logging.getLogger(__name__)

HEADER = ["task", "metric", "n", "finished", "this run", "95 % interval", "finished only", "shuffled audio"]
HEADER += ["paper", "reproduced"]
ON_TERMINAL = ["task", "metric", "n", "this run", "95 % interval", "shuffled audio"]
_COUNTS, _LISTS = ("n", "entries", "finished", "unfinished", "empty_outputs"), ("unreadable", "notes")
_DICTIONARIES = ("scores", "scores_finished", "intervals", "scoring", "provenance")
READING = (
    "In brackets: this run minus the published score, over all answers or over the finished ones as that was, or why "
    "the two cannot be compared."
)


def write_overview(folder: Path, tasks: Sequence[EvalTask], reports: Mapping[str, Mapping[str, Any]]) -> str:
    """Write report.json, report.md and overview.png; returns what of it is for a terminal."""
    rows = [row for task in tasks for row in rows_of(task, reports.get(task.name))]
    found = {task.name: reports.get(task.name) for task in tasks}
    results = {name: report and without_statistics(report) for name, report in found.items()}
    parts = [table(HEADER, rows), READING]
    if figure := overview(tasks, found):
        parts.append("![scores](overview.png)")
    evaluated = [(task, report) for task in tasks if (report := reports.get(task.name))]
    if lines := [line for task, report in evaluated for line in _stands_on(task, report)]:
        parts += ["## What the published scores were measured on", "\n".join(lines)]
    for task, report in evaluated:
        parts += [f"## {task.name}: {task.title}", summary(report), f"All of it: {task.name}/report.md"]
    provenances = [report["provenance"] for _, report in evaluated]
    write_page(folder, "All tasks", parts, results, {"overview.png": figure}, provenances)
    return f"{terminal_summary(tasks, found)}\n\nAll columns, what they depend on and each task: {folder}/report.md"


def terminal_summary(tasks: Sequence[EvalTask], reports: Mapping[str, Mapping[str, Any] | None]) -> str:
    """The scores in as many columns as a terminal has room for; tasks without a report are named below them."""
    evaluated = [
        (task, report, name) for task in tasks if (report := reports.get(task.name)) for name in metrics_of(report)
    ]
    columns = list(ON_TERMINAL)
    if any(task.paper.get(name) for task, _, name in evaluated):
        columns.append("paper")
    rows = []
    for task, report, name in evaluated:
        cells = dict(zip(HEADER, _row(task, report, name), strict=True))
        published = task.paper.get(name, [])
        cells["paper"] = "; ".join(with_outputs(METRICS[name], one, published) for one in published) or "-"
        rows.append([cells[column] for column in columns])
    absent = [f"{task.name}: not evaluated, {_why_absent(task)}" for task in tasks if not reports.get(task.name)]
    return "\n".join([table(columns, rows), *absent])


def earlier_reports(folder: Path, tasks: Sequence[EvalTask]) -> dict[str, dict[str, Any]]:
    """{task: report} of the tasks that an earlier command evaluated into this folder; what is no report is told."""
    found = {}
    for task in tasks:
        if (path := folder / task.name / "report.json").is_file():
            try:
                found[task.name] = _read_report(path, task)
            except UserError as error:
                logger.warning("%s; it is left out of the page: evaluate %s again", error, task.name)
    return found


def _read_report(path: Path, task: EvalTask) -> dict[str, Any]:
    """A report that can be shown. Raises UserError for anything else."""
    report = read_json(path)
    kinds = ((_COUNTS, int), (_LISTS, list), (_DICTIONARIES, dict))
    if not isinstance(report, dict) or any(not isinstance(report.get(k), kind) for keys, kind in kinds for k in keys):
        raise UserError(f"{path} is no report of evaluate.py")
    try:
        rows_of(task, report), _stands_on(task, report), summary(report)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is no report of evaluate.py, or was damaged ({error!r})") from error
    return report


def rows_of(task: EvalTask, report: Mapping[str, Any] | None) -> list[list[str]]:
    """A row per metric; one that names the absent file where the task was not evaluated."""
    if report is None:
        return [[task.name, "-", "-", "-", f"not evaluated: {_why_absent(task)}", *["-"] * 5]]
    return [_row(task, report, name) for name in metrics_of(report)]


def _why_absent(task: EvalTask) -> str:
    return "no clip could be read" if Path(task.annotation).is_file() else f"no {task.annotation}"


def _row(task: EvalTask, report: Mapping[str, Any], name: str) -> list[str]:
    metric, value, shuffled = METRICS[name], report["scores"][name], report["scores"].get(f"{name}_shuffled")
    row = {
        "task": task.name,
        "metric": metric.title,
        "n": report["n"],
        "finished": report["finished"],
        "this run": shown_score(metric, value),
        "95 % interval": shown_interval(metric, report["intervals"][name]),
        "finished only": shown_score(metric, report["scores_finished"][name]),
        "shuffled audio": "-" if shuffled is None else metric.show(shuffled),
        "paper": _published(report, name, task.paper.get(name, [])),
        "reproduced": _published(report, name, task.reproduced.get(name, [])),
    }
    return [str(row[column]) for column in HEADER]


def _published(report: Mapping[str, Any], name: str, scores: Sequence[Published]) -> str:
    """Published scores of a metric, each with the difference to it, or why there is none to tell."""
    return "; ".join(_beside(report, name, one, scores) for one in scores) or "-"


def _beside(report: Mapping[str, Any], name: str, published: Published, among: Sequence[Published]) -> str:
    metric = METRICS[name]
    shown = with_outputs(metric, published, among)
    value, why_apart = score_alike(published, report, name)
    if value is None:
        return shown
    return f"{shown} ({f'n/a: {why_apart}' if why_apart else shown_difference(metric, value - published.value)})"


def _stands_on(task: EvalTask, report: Mapping[str, Any]) -> list[str]:
    """A line per published score of the metrics of a report: what it was measured on."""
    return [
        f"- {task.name}, {METRICS[name].title}, {column} {METRICS[name].show(one.value)}: {measured_on(one)}"
        for name in metrics_of(report)
        for column, scores in (("paper", task.paper), ("reproduced", task.reproduced))
        for one in scores.get(name, [])
    ]
