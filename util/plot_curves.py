"""Draw the curves of a training run: loss, learning rate, token accuracy.

python util/plot_curves.py output/stage1/log.jsonl --out stage1.png
"""

import json
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from salmonn.errors import UserError, run_cli

BLUE, ORANGE, GREY = "#1f77b4", "#ff7f0e", "#9e9e9e"


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path, help="log.jsonl of a training run")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="picture to write (default: curves.png beside the log)"
    )
    args = parser.parse_args()
    out = args.out or args.log.with_name("curves.png")
    plot_curves(read_log(args.log), out, title=str(args.log.parent))
    print(out)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log.jsonl. Raises UserError where it is absent or not such a file."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"training log {path} cannot be read: {error}") from error


def plot_curves(lines: Sequence[dict[str, Any]], out: Path, title: str) -> None:
    """Write one picture with three panels. The grey curves are the control with swapped audio."""
    train = [line for line in lines if line["kind"] == "train"]
    valid = [line for line in lines if line["kind"] == "valid"]
    figure, (loss, rate, accuracy) = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    figure.suptitle(title)

    _curve(loss, train, "loss", "training", color=BLUE, alpha=0.5, linewidth=1.0)
    _curve(loss, valid, "loss", "validation", color=ORANGE, marker="o")
    _curve(loss, valid, "loss_shuffled", "validation, audio shuffled", color=GREY, marker="o", linestyle="--")
    loss.set(ylabel="loss per target token", ylim=(0, None))
    _curve(rate, train, "lr", "learning rate", color=BLUE)
    rate.set(ylabel="learning rate", ylim=(0, None))
    _curve(accuracy, valid, "accuracy", "validation", color=ORANGE, marker="o")
    _curve(accuracy, valid, "accuracy_shuffled", "validation, audio shuffled", color=GREY, marker="o", linestyle="--")
    accuracy.set(ylabel="token accuracy", ylim=(0, 1))

    for panel in (loss, rate, accuracy):
        panel.set(xlabel="step", xlim=(0, None))
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25)
    for panel in (loss, accuracy):
        panel.legend(frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
    plt.close(figure)


def _curve(panel: Axes, lines: Sequence[dict[str, Any]], key: str, label: str, **style: Any) -> None:
    points = [(line["step"], line[key]) for line in lines if key in line]
    panel.plot([step for step, _ in points], [value for _, value in points], label=label, markersize=4, **style)


if __name__ == "__main__":
    run_cli(main)
