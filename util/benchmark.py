"""Measure our way against the published way, side by side in one run.

  python util/benchmark.py load        clips per second and core, from file to batch and features (10 s and 180 s clips)
  python util/benchmark.py inspector   readiness of 2.4 million entries (takes some minutes)
  python util/benchmark.py train       a training step: speed, where the time goes, memory, share of the matmul peak
  python util/benchmark.py memory      predicted memory of a training step on a GPU by part, and the largest batch
  python util/benchmark.py scale       samples/s and memory on 1 to 64 cards, predicted from one's step; a check by gloo
  python util/benchmark.py stage0      what stage 0 costs beside stage 1 at 13B, on paper; with --tflops in hours
  python util/benchmark.py generate    answers of a batch against one by one and the published way: speed, same tokens
  python util/benchmark.py attention   eager attention against SDPA in one LLaMA layer: training short rows, decoding
  python util/benchmark.py batches     steps of a run cut by tokens (run.batch_tokens) against by clips: speed, padding
  python util/benchmark.py start       seconds until a command shows something and until its end (make quickstart first)
  python util/benchmark.py gpu         all that a GPU can tell (util/gpu_check.py): with --device cuda --size 13b there

  python util/benchmark.py memory --cfg-path configs/stage1.yaml --gpu-gb 32
  python util/benchmark.py batches --cfg-path configs/small/stage1.yaml --budgets 500 1000

Times are medians of alternated repeats, on a CPU of the CPU seconds of all threads: with OMP_NUM_THREADS=1 they are
what one core takes, whoever else is on it. A ratio above 1 means that ours is better.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from salmonn.common.cli import above_zero, at_least_one, command_parser, run_cli, tell_wait  # noqa: E402

if __name__ == "__main__":
    tell_wait("loading PyTorch")  # what is imported below takes seconds

import torch  # noqa: E402

from salmonn.common.errors import UserError  # noqa: E402
from salmonn.common.logging import setup_logging  # noqa: E402
from salmonn.config.checks import CHOICES  # noqa: E402
from util.benchmarks.annotation_files import bench_inspector  # noqa: E402
from util.benchmarks.attention import bench_attention  # noqa: E402
from util.benchmarks.big_file import N_ENTRIES  # noqa: E402
from util.benchmarks.generation import BEAMS, bench_generate  # noqa: E402
from util.benchmarks.generation import SIDES as ANSWER_SIDES  # noqa: E402
from util.benchmarks.gpu import bench_gpu  # noqa: E402
from util.benchmarks.loading import bench_load  # noqa: E402
from util.benchmarks.measure import keep_freed_memory  # noqa: E402
from util.benchmarks.memory import bench_memory  # noqa: E402
from util.benchmarks.scale import CARDS, LINK, NODE_LINK, bench_scale  # noqa: E402
from util.benchmarks.sizes import SIZES  # noqa: E402
from util.benchmarks.stage0 import bench_stage0  # noqa: E402
from util.benchmarks.starts import bench_start  # noqa: E402
from util.benchmarks.token_batches import bench_batches  # noqa: E402
from util.benchmarks.training import SIDES as TRAIN_SIDES  # noqa: E402
from util.benchmarks.training import bench_train  # noqa: E402
from util.jobs import seen_from_root  # noqa: E402

BENCHMARKS = {
    "load": bench_load,
    "inspector": bench_inspector,
    "train": bench_train,
    "memory": bench_memory,
    "scale": bench_scale,
    "stage0": bench_stage0,
    "generate": bench_generate,
    "attention": bench_attention,
    "batches": bench_batches,
    "start": bench_start,
    "gpu": bench_gpu,
}
DEFAULT = ("load",)
QUANTISATIONS = CHOICES["model.llm_quantization"]
Add = Callable[..., object]  # an option, to a parser or a group of its options
ON_THE_DEVICE = {"train", "generate", "attention"}  # the others look for themselves, or only predict
OF_A_BATCH = ("train", "memory", "scale", "stage0")  # the others have none, or several of their own


def main() -> None:
    """Run the benchmarks that the command line names and print one table."""
    args = parse_arguments()
    if args.device == "cuda" and ON_THE_DEVICE & set(args.what) and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch finds no GPU here")
    setup_logging()
    os.chdir(ROOT)
    if not args.fresh_memory:
        keep_freed_memory()
    machine = f"{_processor()}, {os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads"
    print(machine)
    rows = []
    try:
        for name in args.what or DEFAULT:
            for batch in (args.batch if name in OF_A_BATCH else None) or [None]:
                for row in BENCHMARKS[name](argparse.Namespace(**vars(args) | {"batch": batch})):
                    rows.append(row)
                    print(text_line(row), flush=True)
    finally:  # what there is of a run that fails or misses its bars, too
        if args.json:
            args.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """The command line; exits with its usage for a benchmark that does not exist and numbers that cannot be."""
    parser = command_parser(__doc__)
    _of_all(parser.add_argument)
    _of_models(parser.add_argument_group("of train, memory, scale, generate, attention, batches").add_argument)
    _of_scale(parser.add_argument_group("of scale").add_argument)
    args = parser.parse_args()
    if unknown := set(args.what) - BENCHMARKS.keys():
        parser.error(f"{', '.join(sorted(unknown))}: choose from {', '.join(BENCHMARKS)}")
    return args


def _of_all(add: Add) -> None:
    count = partial(add, type=at_least_one, metavar="N")
    add("what", nargs="*", metavar="NAME", help=f"one or several of those above (default: {' '.join(DEFAULT)})")
    count("--repeats", default=3, help="timed repeats (default 3)")
    add("--json", type=seen_from_root, metavar="FILE", help="write the rows to FILE, too")
    add(
        "--fresh-memory",
        action="store_true",
        help="on a CPU give freed memory back to the system at once, as a run does; fetching it anew then counts",
    )
    lengths = {"nargs": "+", "default": [10.0, 180.0], "metavar": "S"}
    add("--seconds", type=above_zero, **lengths, help="load: lengths of the clips (default: 10 180)")
    count("--entries", default=N_ENTRIES, help="inspector: size of the file (default %(default)s)")
    add("--minutes", type=above_zero, metavar="M", help="gpu: time for all of it (default 8)")
    add("--out", type=seen_from_root, metavar="DIR", help="gpu: results (default output/gpu_check)")


def _of_models(add: Add) -> None:
    count = partial(add, type=at_least_one, metavar="N")
    add(
        "--size",
        choices=SIZES,
        default="mini",
        help="random weights of this size (default mini; gpu: mini or 13b; memory, scale: of no use with --cfg-path)",
    )
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where they, and gpu, run (default cpu)")
    add(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="frozen weights and autocast; train on a CPU also tells the published step in float32 (default float32)",
    )
    add("--quant", choices=QUANTISATIONS, default="none", help="how the LLM is quantised (default none)")
    encoders = "train: our encoders' weights; generate: those of all sides (default: as --dtype)"
    add("--encoder-dtype", choices=("float32", "bfloat16"), help=encoders)
    attention = "train, generate: ours with this model.llm_attention (default auto)"
    add("--attention", choices=CHOICES["model.llm_attention"], default="auto", help=attention)
    sides = "train, generate: measure against these alone: plain (the published way), sdpa (it with SDPA), alone"
    sides += " (generate: clips one by one), float32 (train in bfloat16 on a CPU: the published way in float32)"
    add("--sides", nargs="+", choices=sorted(TRAIN_SIDES | ANSWER_SIDES), metavar="SIDE", help=sides)
    add("--recompute", action="store_true", help="train, scale: ours with model.gradient_checkpointing=True")
    silence = "train: ours with model.only_filled_windows=True and model.whisper_silence=S"
    add("--whisper-silence", type=float, metavar="S", help=silence)
    clips = "train, memory, scale, stage0: clips, in turn (default 4; scale with --cfg-path, stage0: the run's)"
    count("--batch", nargs="+", help=clips)
    count("--batches", nargs="+", default=[1, 8, 32], help="generate: clips per batch (default 1 8 32)")
    count("--beams", nargs="+", default=BEAMS, help="generate: beams of the search, 1 is greedy (default 1 4)")
    count("--tokens", default=32, help="generate: length of all answers (default 32)")
    run = "batches, memory, scale, stage0 (default configs/fast/stage0.yaml): of a run with this configuration"
    add("--cfg-path", type=seen_from_root, metavar="FILE", help=run)
    add("--options", nargs="+", default=[], metavar="KEY=VALUE", help="set keys of that configuration")
    budgets = "batches: tokens of a micro-batch (default 1000 2000 4000)"
    count("--budgets", nargs="+", default=[1000, 2000, 4000], help=budgets)
    add("--tflops", type=above_zero, metavar="N", help="stage0: 10^12 operations/s that a card reaches")
    gigabytes = "memory, scale: of the GPU, in 10^9 bytes (default 32)"
    add("--gpu-gb", type=above_zero, default=32.0, metavar="GB", help=gigabytes)
    count(
        "--answer-tokens",
        help="memory, scale, stage0: length of each answer (default: the most, model.max_txt_len; stage0: 45)",
    )


def _of_scale(add: Add) -> None:
    count, seconds = (partial(add, type=of, metavar=name) for of, name in ((at_least_one, "N"), (above_zero, "S")))
    count("--cards", nargs="+", default=CARDS, help="how many (default 1 4 8 64)")
    seconds("--step-seconds", help="of one batch on one card (default: measured)")
    fixed = "of that, what is done once however many batches make a step (default 0)"
    seconds("--fixed-seconds", default=0.0, help=fixed)
    count("--accumulate", help="batches of a step (default 1, or the configuration's)")
    add("--shard-llm", action="store_true", help="with run.shard_llm=True")
    link = partial(add, type=above_zero, nargs=2, metavar=("GB/S", "US"))
    for name, default, where in (("--link", LINK, "cards of a node"), ("--node-link", NODE_LINK, "nodes of 8 cards")):
        assumed = f"speed and latency between {where} (default {default[0]:g} {default[1]:g}, assumed)"
        link(name, default=default, help=assumed)


def text_line(row: dict) -> str:
    """One line of the table."""
    what = f"{row['what']:58}"
    if "value" in row:
        return f"{what}{row['value']:10.{0 if isinstance(row['value'], int) else 1}f} {row['unit']}"
    if row.keys() == {"what"}:
        return row["what"]
    if "columns" in row:
        return f"{row['what']:44}{''.join(f'{name:>10}' for name in row['columns'])}"
    if values := row.get("gb") or row.get("numbers"):
        return f"{row['what']:44}{''.join(f'{value:10.2f}' for value in values.values())}"
    if "measured" in row:
        unit = row.get("unit", "GB")
        verdict = f"{row['ratio']:.2f}x" if "ratio" in row else f"{100 * row['deviation']:+.1f} %"
        return f"{what}predicted {row['predicted']:8.3f} {unit}  measured {row['measured']:8.3f} {unit}  {verdict}"
    if "plain" not in row:
        value = f"{row['seconds']:.3f} s" if "seconds" in row else f"{row['mb']:.1f} MB"
        return f"{what}{value:>12}"
    scale, unit, digits = (1, row["unit"], 4) if "unit" in row else (1000, "ms", 1)
    sides = zip(row.get("sides", ("ours", "plain")), (row["ours"], row["plain"]), strict=True)
    values = "  ".join(f"{name} {scale * value:9.{digits}f} {unit}" for name, value in sides)
    verdict = f"{row['ratio']:7.2f}x" if "ratio" in row else f"{100 * row['difference']:.5f} % apart"
    speeds = {"clips_per_second": "clips/s", "tokens_per_second": "tokens/s"}
    speed = "".join(f"  {row[key]:.1f} {name}" for key, name in speeds.items() if key in row)
    same = f"  same ids: {row['same']} of {row['of']}" if "same" in row else ""
    return f"{what}{values}  {verdict}{speed}{same}"


def _processor() -> str:
    """The processor's name where Linux tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    run_cli(main)
