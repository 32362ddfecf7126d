"""The curves of a training run as one picture, from its `log.jsonl`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from salmonn.charts import BLUE, GREY, ORANGE, distinct_colours, new_figure, style_panel, write_png
from salmonn.errors import UserError


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log.jsonl. Raises UserError where it is absent or not such a file."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"training log {path} cannot be read: {error}") from error


def plot_curves(lines: Sequence[dict[str, Any]], out: Path, title: str) -> None:
    """Write one picture with six panels. The grey curves are the control with swapped audio."""
    train = [line for line in lines if line["kind"] == "train"]
    valid = [line for line in lines if line["kind"] == "valid"]
    figure = new_figure(13, 7)
    (loss, accuracy, tasks), (rate, norm, speed) = figure.subplots(2, 3)
    figure.suptitle(title)

    _curve(loss, train, "loss", "training", color=BLUE, alpha=0.5, linewidth=1.0)
    _curve(loss, valid, "loss", "validation", color=ORANGE, marker="o")
    _curve(loss, valid, "loss_shuffled", "validation, audio shuffled", color=GREY, marker="o", linestyle="--")
    loss.set(ylabel="loss per target token", ylim=(0, None))
    _curve(accuracy, valid, "accuracy", "validation", color=ORANGE, marker="o")
    _curve(accuracy, valid, "accuracy_shuffled", "validation, audio shuffled", color=GREY, marker="o", linestyle="--")
    accuracy.set(ylabel="token accuracy", ylim=(0, 1))
    names = sorted({task for line in valid for task in line.get("tasks", {})})
    for task, colour in zip(names, distinct_colours(len(names)), strict=True):
        of_task = [{"step": line["step"], **line["tasks"][task]} for line in valid if task in line.get("tasks", {})]
        _curve(tasks, of_task, "accuracy", task, marker="o", color=colour)
    tasks.set(ylabel="token accuracy per task", ylim=(0, 1))
    for panel, key, label in (
        (rate, "lr", "learning rate"),
        (norm, "grad_norm", "norm of the gradients"),
        (speed, "samples_per_second", "samples/s"),
    ):
        _curve(panel, train, key, label, color=BLUE)
        panel.set(ylabel=label, ylim=(0, None))

    for panel in figure.axes:
        panel.set(xlabel="step", xlim=(0, None))
        style_panel(panel)
    for panel in (loss, accuracy, tasks):
        if panel.lines:
            panel.legend(frameon=False, fontsize="small")
    write_png(figure, out)


def _curve(panel: Any, lines: Sequence[dict[str, Any]], key: str, label: str, **style: Any) -> None:
    points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
    panel.plot([step for step, _ in points], [value for _, value in points], label=label, markersize=4, **style)
