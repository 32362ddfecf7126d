"""Where a process computes: its device and precision, transfers without waiting, random seeds, time, peak memory."""

import contextlib
import logging
import os
import random
import resource
import time
from functools import cache

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from salmonn.common.errors import UserError
from salmonn.common.gpu import no_gpu

logger = logging.getLogger(__name__)

IN_FLOAT32 = "run.amp=False model.llm_dtype=float32 model.encoder_dtype=float32"
AMP_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor [...] on the device; a GPU takes it out of pinned memory in its own time, while the host goes on.

    What comes to the host is waited for.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type != "cpu")


def device_of(config: DictConfig) -> torch.device:
    """This process's device; says where its processor is slow at what is asked of it.

    Raises UserError when `run.device` asks for a GPU that is not there.
    """
    run, model = config.run, config.model
    quantised = model.low_resource or model.llm_quantization != "none"  # as config/loading.py says, which is above
    local_rank = int(os.environ.get("LOCAL_RANK", model.device_8bit if quantised else 0))
    if not run.device.startswith("cuda"):
        if run.device == "cpu" and _wants_bfloat16(config) and not computes_bfloat16():
            _tell_slow_bfloat16()
        return torch.device(run.device)
    if not torch.cuda.is_available():
        raise no_gpu(run.device)
    device = torch.device("cuda", local_rank) if run.device == "cuda" else torch.device(run.device)
    if device.index >= torch.cuda.device_count():
        raise UserError(f"{device} is asked for, but this machine has {torch.cuda.device_count()} GPUs")
    return device


def computes_bfloat16() -> bool:
    """Whether the processor has units for bfloat16, on x86 or ARM."""
    return any(torch.cpu.get_capabilities().get(units, False) for units in ("amx_bf16", "avx512_bf16", "bf16"))


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device has units for bfloat16: older cards only emulate it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and computes_bfloat16()


@cache
def _tell_slow_bfloat16() -> None:
    logger.warning("this processor computes several times slower in bfloat16 than with %s", IN_FLOAT32)


def _wants_bfloat16(config: DictConfig) -> bool:
    model, run = config.model, config.run
    return (run.amp and run.amp_dtype == "bf16") or "bfloat16" in (model.llm_dtype, model.encoder_dtype)


def autocast(run: DictConfig, device: torch.device) -> torch.autocast:
    """Mixed precision as `run.amp` and `run.amp_dtype` say."""
    return torch.autocast(device.type, AMP_DTYPES[run.amp_dtype], enabled=run.amp)


def is_autocast(device: torch.device) -> bool:
    """Whether mixed precision is on for what runs on this device."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def without_autocast(device: torch.device) -> torch.autocast:
    """What runs on this device inside computes in the precision of its operands."""
    return torch.autocast(device.type, enabled=False)


def own_precision(module: nn.Module) -> contextlib.AbstractContextManager:
    """No autocast around a frozen module in half precision: it would go to float32 and back at each norm."""
    weights = [*module.parameters()]
    if any(weight.dtype not in AMP_DTYPES.values() for weight in weights):
        return contextlib.nullcontext()
    return without_autocast(weights[0].device)


def hold_rounded(module: nn.Module, dtype: torch.dtype) -> None:
    """Round a frozen module's matrices once, as autocast would for each product: same results, half their memory.

    From then on it runs under autocast in this precision only. What autocast computes in float32 stays as it is.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d) and part.weight.dtype == torch.float32:
            part.to(dtype)


def now(device: torch.device) -> float:
    """Seconds on a clock, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak_memory(device: torch.device) -> int:
    """Bytes that this process has needed at most: of the GPU's memory, or of the machine's on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def seed_step(seed: int, step: int, rank: int, part: int = 0) -> None:
    """Make all randomness of a step (dropout, prompts) depend on these alone: nothing to save and restore.

    Part 0 of a step draws what the whole step draws.
    """
    seed_everything(int(np.random.SeedSequence((seed, step, rank, part)).generate_state(1)[0]))


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
