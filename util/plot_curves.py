"""Draw the curves of a training run that is still going on (a finished one has its training_curves.png).

python util/plot_curves.py output/stage1/log.jsonl --out stage1.png
"""

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from salmonn.errors import run_cli
from salmonn.training_curves import plot_curves, read_log


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path, help="log.jsonl of a training run")
    parser.add_argument("--out", type=Path, metavar="FILE", help="picture to write (default: beside the log)")
    args = parser.parse_args()
    out = args.out or args.log.with_name("training_curves.png")
    plot_curves(read_log(args.log), out, title=str(args.log.parent))
    print(out)


if __name__ == "__main__":
    run_cli(main)
