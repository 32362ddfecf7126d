"""After how many samples does a model listen? Recipes of stage 1 side by side.

  python util/samples_to_learn.py                            published, CTC beside, stage 0 and the best found; 3 seeds
  python util/samples_to_learn.py --world small              the same on real parts, of configs/small/recipes.yaml
  python util/samples_to_learn.py --only all                 all recipes of configs/mini/recipes.yaml
  python util/samples_to_learn.py --recipes configs/mini/recipes_faster.yaml --out output/faster    cheaper steps
  python util/samples_to_learn.py --recipes configs/mini/recipes_after_stage0.yaml --out output/after_stage0
  python util/samples_to_learn.py --only published half_batch --seeds 4 5
  python util/samples_to_learn.py --report-only              from the runs that are there

Each run is stage 1 by the real Runner, some after a stage 0, which recipes that want the same one share. It is
validated often beside the control with shuffled audio, and ended when the plateau is left and half of the accuracy is
gained, or where the recipes say. Finished runs are kept in --out and not made again: one that other options, configs,
annotations or models made is refused. The tables there (report.md, report.json, report.png) are of all of them; below
them stands which runs this command would make otherwise, and which are of an earlier version, which did not say.
The world must be there: make quickstart makes the miniature one, make small the other. One thread a process: start
several with other --seeds.
"""

import argparse
import os
import sys
from contextlib import nullcontext
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from experiments.samples_to_learn.recipes import chosen, load_study  # noqa: E402
from salmonn.common.cli import command_parser, run_cli, seed_number, tell_wait  # noqa: E402
from salmonn.common.errors import UserError  # noqa: E402
from salmonn.common.files import write_json, write_text  # noqa: E402

ONLY = "make only these runs, or `all` (default: what the file of recipes names as `default`; where it does not, all)"


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = command_parser(__doc__)
    parser.add_argument("--world", choices=("mini", "small"), default="mini", help="where (default: %(default)s)")
    parser.add_argument(
        "--recipes", type=Path, metavar="FILE", help="what is compared (default: configs/WORLD/recipes.yaml)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="runs and report (default: output/samples_to_learn, of the small world output/samples_to_learn_small)",
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="RECIPE", help=ONLY)
    parser.add_argument(
        "--seeds",
        nargs="+",
        default=[1, 2, 3],
        type=seed_number,
        metavar="N",
        help="a run of each recipe with each of these (default: 1 2 3)",
    )
    parser.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="keys that are set in all runs")
    parser.add_argument(
        "--report-only", action="store_true", help="make no run, only the report of those that are there"
    )
    return parser.parse_args()


def main() -> None:
    """Make the runs that are missing, then the report."""
    args = parse_arguments()
    recipes = args.recipes or ROOT / "configs" / args.world / "recipes.yaml"
    out = args.out or Path("output/samples_to_learn" if args.world == "mini" else "output/samples_to_learn_small")
    study = load_study(recipes)
    names = chosen(study, args.only, recipes)
    tell_wait("loading PyTorch")
    from experiments.samples_to_learn.changes import clips_kept
    from experiments.samples_to_learn.experiment import fill_cache, measure
    from experiments.samples_to_learn.kept import doubts, is_measured, read_curves
    from experiments.samples_to_learn.report import markdown, plot, summarise

    if not args.report_only:
        # seed by seed: what is there when it is stopped can be compared
        runs = [(name, seed) for seed in args.seeds for name in names]
        with clips_kept() if study.keep_clips else nullcontext():
            if not all(is_measured(name, seed, out) for name, seed in runs):
                fill_cache(study, names, args.options)
            for name, seed in runs:
                measure(study, name, seed, out, args.options)
    curves = read_curves(study, out)
    if not curves:
        raise UserError(f"{out} holds no finished run of {recipes}")
    summary = summarise(study, curves, doubts(study, out, args.options))
    write_json(out / "report.json", summary)
    write_text(out / "report.md", markdown(summary))
    plot(summary, out / "report.png")
    print(markdown(summary))


if __name__ == "__main__":
    run_cli(main)
