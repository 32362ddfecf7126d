"""Train SALMONN: one of the three stages, as its config file says.

  torchrun --nproc_per_node=4 train.py --cfg-path configs/stage1.yaml
  python train.py --cfg-path configs/mini/stage1.yaml --options run.batch_size_train=4

Without weights and data: `make quickstart` runs all stages on a miniature world.
"""

from salmonn.config import argument_parser, load_config
from salmonn.errors import run_cli
from salmonn.preflight import require_files


def main() -> None:
    """Read the config, check that everything it names is there, train."""
    args = argument_parser(__doc__).parse_args()
    config = load_config(args.cfg_path, args.options)
    wanted = ("test_ann_path",) if config.run.evaluate else ("train_ann_path", "valid_ann_path")
    require_files(config, wanted)

    from salmonn.runner import Runner  # torch and transformers load only now

    Runner(config).run()


if __name__ == "__main__":
    run_cli(main)
