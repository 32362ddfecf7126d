"""Table, JSON and picture of the curves that the runs have left."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.samples_to_learn.criterion import Point, at_samples, criterion, half_way, left_plateau
from experiments.samples_to_learn.recipes import Study
from salmonn.common.charts import BLUE, GREY, ORANGE, grid_shape, new_figure, style_panel, write_png
from salmonn.evaluation.report.tables import table

Curves = Mapping[str, Mapping[int, Sequence[Point]]]  # by recipe and seed


def summarise(study: Study, curves: Curves, doubts: Sequence[str] = ()) -> dict[str, Any]:
    """All that was found, for a JSON file; samples and CPU seconds are None where a milestone was not reached.

    `doubts`: lines about runs that may not belong beside the others.
    """
    milestones = {
        "left": left_plateau,
        "left_asr": lambda curve: left_plateau(curve, "asr"),
        "left_audiocaption": lambda curve: left_plateau(curve, "audiocaption"),
        "half_way": lambda curve: half_way(curve, study.half_way_accuracy),
    }
    recipes = {}
    for name, by_seed in curves.items():
        samples = {
            key: {seed: of(curve) for seed, curve in by_seed.items()}
            for key, of in milestones.items()
            if not key.startswith("left_") or _has_task(by_seed, key.removeprefix("left_"))
        }
        seconds = {f"{key}_cpu_seconds": _cpu_seconds(by_seed, samples[key]) for key in ("left", "half_way")}
        found, digits = samples | seconds, dict.fromkeys(seconds, 1)
        recipes[name] = {
            "says": study.recipes[name].says,
            "options": study.recipes[name].options,
            **{key: {seed: _or_none(n, digits.get(key)) for seed, n in of.items()} for key, of in found.items()},
            "median": {key: _or_none(statistics.median(of.values()), digits.get(key)) for key, of in found.items()},
            "samples_per_cpu_second": _speed(by_seed),
            "last_samples": {seed: curve[-1]["samples"] for seed, curve in by_seed.items()},
            "curves": by_seed,
        }
    summary = {"criterion": criterion(study.half_way_accuracy), "common_options": study.options, "recipes": recipes}
    return summary | {"word_errors": _word_errors(curves), "doubts": list(doubts)}


def _has_task(by_seed: Mapping[int, Sequence[Point]], task: str) -> bool:
    return all(task in point["tasks"] for curve in by_seed.values() for point in curve)


def _cpu_seconds(by_seed: Mapping[int, Sequence[Point]], samples: Mapping[int, float]) -> dict[int, float]:
    """CPU seconds at which each seed had its samples, stage 0 counted; inf where it never had, or none was measured."""
    found = {seed: at_samples(by_seed[seed], value, "cpu_seconds") for seed, value in samples.items()}
    return {seed: math.inf if math.isnan(value) else value for seed, value in found.items()}


def _speed(by_seed: Mapping[int, Sequence[Point]]) -> dict[int, float]:
    """Samples for each CPU second of a whole run's training, stage 0 not counted; none of runs that did not tell."""
    last = {seed: curve[-1].get("samples_per_cpu_second") for seed, curve in by_seed.items()}
    return {seed: value for seed, value in last.items() if value is not None}


def _word_errors(curves: Curves) -> dict[str, Any]:
    """Word error rates where all recipes can be compared, at equal samples and at equal CPU seconds; nan = unknown."""
    counted = {
        name: [[point for point in curve if "word_error_rate" in point] for curve in by_seed.values()]
        for name, by_seed in curves.items()
    }
    runs = [points for of_recipe in counted.values() for points in of_recipe]
    if not runs or not all(runs):
        return {}
    found = {}
    for by in ("samples", "cpu_seconds"):
        at = min(points[-1][by] for points in runs)
        rates = {
            name: [at_samples(points, at, "word_error_rate", by) for points in of_recipe]
            for name, of_recipe in counted.items()
        }
        known = {name: of if not any(map(math.isnan, of)) else None for name, of in rates.items()}
        medians = {name: of and statistics.median(of) for name, of in known.items()}
        found[by] = {"at": at, "by_seed": known, "median": medians}
    return found


