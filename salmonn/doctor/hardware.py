"""Does what the model computes with work here: GPUs, fused attention, quantised layers; each is tried out."""

import math
import subprocess
from collections.abc import Iterator
from typing import TYPE_CHECKING

from salmonn.common.errors import BROKEN, reason
from salmonn.common.files import GB
from salmonn.common.shared_memory import shared_memory
from salmonn.doctor.findings import NOTE, OK, WRONG, Finding

if TYPE_CHECKING:
    import torch


def check_gpus() -> Iterator[Finding]:
    """Every GPU that torch can use, or why there is none."""
    import torch

    driver = nvidia_driver()
    built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is a build without CUDA"
    if not torch.cuda.is_available():
        says = f"none that torch can use ({f'driver {driver} is there, ' if driver else 'no NVIDIA driver, '}{built})"
        yield Finding(
            NOTE, "GPU", says, "the published sizes are too slow here; small models run on the CPU (run.device=cpu)"
        )
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        gpu = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        with torch.cuda.device(index):
            bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        says = f"{gpu.name}, {total / GB:.1f} GB ({free / GB:.1f} free), compute capability {gpu.major}.{gpu.minor}"
        says += f", bf16 {'yes' if bf16 else 'no'}, driver {driver or 'unknown'}, {built}"
        yield Finding(OK if bf16 else NOTE, f"GPU {index}", says, "run.amp_dtype=bf16; fp16 as published works")


def nvidia_driver() -> str:
    """Version of the driver, "" without one."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return ""
    return lines[0] if lines else ""


def _device() -> "tuple[torch.device, torch.dtype]":
    """Where the model would run, and in which precision."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda"), torch.float16
    return torch.device("cpu"), torch.float32


def check_shared_memory() -> Iterator[Finding]:
    """What /dev/shm has left: containers have little, and GPUs that train together need it."""
    import torch

    there, problem = shared_memory(torch.cuda.device_count())
    yield Finding(NOTE if problem else OK, "/dev/shm", problem or there, "training on several GPUs may not start")


def check_attention() -> Iterator[Finding]:
    """Fused attention is run and compared with the formula; which of torch's ways work here."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention as attend

    device, dtype = _device()
    x = torch.randn(1, 2, 16, 64, generator=torch.Generator().manual_seed(0)).to(device, dtype)  # [B, H, L, D]
    later = torch.ones(16, 16, dtype=torch.bool, device=device).triu(1)
    scores = x.float() @ x.float().transpose(-1, -2) / math.sqrt(64)  # [B, H, L, L]
    expected = scores.masked_fill(later, -math.inf).softmax(dim=-1) @ x.float()
    error = (attend(x, x, x, is_causal=True).float() - expected).abs().max().item()
    works = []
    for name, backend in SDPBackend.__members__.items():
        try:
            with sdpa_kernel([backend]):
                attend(x, x, x, is_causal=True)
        except RuntimeError:  # not for this device, or not built in
            continue
        works.append(name.lower().removesuffix("_attention"))
    says = f"scaled_dot_product_attention on {device} in {dtype}: {', '.join(works)}; largest error {error:.0e}"
    if error > 0.02 or not works:
        yield Finding(WRONG, "attention", says, "wrong results: another torch or driver is needed")
    elif device.type == "cuda" and works == ["math"]:
        yield Finding(NOTE, "attention", says, "time and memory: no fused attention works on this GPU")
    else:
        yield Finding(OK, "attention", says)


def check_quantised(state: str = NOTE) -> Iterator[Finding]:
    """An 8-bit and an nf4 layer are made and multiplied with; `state` of one that fails."""
    import torch
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    device, dtype = _device()
    torch.manual_seed(0)
    plain = torch.nn.Linear(64, 64, bias=False, dtype=dtype)
    x = torch.randn(4, 64, dtype=dtype)
    expected = x.float() @ plain.weight.float().T
    layers = (
        ("8bit", 0.05, lambda: Linear8bitLt(64, 64, bias=False, has_fp16_weights=False)),
        ("nf4", 0.25, lambda: Linear4bit(64, 64, bias=False, quant_type="nf4", compute_dtype=dtype)),
    )
    for name, allowed, make in layers:
        try:
            layer = make()
            layer.load_state_dict(plain.state_dict())
            with torch.no_grad():
                y = layer.to(device)(x.to(device)).float().cpu()  # weights are quantised on their way
        except BROKEN as error:
            yield Finding(state, name, f"on {device}: {reason(error)}", f"model.llm_quantization={name}")
            continue
        difference = ((y - expected).norm() / expected.norm()).item()
        says = f"bitsandbytes on {device}: relative error of a layer {difference:.3f} (up to {allowed:g} is usual)"
        yield Finding(OK if difference <= allowed else state, name, says, f"model.llm_quantization={name}")
