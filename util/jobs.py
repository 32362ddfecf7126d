"""Jobs of several commands: each run with its output in view, and their configs moved to another folder."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from salmonn.config.keys import known_keys
from salmonn.config.loading import load_config

# Waiting threads must not spin where cores are shared; local model folders must not be looked up online.
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def run_command(title: str, command: Sequence[str], processes: int = 1) -> tuple[float, int]:
    """Run a script of the project; returns its seconds and its exit code."""
    shown, launcher = "python", [sys.executable]
    environment = {**os.environ, **ENVIRONMENT}
    if processes > 1:
        arguments = ["--standalone", f"--nproc_per_node={processes}"]
        shown, launcher = shlex.join(["torchrun", *arguments]), [*launcher, "-m", "torch.distributed.run", *arguments]
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // processes))
    print(f"\n=== {title}\n$ {shown} {shlex.join(command)}\n", flush=True)
    started = time.monotonic()
    result = subprocess.run([*launcher, *command], env=environment, check=False)
    return round(time.monotonic() - started, 1), result.returncode


def moved(config_path: str, default_out: str, out: str) -> list[str]:
    """Options that let a config, made for the folder `default_out`, work in `out`; none where they are the same."""
    if Path(out) == Path(default_out):
        return []
    config = load_config(config_path)
    values = {key: OmegaConf.select(config, key) for key in known_keys()}
    inside = {k: v for k, v in values.items() if isinstance(v, str) and f"{v}/".startswith(f"{default_out}/")}
    return [f"{key}={out}{value.removeprefix(default_out)}" for key, value in inside.items()]