def markdown(summary: Mapping[str, Any]) -> str:
    """The criterion and one row per recipe; the first recipe is what the factors compare with."""
    recipes, word_errors = summary["recipes"], summary["word_errors"]
    first = next(iter(recipes.values()))
    parts = [key for key in ("left_asr", "left_audiocaption") if all(key in recipe for recipe in recipes.values())]
    titles = {"left_asr": "ASR", "left_audiocaption": "captions"}
    header = ["recipe", "differs in", "samples to leave the plateau, by seed", "median", "x", "CPU s", "x"]
    header += [titles[key] for key in parts]
    header += ["half-way accuracy, by seed", "median", "x", "CPU s", "x"]
    header += ["samples/CPU s, by seed", "x"] + [_at(by, of["at"]) for by, of in word_errors.items()]
    rows = []
    for name, recipe in recipes.items():
        row, last = [name, recipe["says"]], recipe["last_samples"]
        for key in ("left", "half_way"):
            row += [", ".join(_shown(value, last[seed]) for seed, value in recipe[key].items())]
            for value in (key, f"{key}_cpu_seconds"):
                of, compared = recipe["median"][value], first["median"][value]
                row += [_shown(of, min(last.values())) if value == key else _or_dash(of), _factor(of, compared)]
            if key == "left":
                row += [_shown(recipe["median"][part], min(last.values())) for part in parts]
        speeds = [[*of["samples_per_cpu_second"].values()] for of in (recipe, first)]
        row += [", ".join(f"{value:.1f}" for value in speeds[0]) or "-"]
        row += [_factor(*map(statistics.median, speeds)) if all(speeds) else "-"]
        rows.append(row + [_percent(of["by_seed"][name]) for of in word_errors.values()])
    told = "CPU seconds count stage 0, samples/CPU s do not. Word errors: the median, and each seed's."
    lines = [summary["criterion"] + f" {told}\n", table(header, rows), *_on_the_way(recipes)]
    return "\n".join(lines + [f"\n{doubt}" for doubt in summary["doubts"]]) + "\n"


def _on_the_way(recipes: Mapping[str, Any]) -> list[str]:
    """A second table: the validations at which all runs counted word errors, each seed's values."""
    runs = [curve for recipe in recipes.values() for curve in recipe["curves"].values()]
    counted = [{point["samples"] for point in curve if "word_error_rate" in point} for curve in runs]
    if not (places := sorted(set.intersection(*counted))):
        return []
    tasks = sorted(set.intersection(*(set(point["tasks"]) for curve in runs for point in curve)))
    header = ["recipe", f"loss after {places[0]} samples"] + [f"word errors after {place}" for place in places]
    header += [f"accuracy after {places[-1]}: {task}" for task in tasks] + ["loss", "CPU s, stage 0 counted"]
    rows = []
    for name, recipe in recipes.items():
        points = [{point["samples"]: point for point in curve} for curve in recipe["curves"].values()]
        ends = [of[places[-1]] for of in points]
        row = [name, _listed(of[places[0]]["loss"] for of in points)]
        row += [_percent([of[place]["word_error_rate"] for of in points]) for place in places]
        row += [_listed(end["tasks"][task]["accuracy"] for end in ends) for task in tasks]
        rows.append(
            [*row, _listed(end["loss"] for end in ends), f"{statistics.median(end['cpu_seconds'] for end in ends):.0f}"]
        )
    return ["", table(header, rows)]


def _listed(values: Iterable[float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)


def _percent(rates: Sequence[float] | None) -> str:
    if rates is None:
        return "-"
    return f"{100 * statistics.median(rates):.1f} % ({', '.join(f'{100 * rate:.1f}' for rate in rates)})"


def _at(by: str, value: float) -> str:
    return f"word errors at {value:.0f} {'samples' if by == 'samples' else 'CPU s'}"


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


def _or_none(value: float, digits: int | None = None) -> float | None:
    return round(value, digits) if math.isfinite(value) else None


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _shown(samples: float | None, last: int) -> str:
    return f"> {last}" if samples is None else str(samples)


def _factor(samples: float | None, of: float | None) -> str:
    return "-" if samples is None or of is None else f"{samples / of:.2f}"
