"""Draw where the model looks while it answers a question about a clip.

  python util/plot_attention.py --audio clip.wav --task asr
  python util/plot_attention.py --audio clip.wav --prompt "Who speaks?" --out who.png
  python util/plot_attention.py --cfg-path configs/mini/decode.yaml --audio clip.wav --task QA --question "What colour?"

Three panels on one axis of time: the log-mel spectrogram; where within its window the Q-Former looks (mean over
its heads, queries and layers); and which windows the language model looks at before it writes each word (mean over
the quarter of all its heads that attend most to the audio; each row sums to 1). Where words are not parted by spaces,
as in Chinese and Japanese, each token has a row. The clip is cut to what the model hears.
"""

import os
import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from salmonn.chat import require_audio
from salmonn.common.charts import png_path, write_png
from salmonn.common.cli import argument_parser, run_cli, tell_wait
from salmonn.common.errors import UserError
from salmonn.common.imports import importing
from salmonn.common.logging import setup_logging
from salmonn.config.loading import load_config


def main() -> None:
    """Answer the question, and write the picture of the attention."""
    args = parse_arguments()
    config = load_config(args.cfg_path, args.options)
    require_audio([args.audio])  # a wrong path is known before the model is loaded
    tell_wait(f"loading {config.model.ckpt or config.model.llama_path}")
    with importing():
        from salmonn.common.device import autocast
        from salmonn.inference.engine import InferenceEngine
        from util.attention_picture import draw, look

    setup_logging()
    engine = InferenceEngine.load(config)
    question = engine.task_question(args.task, args.question) if args.task else engine.question(args.prompt)
    with autocast(config.run, engine.model.device):
        attention = look(engine, args.audio, question)
    title = f"{Path(args.audio).name}: {args.question or args.prompt or args.task}"
    write_png(draw(attention, title), args.out)
    print(f"{attention.answer}\n{args.out}")


def parse_arguments() -> Namespace:
    """The command line."""
    parser = argument_parser(__doc__, default_cfg_path="configs/decode.yaml")
    add = parser.add_argument
    add("--audio", required=True, metavar="FILE", help="clip")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--prompt", default="", metavar="TEXT", help="question in your own words")
    asked.add_argument("--task", default="", metavar="NAME", help="this task's test prompt")
    add("--question", default="", metavar="TEXT", help="fills {} in the prompt of --task")
    add(
        "--out",
        type=png_path,
        default=Path("attention.png"),
        metavar="FILE",
        help="picture, .png (default: %(default)s)",
    )
    args = parser.parse_args()
    if args.question and not args.task:
        raise UserError("--question fills the prompt of --task; a question of your own is --prompt")
    return args


if __name__ == "__main__":
    run_cli(main)
