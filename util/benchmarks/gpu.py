"""All of `util/gpu_check.py`, as one of the benchmarks."""

import argparse
import subprocess
import sys
from collections.abc import Iterator

from salmonn.common.errors import UserError

SIZES = {"mini": "mini", "13b": "full"}  # ours, and what the script calls them


def bench_gpu(args: argparse.Namespace) -> Iterator[dict]:
    """What it prints, line by line.

    Raises UserError where it cannot run, and SystemExit with its code where not every part met its bars.
    """
    if args.size not in SIZES:
        raise UserError(f"gpu: --size {args.size}: choose from {', '.join(SIZES)}")
    command = [sys.executable, "util/gpu_check.py", "--device", args.device, "--size", SIZES[args.size]]
    command += [] if args.minutes is None else ["--minutes", f"{args.minutes:g}"]
    command += [] if args.out is None else ["--out", str(args.out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            yield {"what": line.rstrip("\n")}
    if process.returncode == 2:
        raise UserError("gpu: it did not run, see above")
    if process.returncode:
        raise SystemExit(process.returncode)
