"""Evaluate a SALMONN: scores where the truth is known, answers where it is not, and what they depend on.

  python evaluate.py --mode valid_asr --options model.ckpt=output/stage1/checkpoint_best.pth
  torchrun --nproc_per_node=4 evaluate.py --mode table3 --tasks asr_clean,aac
  python evaluate.py --compare results/table3 results/table3_new

Modes:
  valid_asr, valid_aac            score the set datasets.valid_ann_path_asr or _aac
  submission_asr, submission_aac  write submission.csv for datasets.test_ann_path_asr or _aac
  validate_submission             check any such file: --csv FILE (and --ann FILE, else the config's sets)
  table3                          all tasks of evaluate.tasks_file whose set is there, or --tasks, on one page
                                  beside the paper and an earlier reproduction
  lora_sweep                      the same tasks at LoRA --scalings 0,1,2,3,4 (paper, Figure 3)
  perplexity                      of the right answers with and without the instruction, over --checkpoints
                                  and --scalings (paper, Figure 4)
  efficiency                      time to first token and per token, memory (evaluate.efficiency.*)
  generate                        the answers to any annotation file: --ann FILE
A hackathon mode whose own set is empty uses datasets.test_ann_path, or else datasets.test_ann_path_asr or _aac.

Results: <evaluate.results_dir>/<evaluate.name, else the mode>/ with report.md, report.json (with a provenance of all
that the result depends on), pictures and predictions.jsonl. Killed, the same command goes on: what was answered
under the same provenance is not asked again. evaluate.shuffled_control=true answers once more with the audio shuffled
between clips: a model that listens scores far worse then. evaluate.judge.* sets who judges SQQA, SF and SAC.
"""

import argparse
import math
import os
import sys
from pathlib import Path

from omegaconf import DictConfig

from salmonn.common import slurm
from salmonn.common.cli import argument_parser, refuse_former, run_cli, tell_wait
from salmonn.common.errors import UserError
from salmonn.common.imports import importing
from salmonn.common.spelling import did_you_mean
from salmonn.config.loading import load_config
from salmonn.evaluation.tasks import MODES, annotation_key, load_tasks, named_tasks
from salmonn.preflight import MINI_EVALUATES, require_files

# Which operands a mode takes.
OPERANDS = {
    **{mode: () for mode in MODES},
    "validate_submission": ("csv", "ann"),
    "table3": ("tasks",),
    "lora_sweep": ("tasks", "scalings"),
    "perplexity": ("tasks", "scalings", "checkpoints"),
    "efficiency": (),
    "generate": ("ann",),
}

# Options of the public hackathon's evaluator, and how they are said here.
FORMER = {
    "--task": "--mode valid_asr or valid_aac; submission_asr or submission_aac for a submission.csv",
    "--skip_scoring": "--mode submission_asr or submission_aac answers without scoring, valid_asr and valid_aac score",
    "--device": "--options run.device=cuda:0",
    **dict.fromkeys(
        ("--num_it", "--num-it"),
        "--mode efficiency --options evaluate.efficiency.runs=100 evaluate.efficiency.protocol=hackathon",
    ),
    "--num_warmup": "--mode efficiency --options evaluate.efficiency.warmup=10 evaluate.efficiency.protocol=hackathon",
    "--dryrun": "python train.py --dry-run checks a configuration",
}


def main() -> None:
    """Read the command line, then compare two results or do what --mode says."""
    args = parse_arguments()
    if args.compare:
        from salmonn.evaluation.compare import compare

        print(compare(*map(Path, args.compare)))
        return
    os.environ.update(slurm.environment(os.environ))
    config = load_config(args.cfg_path, args.options)
    slurm.require_whole(os.environ, joins=config.run.use_distributed)
    run_mode(args, config)


