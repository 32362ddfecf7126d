"""One process or many: what torchrun's environment says, and the few collectives we use."""

import datetime
import os
from typing import Any

import torch
import torch.distributed as dist
from omegaconf import DictConfig

from salmonn.errors import UserError

# A rank that dies or hangs ends the run after this time instead of blocking it for ever.
TIMEOUT = datetime.timedelta(minutes=30)


AMP_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def init(config: DictConfig) -> torch.device:
    """Join torchrun's process group if there is one; returns this rank's device.

    Raises UserError when `run.device` asks for a GPU that is not there.
    """
    run, quantised = config.run, config.model.low_resource or config.model.llm_quantization != "none"
    local_rank = int(os.environ.get("LOCAL_RANK", config.model.device_8bit if quantised else 0))
    if run.device.startswith("cuda"):
        if not torch.cuda.is_available():
            raise UserError(
                f"run.device = {run.device}, but this machine has no usable GPU; run.device=cpu goes without"
            )
        device = torch.device("cuda", local_rank) if run.device == "cuda" else torch.device(run.device)
        if device.index >= torch.cuda.device_count():
            raise UserError(f"{device} is asked for, but this machine has {torch.cuda.device_count()} GPUs")
        torch.cuda.set_device(device)
    else:
        device = torch.device(run.device)
    if run.use_distributed and "RANK" in os.environ and not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=run.dist_url, timeout=TIMEOUT)
    return device


def autocast(run: DictConfig, device: torch.device) -> torch.autocast:
    """Mixed precision as `run.amp` and `run.amp_dtype` say."""
    return torch.autocast(device.type, AMP_DTYPES[run.amp_dtype], enabled=run.amp)


def rank() -> int:
    """This process's number, 0 when alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_world_size() -> int:
    """Number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes files and talks to the person."""
    return rank() == 0


def barrier() -> None:
    """Wait for all ranks."""
    if dist.is_initialized():
        dist.barrier()


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Sum of a tensor over all ranks."""
    if dist.is_initialized():
        values = values.clone()
        dist.all_reduce(values)
    return values


def gather_objects(value: Any) -> list[Any]:
    """Every rank's value, in rank order, on every rank."""
    if not dist.is_initialized():
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def from_main(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def shutdown() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()
