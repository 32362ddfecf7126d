"""Table, JSON and picture of the curves that the runs have left."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.samples_to_learn.criterion import CRITERION, Point, half_way, left_plateau
from experiments.samples_to_learn.recipes import Study
from salmonn.common.charts import BLUE, GREY, ORANGE, grid_shape, new_figure, style_panel, write_png
from salmonn.evaluation.report.tables import table

Curves = Mapping[str, Mapping[int, Sequence[Point]]]  # by recipe and seed
MILESTONES = {
    "left": left_plateau,
    "left_asr": lambda curve: left_plateau(curve, "asr"),
    "left_audiocaption": lambda curve: left_plateau(curve, "audiocaption"),
    "half_way": half_way,
}


def summarise(study: Study, curves: Curves) -> dict[str, Any]:
    """All that was found, for a JSON file; samples are None where a milestone was not reached."""
    recipes = {}
    for name, by_seed in curves.items():
        samples = {key: {seed: of(curve) for seed, curve in by_seed.items()} for key, of in MILESTONES.items()}
        recipes[name] = {
            "says": study.recipes[name].says,
            "options": study.recipes[name].options,
            **{key: {seed: _or_none(value) for seed, value in of.items()} for key, of in samples.items()},
            "median": {key: _or_none(statistics.median(of.values())) for key, of in samples.items()},
            "last_samples": {seed: curve[-1]["samples"] for seed, curve in by_seed.items()},
            "curves": by_seed,
        }
    return {"criterion": CRITERION, "common_options": study.options, "recipes": recipes}


def markdown(summary: Mapping[str, Any]) -> str:
    """The criterion and one row per recipe; the first recipe is what the factors compare with."""
    recipes = summary["recipes"]
    first = next(iter(recipes.values()))
    header = ["recipe", "differs in", "samples to leave the plateau, by seed", "median", "x", "ASR", "captions"]
    header += ["half-way accuracy, by seed", "median", "x"]
    rows = []
    for name, recipe in recipes.items():
        row = [name, recipe["says"]]
        for key, parts in (("left", ("left_asr", "left_audiocaption")), ("half_way", ())):
            last = recipe["last_samples"]
            row += [", ".join(_shown(value, last[seed]) for seed, value in recipe[key].items())]
            row += [_shown(recipe["median"][key], min(last.values()))]
            row += [_factor(recipe["median"][key], first["median"][key])]
            row += [_shown(recipe["median"][part], min(last.values())) for part in parts]
        rows.append(row)
    return f"{summary['criterion']}\n\n{table(header, rows)}\n"


def plot(summary: Mapping[str, Any], out: Path) -> None:
    """One panel per recipe: loss of each seed, its control in grey, and where the plateau was left."""
    recipes = summary["recipes"]
    columns, rows = grid_shape(len(recipes), at_most=4)
    figure = new_figure(3.4 * columns, 2.7 * rows)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
    for panel, (name, recipe) in zip(panels, recipes.items(), strict=False):
        for i, curve in enumerate(recipe["curves"].values()):
            samples = [point["samples"] for point in curve]
            for key, label, style in (
                ("loss_shuffled", "audio shuffled", {"color": GREY, "linestyle": "--"}),
                ("loss", "validation loss", {"color": BLUE}),
            ):
                panel.plot(samples, [p[key] for p in curve], label=None if i else label, linewidth=1.2, **style)
        if (median := recipe["median"]["left"]) is not None:
            panel.axvline(median, color=ORANGE, label=f"plateau left: {median:.0f}")
        panel.set_title(name)
        panel.legend(frameon=False, fontsize="small")
    for panel in figure.axes[len(recipes) :]:
        panel.set_axis_off()
    for panel in figure.axes[: len(recipes)]:
        style_panel(panel)
    figure.axes[0].set(xlim=(0, None), ylim=(0, None))  # shared, so only when all curves are there
    figure.supxlabel("training samples")
    figure.supylabel("loss per target token")
    write_png(figure, out)


def _or_none(samples: float) -> float | None:
    return round(samples) if math.isfinite(samples) else None


def _shown(samples: float | None, last: int) -> str:
    return f"> {last}" if samples is None else str(samples)


def _factor(samples: float | None, of: float | None) -> str:
    return "-" if samples is None or of is None else f"{samples / of:.2f}"
