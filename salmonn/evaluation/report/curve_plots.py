"""Pictures of scores over LoRA scalings (paper, Figure 3) and of perplexities over checkpoints (Figure 4).

Each function returns a Figure, or None where there is nothing to draw; `charts.write_png` writes it.
A value that is None becomes nan, a gap in its curve.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from salmonn.common.charts import (
    GREY,
    distinct_colours,
    distinct_parts,
    grid_shape,
    logarithmic,
    new_figure,
    percent_labels,
    style_panel,
)
from salmonn.evaluation.metrics import METRICS, Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FILLED: dict[str, Any] = {"linestyle": "-", "marker": "o", "markersize": 4}
HOLLOW: dict[str, Any] = {"linestyle": "--", "marker": "o", "markersize": 4, "markerfacecolor": "white"}
DOTTED: dict[str, Any] = {"linestyle": ":"}
PERPLEXITY_LINES = {"P(Y|X,I): given audio and instruction": FILLED, "P(Y|X): given the audio only": HOLLOW}


@dataclass(frozen=True)
class Curve:
    """A score of one task over LoRA scalings."""

    task: str
    metric: str  # a name of METRICS
    x: Sequence[float]
    values: Sequence[float | None]  # one per x
    intervals: Sequence[Sequence[float] | None]  # [low, high], one per x
    finished: Sequence[float | None] = ()  # over finished answers alone, one per x; only beside published scores
    published: Mapping[float, float] = field(default_factory=dict)  # x: score of another run over finished answers


@dataclass(frozen=True)
class PerplexityCurve:
    """Perplexities of one task's answers Y over checkpoints (names, paths) or LoRA scalings (numbers)."""

    task: str
    x: Sequence[str] | Sequence[float]
    conditioned: Sequence[float | None]  # P(Y|X,I): audio and instruction; one per x
    unconditioned: Sequence[float | None]  # P(Y|X): audio only; one per x


def sweep(curves: Sequence[Curve]) -> "Figure | None":
    """Scores over LoRA scalings (paper, Figure 3): a panel per metric, a line per task with its 95 % interval."""
    if not curves:
        return None
    metrics = list(dict.fromkeys(curve.metric for curve in curves))
    colours = _colour_of(curve.task for curve in curves)
    columns, rows = grid_shape(len(metrics), at_most=3)
    figure = new_figure(max(6.5, 4.6 * columns), 3.8 * rows)
    for place, name in enumerate(metrics, start=1):
        panel = figure.add_subplot(rows, columns, place)
        _draw_scores(panel, METRICS[name], [curve for curve in curves if curve.metric == name], colours)
    return figure


def _draw_scores(panel: "Axes", metric: Metric, curves: Sequence[Curve], colours: Mapping[str, Any]) -> None:
    for curve in curves:
        colour = colours[curve.task]
        edges = [edges or (None, None) for edges in curve.intervals]
        low, high = np.array(edges, dtype=float).reshape(-1, 2).T  # [n], [n]
        panel.plot(curve.x, np.array(curve.values, dtype=float), color=colour, label=curve.task, **FILLED)
        panel.fill_between(curve.x, low, high, color=colour, alpha=0.2, linewidth=0)
        if curve.published:
            finished = np.array(curve.finished, dtype=float)
            panel.plot(curve.x, finished, color=colour, label=f"{curve.task}, finished only", **DOTTED)
            x, values = zip(*sorted(curve.published.items()), strict=True)
            panel.plot(x, values, color=colour, label=f"{curve.task}, published, finished only", **HOLLOW)
    if not any(np.isfinite(line.get_ydata()).any() for line in panel.lines):
        panel.annotate("no score", (0.5, 0.5), xycoords="axes fraction", ha="center", color="dimgrey")
    style_panel(panel)
    points = sorted({x for curve in curves for x in (*curve.x, *curve.published)})
    panel.set_xticks(points, [f"{x:g}" for x in points])
    panel.set(xlabel="LoRA scaling", ylabel=f"{metric.title} {metric.arrow}", ylim=(0, None))
    if metric.percent:
        panel.yaxis.set_major_formatter(percent_labels())
    panel.legend(frameon=False, fontsize="small")


def perplexity(curves: Sequence[PerplexityCurve]) -> "Figure | None":
    """Perplexity of the answers with (solid) and without (dashed) the instruction (paper, Figure 4).

    A panel per task, all with the same two axes, the vertical one logarithmic.
    """
    from matplotlib.lines import Line2D

    points = list(dict.fromkeys(x for curve in curves for x in curve.x))
    if not points:
        return None
    names = [x for x in points if isinstance(x, str)]  # all or none
    place_of = {x: place if isinstance(x, str) else x for place, x in enumerate(points)}
    labels = distinct_parts(names) if names else [f"{x:g}" for x in points]
    slanted: dict[str, Any] = (
        {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if sum(map(len, labels)) > 24 else {}
    )
    colours = _colour_of(curve.task for curve in curves)
    columns, rows = grid_shape(len(curves), at_most=4)
    figure = new_figure(max(6.5, columns * max(3.2, 0.7 * len(points))), 1.3 + 2.4 * rows)
    panel = None
    for place, curve in enumerate(curves):
        panel = figure.add_subplot(rows, columns, place + 1, sharex=panel, sharey=panel)
        _draw_perplexities(panel, curve, [place_of[x] for x in curve.x], colours[curve.task])
        panel.set_xticks(list(place_of.values()), labels, **slanted)
        leftmost, lowest = place % columns == 0, place + columns >= len(curves)
        panel.tick_params(labelleft=leftmost, labelbottom=lowest)
        panel.set_ylabel("perplexity" if leftmost else "")
        panel.set_xlabel(("checkpoint" if names else "LoRA scaling") if lowest else "")
    kinds = [Line2D([], [], color=GREY, label=kind, **style) for kind, style in PERPLEXITY_LINES.items()]
    figure.legend(handles=kinds, loc="outside upper center", ncols=2, frameon=False)
    return figure


def _draw_perplexities(panel: "Axes", curve: PerplexityCurve, x: Sequence[float], colour: Any) -> None:
    for (kind, style), values in zip(PERPLEXITY_LINES.items(), (curve.conditioned, curve.unconditioned), strict=True):
        panel.plot(x, np.array(values, dtype=float), color=colour, label=kind, **style)
    logarithmic(panel)
    panel.set_title(curve.task, loc="left", fontsize=9.5, fontweight="bold")
    style_panel(panel)


def _colour_of(tasks: Iterable[str]) -> dict[str, Any]:
    """A colour per task, the same in all panels."""
    names = list(dict.fromkeys(tasks))
    return dict(zip(names, distinct_colours(len(names)), strict=True))
