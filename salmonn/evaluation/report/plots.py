"""Pictures of evaluation reports: all tasks beside published scores, and confusion matrices.

Each function returns a Figure, or None where there is nothing to draw; `charts.write_png` writes it.
A score that is None is told as "no score".
"""

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from salmonn.common.charts import BLUE, GREY, LIGHT_ORANGE, ORANGE, grid_shape, new_figure, percent_labels
from salmonn.evaluation.metrics import METRICS
from salmonn.evaluation.published import ALL, EITHER, Published, score_alike
from salmonn.evaluation.report.tables import metrics_of, shown_score
from salmonn.evaluation.tasks import EvalTask

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

THIS_RUN, SHUFFLED, PAPER, REPRODUCED = "this run, 95 % interval", "shuffled audio", "paper", "earlier reproduction"
BAR_COLOURS = {THIS_RUN: BLUE, SHUFFLED: GREY, PAPER: ORANGE, REPRODUCED: LIGHT_ORANGE}
BARS_PER_PANEL = 7
CHARACTERS_PER_INCH = 14  # of 8 points


def overview(tasks: Sequence[EvalTask], reports: Mapping[str, Mapping[str, Any] | None]) -> "Figure | None":
    """This run beside its control and published scores, bars per task; names the tasks that have no report."""
    from matplotlib.patches import Patch

    evaluated = [(task, report) for task in tasks if (report := reports.get(task.name))]
    panels = [(task, report, names) for task, report in evaluated for names in _panels(task, report)]
    if not panels:
        return None
    columns, rows = grid_shape(len(panels), at_most=4)
    lines = [_lines(*panel) for panel in panels]
    heights = [max(lines[row * columns : (row + 1) * columns]) for row in range(rows)]
    width = max(5.5, 3.6 * columns)
    figure = new_figure(width, 1.0 + 0.95 * rows + 0.21 * sum(heights))
    grid = figure.add_gridspec(rows, columns, height_ratios=heights)
    for place, panel in enumerate(panels):
        _draw_bars(figure.add_subplot(grid[place]), *panel, heights[place // columns])
    shown = {kind for task, report, names in panels for name in names for kind in _bars(task, report, name)}
    kinds = [Patch(color=colour, label=kind) for kind, colour in BAR_COLOURS.items() if kind in shown]
    figure.legend(handles=kinds, loc="outside upper center", ncols=4 if columns > 1 else 2, frameon=False)
    note = "↑ higher is better, ↓ lower is better"
    if missing := [task.name for task in tasks if not reports.get(task.name)]:
        note += f". Not evaluated: {', '.join(missing)}"
    note = _wrapped(note, int(width * CHARACTERS_PER_INCH))
    figure.supxlabel(note, x=0.1 / width, ha="left", fontsize=8, color="dimgrey")
    return figure


def _bars(task: EvalTask, report: Mapping[str, Any], name: str) -> dict[str, float | None]:
    """What there is to compare of a metric, like with like: {kind of bar: score}."""
    scores = {THIS_RUN: report["scores"][name]}
    if f"{name}_shuffled" in report["scores"]:
        scores[SHUFFLED] = report["scores"][f"{name}_shuffled"]
    for kind, source in ((PAPER, task.paper), (REPRODUCED, task.reproduced)):
        alike = [one.value for one in source.get(name, []) if _is_alike(one, report, name)]
        if alike:
            scores[kind] = alike[0]
    return scores


def _is_alike(published: Published, report: Mapping[str, Any], name: str) -> bool:
    """Whether a published score may stand beside this run's bar, which is over all answers."""
    return published.outputs in (ALL, EITHER) and not score_alike(published, report, name)[1]


def _panels(task: EvalTask, report: Mapping[str, Any]) -> list[list[str]]:
    """The metrics of a task, those together that share the unit and fit into one panel; only shares have one unit."""
    panels: list[list[str]] = []
    names = metrics_of(report)
    for name in sorted(names, key=lambda name: METRICS[name].percent != METRICS[names[0]].percent):
        last = panels[-1] if panels else []
        bars = sum(len(_bars(task, report, other)) for other in [*last, name])
        if last and METRICS[name].percent and METRICS[last[0]].percent and bars <= BARS_PER_PANEL:
            last.append(name)
        else:
            panels.append([name])
    return panels


def _lines(task: EvalTask, report: Mapping[str, Any], names: Sequence[str]) -> int:
    """Lines of a panel: a heading per metric and its bars."""
    return sum(1 + len(_bars(task, report, name)) for name in names)


def _draw_bars(panel: "Axes", task: EvalTask, report: Mapping[str, Any], names: Sequence[str], lines: int) -> None:
    """One panel with room for `lines` lines; of the task's metrics the first is the largest."""
    line, furthest = 0, 0.0
    for name in names:
        metric, first = METRICS[name], name == names[0]
        heading = f"{metric.title} {metric.arrow}   n = {report['scored_clips'][name]:,}"
        _write(panel, heading, 0, line, fontsize=9 if first else 8)
        for kind, value in _bars(task, report, name).items():
            line, end = line + 1, value or 0.0
            panel.barh(line, end, 0.8 if first else 0.6, color=BAR_COLOURS[kind], label=kind)
            if kind == THIS_RUN and report["intervals"][name]:
                edges = report["intervals"][name]
                panel.plot(edges, [line, line], color="black", linewidth=1.2, marker="|", markersize=5)
                end = max(end, *edges)
            colour = "dimgrey" if value is None else "black"
            _write(panel, shown_score(metric, value), end, line, fontsize=9 if first else 8, color=colour)
            furthest = max(furthest, end)
        line += 1
    panel.set_title(_wrapped(f"{task.name}: {task.title}", 42), loc="left", fontsize=9.5, fontweight="bold")
    if METRICS[names[0]].percent:
        furthest = max(furthest, 1.0)  # shares are drawn on one scale
        panel.xaxis.set_major_formatter(percent_labels())
    panel.set(xlim=(0, 1.4 * furthest or 1), ylim=(lines - 0.4, -0.6), yticks=[])
    panel.locator_params(axis="x", nbins=4)
    panel.tick_params(axis="x", labelsize=7, color=GREY, labelcolor="dimgrey")
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color(GREY)


def _write(panel: "Axes", text: str, x: float, y: float, **style: Any) -> None:
    """A text that begins a little to the right of a point."""
    panel.annotate(text, xy=(x, y), xytext=(4, 0), textcoords="offset points", va="center", **style)


def _wrapped(text: str, width: int) -> str:
    return fill(text, width, break_on_hyphens=False)


def confusion(report: Mapping[str, Any]) -> "Figure | None":
    """A heat map for each confusion matrix of a report: counts, coloured by their share of the row."""
    found = {name: details for name, details in report["details"].items() if "confusion" in details}
    if not found:
        return None
    most = max(len(details["classes"]) for details in found.values())
    width = len(found) * (2.8 + 0.75 * most)
    figure = new_figure(width, 2.0 + 0.6 * most)
    title = _wrapped(f"{report['name']}: {report['title']}", int(0.7 * width * CHARACTERS_PER_INCH))
    figure.suptitle(title, fontsize=10, fontweight="bold")
    for panel, (name, details) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        accuracy = f"{METRICS[name].title} {shown_score(METRICS[name], report['scores'][name])}"
        _draw_matrix(panel, np.array(details["confusion"]), details["classes"], accuracy)
    figure.colorbar(panel.images[0], ax=figure.axes, format=percent_labels(), label="share of the row")
    return figure


def _draw_matrix(panel: "Axes", counts: np.ndarray, classes: Sequence[str], title: str) -> None:
    """Counts [n_classes, n_classes + 1]: rows are references, columns answers, the last one none of the classes."""
    totals = counts.sum(axis=1, keepdims=True)  # [n_classes, 1]
    shares = counts / np.maximum(totals, 1)
    panel.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), count in np.ndenumerate(counts):
        colour = "white" if shares[row, column] > 0.5 else "black"
        panel.text(column, row, f"{count:,}", ha="center", va="center", color=colour)
    panel.set_title(title, fontsize=10)
    panel.set_xticks(range(len(classes) + 1), [*classes, "none"])
    rows = [f"{name} ({total:,})" for name, total in zip(classes, totals[:, 0], strict=True)]
    panel.set_yticks(range(len(classes)), rows)
    panel.set(xlabel="answer", ylabel="reference")
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