def run_mode(args: argparse.Namespace, config: DictConfig) -> None:
    """Do what --mode says. Raises UserError for bad input."""
    if args.mode == "validate_submission":
        from salmonn.evaluation.submission import validate_submission

        print(validate_submission(Path(args.csv), config.datasets, args.ann))
        return
    # a wrong name is known before torch and transformers are loaded
    chosen = named_tasks(config, args.tasks) if "tasks" in OPERANDS[args.mode] else []
    looks = config.run.use_distributed or os.environ.get("RANK", "0") == "0"  # else others have nothing to do
    if looks and os.environ.get("LOCAL_RANK", "0") == "0":
        annotations = [annotation_key(args.mode, config.datasets)] if args.mode in MODES else []
        unread = [config.model.ckpt] if args.checkpoints else []
        require_files(config, annotations, unread, "this evaluation", MINI_EVALUATES)
    tell_wait(f"{args.cfg_path}: loading PyTorch")
    with importing():
        from salmonn.evaluation import pipeline

    folder = pipeline.results_folder(config, args.mode)
    if args.mode == "table3":
        pipeline.evaluate_tasks(config, chosen, folder, others=load_tasks(config.evaluate.tasks_file))
    elif args.mode == "lora_sweep":
        from salmonn.evaluation.lora_sweep import SCALINGS, sweep

        sweep(config, chosen, args.scalings or SCALINGS, folder)
    elif args.mode == "perplexity":
        from salmonn.evaluation.perplexity import measure_perplexity, points_of

        points = points_of(config, args.checkpoints, args.scalings)
        measure_perplexity(config, chosen, points, folder)
    elif args.mode == "efficiency":
        from salmonn.evaluation.efficiency import run_efficiency

        run_efficiency(config, folder)
    elif args.mode == "generate":
        pipeline.generate_answers(config, args.ann)
    else:
        pipeline.evaluate(config, args.mode)


def parse_arguments() -> argparse.Namespace:
    """The command line. Raises UserError for operands that the mode does not take, or lacks."""
    parser = argument_parser(__doc__, default_cfg_path="configs/evaluate.yaml")
    refuse_former(FORMER, sys.argv[1:])
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--mode", choices=list(OPERANDS), help="what to do, one of those above", metavar="MODE")
    what.add_argument(
        "--compare", nargs=2, metavar=("A", "B"), help="put two results side by side: folders with a report.json"
    )
    add = parser.add_argument_group("of some modes").add_argument
    add(
        "--tasks",
        type=_names,
        default=[],
        metavar="A,B",
        help="table3, lora_sweep, perplexity: only these tasks, in this order",
    )
    add("--scalings", type=_scalings, default=[], metavar="0,2,4", help="lora_sweep, perplexity: LoRA scalings")
    add("--checkpoints", type=_names, default=[], metavar="F,G", help="perplexity: these files, not model.ckpt")
    add("--ann", default="", metavar="FILE", help="generate: annotation file to answer; validate_submission: its set")
    add("--csv", default="", metavar="FILE", help="validate_submission: the file to check")
    args = parser.parse_args()
    if not (args.mode or args.compare):
        raise UserError(f"--mode is needed: one of {', '.join(OPERANDS)} (or --compare A B); --help says what they do")
    takes = () if args.compare else OPERANDS[args.mode]
    given = [name for name in ("tasks", "scalings", "checkpoints", "ann", "csv") if getattr(args, name)]
    command = "--compare" if args.compare else f"--mode {args.mode}"
    if foreign := [f"--{name}" for name in given if name not in takes]:
        raise UserError(f"{command} takes no {', '.join(foreign)}")
    needed = {"generate": "ann", "validate_submission": "csv"}.get(args.mode)
    if needed and needed not in given:
        raise UserError(f"{command} needs --{needed} FILE")
    if args.ann and not Path(args.ann).exists():
        raise UserError(f"--ann {args.ann} does not exist{did_you_mean(args.ann, Path.is_file)}")
    return args


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"{text!r}: expected names with commas between, each once")
    return names


def _scalings(text: str) -> list[float]:
    try:
        scalings = [float(number) for number in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers with commas between, as 0,2,4") from error
    if not all(0 <= scaling < math.inf for scaling in scalings) or len(set(scalings)) < len(scalings):
        raise argparse.ArgumentTypeError(f"{text!r}: scalings are 0 or more, each once")
    return scalings


if __name__ == "__main__":
    run_cli(main)
