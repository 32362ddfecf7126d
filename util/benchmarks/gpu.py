"""All of `util/gpu_check.py`, as one of the benchmarks."""

import argparse
import subprocess
import sys
from collections.abc import Iterator

from salmonn.common.errors import UserError


def bench_gpu(args: argparse.Namespace) -> Iterator[dict]:
    """What it prints, line by line. Raises UserError where it cannot run."""
    size = "mini" if args.size == "mini" else "full"
    command = [sys.executable, "util/gpu_check.py", "--device", args.device, "--size", size]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            yield {"what": line.rstrip("\n")}
    if process.returncode == 2:
        raise UserError("gpu: it did not run, see above")
