"""Draw the curves of training runs that are done or still going on; several runs in the same panels.

  python util/plot_runs.py output/stage1
  python util/plot_runs.py output/stage1 output/half_batch/log.jsonl --out compared.png

A run is its folder or the log.jsonl in it. One run is drawn as its training_curves.png, with the accuracy per task;
several have a colour each, the first the widest lines, and dashed the control with shuffled audio.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from salmonn.common.charts import distinct_parts, png_path
from salmonn.common.cli import command_parser, run_cli
from salmonn.common.errors import UserError
from salmonn.training.curves import plot_curves, plot_runs, read_log

LOG = "log.jsonl"


def main() -> None:
    """Read the logs and write the picture."""
    parser = command_parser(__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a training run, or its log.jsonl")
    parser.add_argument(
        "--out", type=png_path, default=Path("runs.png"), metavar="FILE", help="picture, .png (default: runs.png)"
    )
    args = parser.parse_args()
    runs = read_runs(args.runs)
    if len(runs) == 1:
        [(name, lines)] = runs.items()
        plot_curves(lines, args.out, title=name)
    else:
        plot_runs(runs, args.out)
    print(args.out)


def read_runs(paths: Sequence[Path]) -> dict[str, list[dict[str, Any]]]:
    """{short name: lines of the log}, each run once. Raises UserError that names every run without a line."""
    others = [path for path in paths if path.is_file() and path.name != LOG]
    problems = [f"{path} is no run: name the folder of a run, or the {LOG} in it" for path in others]
    folders = [path.parent if path.name == LOG else path for path in paths if path not in others]
    logs: dict[Path, list[dict[str, Any]]] = {folder.resolve(): [] for folder in folders}
    for folder in logs:
        try:
            logs[folder] = read_log(folder / LOG)
        except UserError as error:
            problems.append(str(error))
        else:
            if not logs[folder]:
                problems.append(f"training log {folder / LOG} is empty: the run has logged nothing yet")
    if problems:
        raise UserError("\n".join(problems))
    names = distinct_parts([folder.as_posix() for folder in logs])
    return dict(zip(names, logs.values(), strict=True))


if __name__ == "__main__":
    run_cli(main)
