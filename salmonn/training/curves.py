"""The curves of a training run, or of several, as one picture, from their `log.jsonl`."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from salmonn.common.charts import (
    BLUE,
    GREY,
    ORANGE,
    distinct_colours,
    grid_shape,
    logarithmic,
    new_figure,
    style_panel,
    write_png,
)
from salmonn.common.errors import UserError
from salmonn.common.files import whole_lines

logger = logging.getLogger(__name__)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log.jsonl; a run may be writing the last one.

    Raises UserError where the file is absent or not such a file.
    """
    try:
        lines = [json.loads(line) for _, line in whole_lines(path)]
        if not all(isinstance(line, dict) and line.keys() >= {"kind", "step"} for line in lines):
            raise ValueError('there is a line without "kind" and "step"')
        return lines
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: is {path.parent} the folder of a run?") from error
    except (OSError, ValueError, RecursionError) as error:  # no UTF-8 and no JSON are ValueErrors, too
        raise UserError(f"training log {path} cannot be read: {error}") from error


def draw_curves(folder: Path) -> None:
    """Write `training_curves.png` beside the log in a run's folder; a disk that is full is no reason to fail."""
    log, picture = folder / "log.jsonl", folder / "training_curves.png"
    if log.exists():
        try:
            plot_curves(read_log(log), picture, str(folder))
        except (OSError, UserError) as error:  # a full disk, and what it left of the log
            logger.warning("%s could not be drawn: %s", picture, error)


def plot_curves(lines: Sequence[dict[str, Any]], out: Path, title: str) -> None:
    """Write one picture, a panel for all that is logged yet. The grey curves are the control with shuffled audio."""
    train = [line for line in lines if line["kind"] == "train"]
    valid = [line for line in lines if line["kind"] == "valid"]
    names = sorted({task for line in valid for task in line.get("tasks", {})})
    drawn = {
        "loss": _is_logged("loss", train, valid),
        "accuracy": _is_logged("accuracy", valid),
        "tasks": bool(names),
        **{key: _is_logged(key, train) for key in ("lr", "grad_norm", "samples_per_second")},
    }
    columns, rows = grid_shape(max(sum(drawn.values()), 1), at_most=3)
    figure = new_figure(0.4 + 4.2 * columns, 0.4 + 3.3 * rows)
    figure.suptitle(title if any(drawn.values()) else f"{title}: nothing logged yet")
    place = {name: 1 + i for i, name in enumerate(name for name, is_drawn in drawn.items() if is_drawn)}
    panels = {name: figure.add_subplot(rows, columns, number) for name, number in place.items()}

    if loss := panels.get("loss"):
        _curve(loss, train, "loss", "training", color=BLUE, alpha=0.5, linewidth=1.0)
        _curve_and_control(loss, valid, "loss")
        loss.set(ylabel="loss per target token", ylim=(0, None))
    if accuracy := panels.get("accuracy"):
        _curve_and_control(accuracy, valid, "accuracy")
        accuracy.set(ylabel="token accuracy", ylim=(0, 1))
    if tasks := panels.get("tasks"):
        for task, colour in zip(names, distinct_colours(len(names)), strict=True):
            of_task = [{"step": line["step"], **line["tasks"][task]} for line in valid if task in line.get("tasks", {})]
            _curve(tasks, of_task, "accuracy", task, marker="o", color=colour)
        tasks.set(ylabel="token accuracy per task", ylim=(0, 1))
    for panel in panels.values():
        if panel.lines:
            panel.legend(frameon=False, fontsize="small")
    labels = {"lr": "learning rate", "grad_norm": "norm of the gradients", "samples_per_second": "samples/s"}
    for key in labels.keys() & panels.keys():
        _curve(panels[key], train, key, labels[key], color=BLUE)
        panels[key].set(ylabel=labels[key], ylim=(0, None))
    for panel in figure.axes:
        panel.set(xlabel="step", xlim=(0, None))
        style_panel(panel)
    write_png(figure, out)


def _is_logged(key: str, *kinds: Sequence[dict[str, Any]]) -> bool:
    return any(line.get(key) is not None for lines in kinds for line in lines)


def _curve_and_control(panel: Any, valid: Sequence[dict[str, Any]], key: str) -> None:
    """A value of the validations, if there are any, and the same with the audio shuffled."""
    if valid:
        _curve(panel, valid, key, "validation", color=ORANGE, marker="o")
        control = {"color": GREY, "marker": "o", "linestyle": "--"}
        _curve(panel, valid, f"{key}_shuffled", "validation, audio shuffled", **control)


def plot_runs(runs: Mapping[str, Sequence[dict[str, Any]]], out: Path) -> None:
    """Write one picture with six panels and a colour for each of several runs, {name: lines of its log}.

    Lines get thinner from run to run, so that equal curves do not hide each other.
    """
    from matplotlib.lines import Line2D

    figure = new_figure(13, 7)
    (loss, valid_loss, accuracy), (rate, norm, speed) = figure.subplots(2, 3)
    panels = (  # panel, kind of line, key, key of the control, label
        (loss, "train", "loss", "", "training loss per target token"),
        (valid_loss, "valid", "loss", "loss_shuffled", "validation loss per target token"),
        (accuracy, "valid", "accuracy", "accuracy_shuffled", "validation token accuracy"),
        (rate, "train", "lr", "", "learning rate"),
        (norm, "train", "grad_norm", "", "norm of the gradients"),
        (speed, "train", "samples_per_second", "", "samples/s"),
    )
    handles = []
    for i, ((name, lines), colour) in enumerate(zip(runs.items(), distinct_colours(len(runs)), strict=True)):
        extra = 1 - i / max(len(runs) - 1, 1)
        look: dict[str, Any] = {"color": colour, "linewidth": 1.2 + 1.6 * extra}
        handles.append(Line2D([], [], label=name, **look))
        for panel, kind, key, control, _ in panels:
            of_kind = [line for line in lines if line["kind"] == kind]
            marker = {"marker": "o", "markersize": 4 + 3 * extra} if kind == "valid" else {}
            _curve(panel, of_kind, key, name, **look, **marker)
            if control:
                _curve(panel, of_kind, control, name, linestyle="--", markerfacecolor="white", **look, **marker)
    for panel, _, _, _, label in panels:
        panel.set(xlabel="step", ylabel=label, xlim=(0, None))
        if panel in (loss, valid_loss, norm):
            logarithmic(panel)
        else:
            panel.set_ylim(0, 1.02 if panel is accuracy else None)  # a marker at 1 is whole
        style_panel(panel)
        if not any(len(line.get_xdata()) for line in panel.lines):
            panel.annotate("nothing logged yet", (0.5, 0.5), xycoords="axes fraction", ha="center", color="dimgrey")
    handles.append(Line2D([], [], color=GREY, linestyle="--", label="audio shuffled"))
    figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), 5), frameon=False)
    write_png(figure, out)


def _curve(panel: Any, lines: Sequence[dict[str, Any]], key: str, label: str, **style: Any) -> None:
    points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
    if not points:
        return
    style = {"markersize": 4, **style}
    panel.plot([step for step, _ in points], [value for _, value in points], label=label, **style)
