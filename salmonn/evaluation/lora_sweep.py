"""Scores over the LoRA scaling at test time, which the model was not trained with (paper, Figure 3)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from salmonn.common import distributed
from salmonn.common.errors import UserError
from salmonn.evaluation.answering import AnsweredSet
from salmonn.evaluation.metrics import METRICS
from salmonn.evaluation.pipeline import answer_sets, judge_sets, load_model, session
from salmonn.evaluation.report import curve_plots
from salmonn.evaluation.report.curve_plots import Curve
from salmonn.evaluation.report.pages import tell, write_page
from salmonn.evaluation.report.tables import metrics_of, shown_interval, shown_score, table
from salmonn.evaluation.report.task_report import without_statistics
from salmonn.evaluation.sets import open_sets
from salmonn.evaluation.tasks import EvalTask, scored_tasks

SCALINGS = (0.0, 1.0, 2.0, 3.0, 4.0)  # of Figure 3; trained with 4


def sweep(config: DictConfig, tasks: Sequence[EvalTask], scalings: Sequence[float], folder: Path) -> None:
    """Answer and score every task at each scaling with one model; table and curves on one page.

    Each scaling's results are complete ones, in `scaling_<s>/<task>`. Raises UserError for a model without LoRA; if
    no clip of a set can be read or a judge fails, after all that goes without it has been written.
    """
    if not config.model.lora:
        raise UserError("model.lora = False: without adapters there is no scaling to vary")
    there = scored_tasks(tasks)
    with session(config):
        sets = open_sets(there, config)
        model = load_model(config, folder, sets)
        answered: dict[float, list[AnsweredSet]] = {}
        for scaling in scalings:
            model.lora_scaling = scaling
            # which sets can be heard does not depend on the scaling
            answered[scaling], problems = answer_sets(model, sets, config, folder / f"scaling_{scaling:g}")
        is_main = distributed.is_main()
    del model
    if not is_main:
        return
    if not any(answered.values()):
        raise UserError("\n".join(problems))
    problems += judge_sets([one for answers in answered.values() for one in answers])
    reports = {scaling: {one.set.task.name: one.report for one in answers} for scaling, answers in answered.items()}
    heard = [one.set.task for one in answered[scalings[0]]]
    tell(write_sweep(folder, heard, reports), folder)
    if problems:
        raise UserError("\n".join(problems))


def write_sweep(
    folder: Path, tasks: Sequence[EvalTask], reports: Mapping[float, Mapping[str, Mapping[str, Any]]]
) -> str:
    """Write report.json, report.md and lora_sweep.png; returns the table."""
    curves = curves_of(tasks, reports)
    header = ["task", "metric", "", *(f"scaling {scaling:g}" for scaling in reports)]
    shown = table(header, [row for curve in curves for row in _rows(curve)])
    of_scaling = {
        f"{scaling:g}": {name: without_statistics(report) for name, report in by_name.items()}
        for scaling, by_name in reports.items()
    }
    provenances = [report["provenance"] for by_name in reports.values() for report in by_name.values()]
    parts = [shown, "![curves](lora_sweep.png)", "Full reports: scaling_*/<task>/."]
    pictures = {"lora_sweep.png": curve_plots.sweep(curves)}
    write_page(folder, "Scores over the LoRA scaling", parts, of_scaling, pictures, provenances)
    return shown


def _rows(curve: Curve) -> list[list[str]]:
    """This run's scores, their intervals, and where there are such, another reproduction's."""
    metric = METRICS[curve.metric]
    rows = [
        [curve.task, metric.title, "this run", *(shown_score(metric, value) for value in curve.values)],
        ["", "", "95 % interval", *(shown_interval(metric, edges) for edges in curve.intervals)],
    ]
    if curve.published:  # over finished answers, as those beside them here
        rows.append(["", "", "finished only", *(shown_score(metric, value) for value in curve.finished)])
        known = [metric.show(curve.published[x]) if x in curve.published else "-" for x in curve.x]
        rows.append(["", "", "reproduced, finished only", *known])
    return rows


def curves_of(tasks: Sequence[EvalTask], reports: Mapping[float, Mapping[str, Mapping[str, Any]]]) -> list[Curve]:
    """A curve per task and metric; `reports` by scaling and task name."""
    curves = []
    for task in tasks:
        of_task = {scaling: by_name[task.name] for scaling, by_name in reports.items()}
        for name in metrics_of(next(iter(of_task.values()))):
            curves.append(
                Curve(
                    task=task.name,
                    metric=name,
                    x=list(of_task),
                    values=[report["scores"][name] for report in of_task.values()],
                    finished=[report["scores_finished"][name] for report in of_task.values()],
                    intervals=[report["intervals"][name] for report in of_task.values()],
                    published=dict(zip(SCALINGS, task.by_scaling.get(name, []), strict=False)),
                )
            )
    return curves
