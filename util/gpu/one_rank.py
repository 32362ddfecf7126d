"""The real `train.py` under torchrun on the miniature world: this device against the CPU, stopped and gone on with."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from salmonn.common.distributed import in_ddp
from salmonn.model import checkpoint
from salmonn.model.salmonn import SALMONN
from salmonn.training.curves import read_log
from util.benchmarks.measure import family
from util.benchmarks.sizes import build, make_batch
from util.gpu.rows import Row, Setup, largest, row
from util.mini_world.use import ROOT, make_random_world, train_options

STEPS = {"full": (10, 4), "mini": (4, 2)}  # of each of two epochs, and after how many a run is stopped
LOSS_BAR = 0.01  # bfloat16's noise
SHORT = [
    "run.batch_size_train=4", "run.log_freq=1", "run.num_workers=2", "run.save_every_steps=1",
    "run.optims.max_epoch=2", "run.optims.warmup_steps=2",
]  # fmt: skip


def rows(setup: Setup) -> Iterator[Row]:
    """Losses of both devices, the checkpoint of a run that was stopped against one that was not, DDP's gradients."""
    iterations, stop_after = STEPS[setup.size]
    length = f"run.iters_per_epoch={iterations}"
    half = [length, f"run.device={setup.device}", "run.amp=True", "run.amp_dtype=bf16"]
    on_cpu = [length, "run.device=cpu", "run.amp=False"]
    runs = [("cpu", on_cpu, 0), ("whole", half, 0), ("stopped", half, stop_after)]
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        make_random_world(home / "world", train_clips=60, test_clips=20)
        with ThreadPoolExecutor() as pool:  # they are compared, not timed
            list(pool.map(lambda of_run: train(home, *of_run), runs))
        backend = "NCCL" if setup.device == "cuda" else "gloo"
        yield row("train.py under torchrun, one rank", f"CPU, gloo, float32; {setup.device}, {backend}, bf16")
        yield from _loss_rows(steps_of(home, "cpu"), steps_of(home, "whole"))
        stopped = steps_of(home, "stopped")
        train(home, "stopped", half)
        yield from resume_rows(steps_of(home, "whole"), stopped, steps_of(home, "stopped"))
        difference, where = largest_difference(*(last_parameters(home, name) for name in ("whole", "stopped")))
        yield row("   largest difference of a parameter", difference, where, "bit for bit", difference == 0.0)
    yield from _ddp_rows(torch.device(setup.device))


def _loss_rows(cpu: list[Row], here: list[Row]) -> Iterator[Row]:
    apart = largest(abs(b["loss"] / a["loss"] - 1) for a, b in zip(cpu, here, strict=True))
    what = f"   losses of {len(cpu)} steps, the largest difference"
    yield row(what, 100 * apart, "% apart", "1 %", apart <= LOSS_BAR)
    yield row("   the last loss, CPU and here", f"{cpu[-1]['loss']:.4f}, {here[-1]['loss']:.4f}")


def resume_rows(whole: list[Row], stopped: list[Row], gone_on: list[Row]) -> Iterator[Row]:
    """Whether a run was stopped before its end, went on with the next step, and lost as one that was not stopped.

    Lines of its log that are not as they were when it stopped were written, and their steps taken, anew.
    """
    at = stopped[-1]["step"]
    yield row("   stopped by SIGTERM after step", at, "of the run", "before its end", at < whole[-1]["step"])
    first = next((line["step"] for line in gone_on if line not in stopped), "none")
    yield row("   the first step once it goes on", first, "", f"{at + 1}", first == at + 1)
    losses, wanted = ({line["step"]: line["loss"] for line in lines} for lines in (gone_on, whole))
    other = next((step for step in sorted(losses.keys() | wanted) if losses.get(step) != wanted.get(step)), "none")
    yield row("   the first step with another loss than of the whole run", other, "", "none", other == "none")


def train(home: Path, name: str, options: list[str], stop_after: int = 0) -> None:
    """Train in a folder; with `stop_after` its rank gets a SIGTERM once that many steps are written down.

    Raises RuntimeError unless it ends well, which a run that was stopped does, too.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1", "train.py"]
    command += ["--cfg-path", "configs/mini/stage1.yaml", "--options"]
    command += [*train_options(home / "world", home / name), *SHORT, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    while process.poll() is None:
        if stop_after and len(steps_of(home, name)) >= stop_after:
            for rank in family(process.pid)[1:]:  # torchrun itself would end with 1, whatever its rank does
                os.kill(rank, signal.SIGTERM)
            break
        time.sleep(0.05)
    if process.wait():
        raise RuntimeError(f"train.py ended with {process.returncode}: {' '.join(command)}")


def steps_of(home: Path, name: str) -> list[dict[str, Any]]:
    """The lines of a run's log that are about steps; none where there is no log yet."""
    path = home / name / "stage1/log.jsonl"
    return [line for line in read_log(path) if line["kind"] == "train"] if path.exists() else []


def last_parameters(home: Path, name: str) -> dict[str, torch.Tensor]:
    """Those of a run's last checkpoint."""
    return checkpoint.read(home / name / "stage1/checkpoint_last.pth")["model"]


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> tuple[float, str]:
    """Of two sets of parameters, and which; NaN counts as the largest."""
    names = list(one)
    differences = [(one[name].float() - other[name].float()).abs().max().item() for name in names]
    at = int(np.argmax(differences))
    return differences[at], f"({names[at]})"


def _ddp_rows(device: torch.device) -> Iterator[Row]:
    """DDP over one rank, accumulated: against the model alone."""
    model = build("mini", device).eval()
    with one_rank_group(device):
        gradients = [_gradients(model, model), _gradients(model, in_ddp(model, model.device))]
    apart = largest((a - b).abs().max().item() for a, b in zip(*gradients, strict=True))
    yield row("DDP of one rank, two micro-batches: largest difference of a gradient", apart, "", "1e-6", apart <= 1e-6)


def _gradients(model: SALMONN, of: nn.Module) -> list[torch.Tensor]:
    """After two micro-batches through the model, or through DDP around it."""
    samples = make_batch(model, 2)
    model.zero_grad(set_to_none=True)
    with of.no_sync() if isinstance(of, DistributedDataParallel) else nullcontext():
        of(samples)["loss"].backward()
    of(samples)["loss"].backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@contextmanager
def one_rank_group(device: torch.device) -> Iterator[None]:
    """A group of this process alone, by the backend of a training on this device; DDP must be gone at its end."""
    store = dist.TCPStore("127.0.0.1", 0, 1, is_master=True)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()
