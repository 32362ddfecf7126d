"""Evaluate a SALMONN: scores where the truth is known, a submission file where it is not.

  python evaluate.py --mode valid_asr --options model.ckpt=output/stage1/checkpoint_best.pth
  torchrun --nproc_per_node=4 evaluate.py --mode valid_aac

Modes:
  table3           every task of evaluate.tasks_file whose set is there, or --tasks A,B: one page beside the paper
  valid_asr        word error rate                            set: datasets.valid_ann_path_asr
  valid_aac        CIDEr-D, ROUGE-L, exact match              set: datasets.valid_ann_path_aac
  submission_asr   submission.csv with testset_id,text        set: datasets.test_ann_path_asr
  submission_aac   the same for captions                      set: datasets.test_ann_path_aac
A mode whose own set is empty uses datasets.test_ann_path.

Results: <evaluate.results_dir>/<evaluate.name, else the mode>/ with report.md, report.json (with a card
of all that the result depends on) and predictions.jsonl. Killed, the same command goes on: what was
answered under the same card is not asked again. evaluate.shuffled_control=true answers once more with the audio swapped
between clips: a model that listens scores far worse then.
"""

import os

from salmonn import slurm
from salmonn.config import argument_parser, load_config
from salmonn.errors import UserError, run_cli
from salmonn.evaluation.tasks import MODES


def main() -> None:
    parser = argument_parser(__doc__, default_cfg_path="configs/evaluate.yaml")
    parser.add_argument("--mode", required=True, choices=["table3", *MODES], help="what to evaluate")
    parser.add_argument("--tasks", default="", metavar="A,B", help="of table3: only these, in this order")
    args = parser.parse_args()
    os.environ.update(slurm.environment(os.environ))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait leave shared cores to others
    config = load_config(args.cfg_path, args.options)

    from salmonn.evaluation.runner import evaluate  # torch and transformers load only now

    if args.tasks and args.mode != "table3":
        raise UserError(f"--tasks is for --mode table3, not for {args.mode}")
    evaluate(config, args.mode, [name for name in args.tasks.split(",") if name])


if __name__ == "__main__":
    run_cli(main)
