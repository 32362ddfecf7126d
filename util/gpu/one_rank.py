"""The real `train.py` under torchrun on the miniature world: this device against the CPU, stopped and gone on with."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from salmonn.model import checkpoint
from util.benchmarks.sizes import build, make_batch
from util.gpu.rows import Row, Setup, row

ROOT = Path(__file__).resolve().parent.parent.parent
ITERATIONS, EPOCHS, STOP_AFTER = 10, 2, 4
LOSS_BAR = 0.01  # bfloat16's noise
WORLD = ["--train-clips", "60", "--test-clips", "20", "--broken", "0", "--pretrain-scale", "0", "--seed", "0"]
SHORT = ["run.batch_size_train=4", "run.log_freq=1", "run.num_workers=2", "run.save_every_steps=1"]


def rows(setup: Setup) -> Iterator[Row]:
    """Losses of both devices, the checkpoint of a run that was stopped against one that was not, DDP's gradients."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        subprocess.run(
            [sys.executable, "util/make_mini_world.py", "--out", str(home / "world"), *WORLD], cwd=ROOT, check=True
        )
        half = [f"run.device={setup.device}", "run.amp=True", "run.amp_dtype=bf16"]
        runs = [
            ("cpu", ["run.device=cpu", "run.amp=False"], 0),
            ("whole", half, 0),
            ("stopped", half, STOP_AFTER),
        ]
        with ThreadPoolExecutor() as pool:  # they are compared, not timed
            list(pool.map(lambda of_run: train(home, *of_run), runs))
        backend = "NCCL" if setup.device == "cuda" else "gloo"
        yield row("train.py under torchrun, one rank", f"CPU, gloo, float32; {setup.device}, {backend}, bf16")
        losses = [[line["loss"] for line in log(home, name) if line["kind"] == "train"] for name in ("cpu", "whole")]
        apart = max(abs(ours / cpu - 1) for cpu, ours in zip(*losses, strict=True))
        yield row(
            f"   losses of {len(losses[0])} steps, the largest difference",
            100 * apart,
            "% apart",
            "1 %",
            apart <= LOSS_BAR,
        )
        yield row("   the last loss, CPU and here", f"{losses[0][-1]:.4f}, {losses[1][-1]:.4f}")
        steps = [line["step"] for line in log(home, "stopped") if line["kind"] == "train"]
        yield row(
            "   stopped by SIGTERM after step",
            steps[-1],
            "of the run",
            "before its end",
            steps[-1] < ITERATIONS * EPOCHS,
        )
        train(home, "stopped", half)
        difference, where = largest_difference(home, "whole", "stopped")
        yield row(
            "   gone on with: largest difference of a parameter", difference, where, "bit for bit", difference == 0.0
        )
    yield from _ddp_rows(torch.device(setup.device))


def train(home: Path, name: str, options: list[str], stop_after: int = 0) -> None:
    """Train in a folder; with `stop_after` it gets a SIGTERM once that many steps are written down."""
    world, output = home / "world", home / name
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1", "train.py"]
    command += ["--cfg-path", "configs/mini/stage1.yaml", "--options"]
    command += [
        f"model.{key}={world}/weights/{path}"
        for key, path in (("llama_path", "llama"), ("whisper_path", "whisper"), ("beats_path", "beats.pt"))
    ]
    command += [f"datasets.{split}_ann_path={world}/ann/stage1_{split}.json" for split in ("train", "valid")]
    command += [f"datasets.prefix={world}/audio", f"run.output_dir={output}", *SHORT, *options]
    command += [f"run.iters_per_epoch={ITERATIONS}", f"run.optims.max_epoch={EPOCHS}", "run.optims.warmup_steps=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    while process.poll() is None:
        if stop_after and len(log(home, name)) >= stop_after:
            process.send_signal(signal.SIGTERM)
            break
        time.sleep(0.05)
    if process.wait() and not stop_after:
        raise RuntimeError(f"train.py ended with {process.returncode}: {' '.join(command)}")


def log(home: Path, name: str) -> list[dict]:
    """The lines of a run's log."""
    path = home / name / "stage1/log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def largest_difference(home: Path, one: str, other: str) -> tuple[float, str]:
    """Of the last checkpoints' parameters, and which."""
    first, second = (checkpoint.read(home / name / "stage1/checkpoint_last.pth")["model"] for name in (one, other))
    return max(((first[key].float() - second[key].float()).abs().max().item(), f"({key})") for key in first)


def _ddp_rows(device: torch.device) -> Iterator[Row]:
    """DDP over one rank, gradients as views of its buckets, accumulated: against the model alone."""
    store = dist.TCPStore("127.0.0.1", 0, 1, is_master=True)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=store, rank=0, world_size=1)
    model = build("mini", device).eval()
    samples = make_batch(model, 2)
    wrapped = DistributedDataParallel(
        model, device_ids=[0] if device.type == "cuda" else None, broadcast_buffers=False, gradient_as_bucket_view=True
    )
    gradients = []
    for of in (model, wrapped):
        model.zero_grad(set_to_none=True)
        with wrapped.no_sync():
            of(samples)["loss"].backward()
        of(samples)["loss"].backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
    apart = max((a - b).abs().max().item() for a, b in zip(*gradients, strict=True))
    yield row("DDP of one rank, two micro-batches: largest difference of a gradient", apart, "", "1e-6", apart <= 1e-6)
    del wrapped  # its reducer goes before its group
    dist.destroy_process_group()
