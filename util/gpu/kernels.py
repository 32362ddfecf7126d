"""What the GPU does in a training step: time by kind of kernel, the longest kernels, and how long it does nothing."""

import time
from collections import Counter
from collections.abc import Iterator

import torch
from torch.profiler import ProfilerActivity, profile

from util.benchmarks.plain_step import Step
from util.gpu.rows import Row, row

KINDS = {  # by what stands in a kernel's name; the first that fits
    "attention": ("flash", "fmha", "sdpa", "attention"),
    "matrix products": ("gemm", "nvjet", "cutlass", "xmma", "cublas", "kgemm"),
    "convolutions": ("conv", "cudnn"),
    "dropout": ("dropout",),
    "copies and casts": ("memcpy", "copy", "memset"),
    "norms and sums": ("reduce", "norm", "softmax"),
    "optimiser": ("adam", "multi_tensor"),
    "elementwise": ("elementwise", "vectorized", "index", "cat"),
}
LONGEST = 12


def kernel_rows(step: Step) -> Iterator[Row]:
    """Shares of a step's time, which its profile makes some per cent longer."""
    step()
    torch.cuda.synchronize()
    began = time.perf_counter()
    step()
    torch.cuda.synchronize()
    whole = time.perf_counter() - began
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        step()
        torch.cuda.synchronize()
    kernels: Counter[str] = Counter()
    for event in profiled.key_averages():
        kernels[event.key] += event.self_device_time_total / 1e6
    kinds: Counter[str] = Counter()
    for name, seconds in kernels.items():
        kinds[_kind(name)] += seconds
    busy = sum(kinds.values())
    yield row("   kernels, one after the other", 100 * busy / whole, "% of a step")
    for kind, seconds in kinds.most_common():
        yield row(f"   {kind}", 100 * seconds / whole, "% of a step")
    for name, seconds in kernels.most_common(LONGEST):
        yield row(f"      {name[:90]}", 100 * seconds / whole, "% of a step")


def _kind(name: str) -> str:
    return next((kind for kind, parts in KINDS.items() if any(part in name.lower() for part in parts)), "others")
