"""Train SALMONN: one of the three stages, as its config file says, or all of them.

  torchrun --nproc_per_node=4 train.py --cfg-path configs/stage1.yaml
  torchrun --nproc_per_node=4 train.py --cfg-path configs/all_stages.yaml
  python train.py --cfg-path configs/stage1.yaml --dry-run
  python train.py --cfg-path configs/mini/stage1.yaml --options run.batch_size_train=4
  python train.py --keys run.optims                     all keys that begin so, with their defaults

Stopped in any way, the same command goes on where it was. Without weights and data: `make quickstart`
runs all stages on a miniature world.
"""

import os
import sys

from salmonn.common import slurm
from salmonn.common.cli import argument_parser, refuse_former, run_cli, tell_wait
from salmonn.common.imports import importing
from salmonn.config.listing import ShowKeys
from salmonn.config.loading import load_stages
from salmonn.training.readiness import require_files

FORMER = {"--dryrun": "--dry-run", "--device": "--options run.device=cuda:0"}


def main() -> None:
    """Read the config, then check what it names, or train it."""
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check files, prompts, checkpoints, disk and one step of a tiny model; train nothing",
    )
    parser.add_argument(
        "--keys",
        nargs="?",
        action=ShowKeys,
        metavar="PREFIX",
        help="show every key of a configuration, or those that begin so: type, default and meaning",
    )
    refuse_former(FORMER, sys.argv[1:])
    args = parser.parse_args()
    os.environ.update(slurm.environment(os.environ))
    configs = load_stages(args.cfg_path, args.options)
    slurm.require_whole(os.environ, joins=any(config.run.use_distributed for config in configs))

    if os.environ.get("RANK" if args.dry_run else "LOCAL_RANK", "0") == "0":  # one process looks
        require_files(configs)
    tell_wait(f"{args.cfg_path}: loading PyTorch")
    if args.dry_run:
        with importing():
            from salmonn.training.dry_run import dry_run

        dry_run(configs)
    else:
        with importing():
            from salmonn.training.stages import run_stages

        run_stages(configs)


if __name__ == "__main__":
    run_cli(main)
