"""What the device does in a training step: time by kind of kernel, the longest ones, how long it does nothing."""

import re
from collections import Counter
from collections.abc import Iterator

import torch
from torch.profiler import ProfilerActivity, profile

from salmonn.common.device import now
from util.benchmarks.plain_step import Step
from util.gpu.rows import Row, row

# By what stands in a kernel's name; the first that fits. Libraries name the products inside attention and convolutions
# "gemm", too, and many kernels "vectorized".
KINDS = {
    "between GPUs": r"nccl",
    "attention": r"flash|fmha|sdpa|attention",
    "convolutions": r"conv(olution|_|\dd)|fprop|dgrad|wgrad|cudnn|im2col|col2im|nchwtonhwc|nhwctonchw",
    "matrix products": r"gemm|gemv|nvjet|cutlass|xmma|cublas|aten::(add|b|baddb)?mm$",
    "quantisation": r"quant",
    "dropout": r"dropout",
    "copies and casts": r"memcpy|memset|copy",
    "optimiser": r"adam|multi_tensor|foreach",
    "norms and sums": r"reduce|norm|softmax|aten::sum",
    "spectra": r"fft",
    "elementwise": r"elementwise|vectorized|index(_|select|func)|gather|scatter|aten::(mul|add|silu|gelu)",
}
LONGEST = 12


def kernel_rows(what: str, step: Step, device: torch.device) -> Iterator[Row]:
    """Shares of a step's time, which its profile makes some per cent longer; of a CPU those of torch's operations."""
    on_gpu = device.type == "cuda"
    began = now(device)
    step()
    whole = now(device) - began
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiled:
        step()
        now(device)
    kernels: Counter[str] = Counter()
    for event in profiled.key_averages():
        kernels[event.key] += (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6
    kinds: Counter[str] = Counter()
    for name, seconds in kernels.items():
        kinds[kind_of(name)] += seconds
    yield row(f"{what}: kernels, one after the other", 100 * sum(kinds.values()) / whole, "% of a step")
    for kind, seconds in kinds.most_common():
        yield row(f"   {kind}", 100 * seconds / whole, "% of a step")
    for name, seconds in kernels.most_common(LONGEST if on_gpu else 0):
        yield row(f"      {name[:90]}", 100 * seconds / whole, "% of a step")


def kind_of(name: str) -> str:
    """What a kernel does, by its name."""
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name, re.IGNORECASE)), "others")
