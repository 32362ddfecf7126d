"""Make the miniature world: a small corpus and tiny pretrained models, in the real formats.

  python util/make_mini_world.py --out output/mini/world --seed 42

Speech, sound events and music are synthesised; Whisper, BEATs and LLaMA are tiny and pretrained here,
so that training and evaluation run for real where neither data nor weights can be had. The same seed
gives the same world. A world that is complete and was made with the same settings is left as it is.
"""

import os
import signal
import sys
from argparse import Namespace
from pathlib import Path

# Three worker processes of one thread each: nothing is gained by more threads on matrices this small,
# and the result does not depend on the number of cores. Must be set before torch is imported.
os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from salmonn.common.cli import command_parser, run_cli, seed_number
from salmonn.common.errors import UserError
from util.mini_world.build import build


def parse_arguments() -> Namespace:
    parser = command_parser(__doc__)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("output/mini/world"),
        metavar="DIR",
        help="folder to make (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=seed_number, default=42, metavar="N", help="decides on everything (default: %(default)s)"
    )
    parser.add_argument(
        "--train-clips", type=int, default=3000, metavar="N", help="good training clips (default: %(default)s)"
    )
    parser.add_argument(
        "--test-clips", type=int, default=320, metavar="N", help="held-out clips (default: %(default)s)"
    )
    parser.add_argument(
        "--broken",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="broken files on top, per good training clip (default: %(default)s)",
    )
    parser.add_argument(
        "--pretrain-scale",
        type=float,
        default=1.0,
        metavar="X",
        help="steps that the tiny models are pretrained, times the usual ones; 0: random weights (default: 1)",
    )
    return parser.parse_args()


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that its processes end, too
    args = parse_arguments()
    if min(args.train_clips, args.test_clips) < 20:
        raise UserError("--train-clips and --test-clips must be at least 20, or some tasks get no clip")
    if args.broken < 0 or args.pretrain_scale < 0:
        raise UserError("--broken and --pretrain-scale must not be negative")
    settings = {key: value for key, value in vars(args).items() if key != "out"}
    build(args.out, settings)


if __name__ == "__main__":
    run_cli(main)
