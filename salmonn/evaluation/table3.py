"""Many tasks on one page: this run beside the paper and an earlier reproduction (paper, Table 3)."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from salmonn.charts import write_png
from salmonn.evaluation.metrics import METRICS
from salmonn.evaluation.plots import overview
from salmonn.evaluation.report import without_statistics, write_text
from salmonn.evaluation.tables import heard_clips, metrics_of, shown_difference, shown_interval, shown_score, table
from salmonn.evaluation.tasks import EvalTask

HEADER = ["task", "set", "metric", "n", "finished", "this run", "95 % interval", "paper", "difference", "reproduced"]


def write_overview(folder: Path, tasks: Sequence[EvalTask], reports: Mapping[str, Mapping[str, Any]]) -> str:
    """Write report.json, report.md and overview.png; returns the table. Tasks without a report are named, too."""
    rows = [row for task in tasks for row in rows_of(task, reports.get(task.name))]
    shown = table(HEADER, rows)
    found = {task.name: reports.get(task.name) for task in tasks}
    results = {name: report and without_statistics(report) for name, report in found.items()}
    write_text(folder / "report.json", json.dumps(results, ensure_ascii=False, indent=2) + "\n")
    parts = ["# All tasks", shown, "The full report of each task is in its own folder."]
    if figure := overview(tasks, found):
        write_png(figure, folder / "overview.png")
        parts.append("![scores](overview.png)")
    write_text(folder / "report.md", "\n\n".join(parts) + "\n")
    return f"\n{shown}\n\nResults: {folder}/"


def rows_of(task: EvalTask, report: Mapping[str, Any] | None) -> list[list[str]]:
    """A row per metric; one that names the absent file where the task was not evaluated."""
    if report is None:
        return [[task.name, task.title, "-", "-", "-", f"not evaluated: no {task.annotation}", *["-"] * 4]]
    return [_row(task, report, name) for name in metrics_of(report)]


def _row(task: EvalTask, report: Mapping[str, Any], name: str) -> list[str]:
    metric, value = METRICS[name], report["scores"][name]
    paper, gap = task.paper.get(name), "-"
    if value is not None and paper is not None:
        unread = report["n"] - heard_clips(report)  # without these it is another set than the paper's
        gap = f"n/a: {unread} of {report['n']} unread" if unread else shown_difference(metric, value - paper)
    known = {
        "this run": shown_score(metric, value),
        "95 % interval": shown_interval(metric, report["intervals"][name]),
        "paper": "-" if paper is None else metric.show(paper),
        "difference": gap,
        "reproduced": metric.show(task.reproduced[name]) if name in task.reproduced else "-",
    }
    row = {
        "task": task.name,
        "set": task.title,
        "metric": metric.title,
        "n": report["n"],
        "finished": report["finished"],
    }
    return [str((row | known)[column]) for column in HEADER]
