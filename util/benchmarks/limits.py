"""What a training sample costs at least: operations and bytes, and what datasheets make of them. All of it counted."""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch

from salmonn.common.files import GB
from salmonn.model.salmonn import SALMONN
from util.benchmarks.flops import Flops
from util.benchmarks.memory import batch_of
from util.benchmarks.memory_parts import Batch, Case, frozen_weights, llm_kept, qformer_kept
from util.benchmarks.sizes import CLIP_SHARES, build, make_batch
from util.benchmarks.training import BATCH, batch_flops

META = torch.device("meta")
SAMPLES = 20e6  # of the published stage 1
GPUS = 4
SHARE = 0.5  # of the datasheet's peak that a good run reaches
DAY = 24 * 60 * 60


class Datasheet(NamedTuple):
    """A GPU as its maker states it."""

    flops: float  # per second, dense matrix products of bfloat16, sums in float32
    bandwidth: float  # bytes per second


DATASHEETS = {
    "RTX 5090": Datasheet(209.5e12, 1.792e12),
    "A100 80 GB": Datasheet(312e12, 2.039e12),
    "H200": Datasheet(989e12, 4.8e12),
}


def bench_limits(args: argparse.Namespace) -> Iterator[dict]:
    """Rows: operations and bytes per sample by part, what recomputation adds, and days for 20 million samples."""
    model = build(args.size, META, "bfloat16")
    samples = make_batch(model, args.batch or BATCH)
    batch = batch_of(model, samples)
    case = Case("cuda", 2, args.quant, amp=True)
    flops = batch_flops(model, samples)
    traffic = sample_bytes(model, case, batch)
    yield {"what": f"limits of {args.size}, COUNTED: LLM {_kind(args.quant)}, all else in bfloat16"}
    short, long = (share * model.max_seconds for share in CLIP_SHARES)
    clips = f"{batch.clips} clips of {short:.3g} to {long:.3g} s"
    yield {"what": f"   batches of {clips}, rows of up to {batch.tokens} tokens"}
    for part, count in flops.items():
        for way, value in count._asdict().items():
            yield {"what": f"   {part}, {way}", "value": value / 1e9, "unit": "GFLOP a sample"}
    for part, size in traffic.items():
        yield {"what": f"   {part}", "value": size / GB, "unit": "GB a sample"}
    yield from _recomputation_rows(model, case, batch, flops)
    total = sum(map(sum, flops.values()))
    for name, gpu in DATASHEETS.items():
        yield from _gpu_rows(name, gpu, total, sum(traffic.values()))


def sample_bytes(model: SALMONN, case: Case, batch: Batch) -> dict[str, float]:
    """Bytes that a sample moves at least: each weight once a pass, what autograd keeps written and read once."""
    weights = frozen_weights(model, case)
    kept = llm_kept(model, case, batch) + qformer_kept(model, case, batch)
    return {
        "LLM's weights, forward and backward": 2 * weights.pop("LLM") / batch.clips,
        "encoders' weights": sum(weights.values()) / batch.clips,
        "what autograd keeps": 2 * kept / batch.clips,
    }


def _recomputation_rows(model: SALMONN, case: Case, batch: Batch, flops: dict[str, Flops]) -> Iterator[dict]:
    """All of the LLM's blocks recomputed: operations and memory against none."""
    everything = replace(case, checkpointing=True)
    more = flops["LLM"].forward / sum(map(sum, flops.values()))
    less = llm_kept(model, everything, batch) / llm_kept(model, case, batch)
    yield {"what": "   all blocks recomputed: more operations", "value": 100 * more, "unit": "%"}
    yield {"what": "   all blocks recomputed: of what the LLM keeps", "value": 100 * less, "unit": "%"}


def _gpu_rows(name: str, gpu: Datasheet, flops: float, traffic: float) -> Iterator[dict]:
    """Samples a second of some GPUs at a share of their peak, and days; a bound where the memory is slower."""
    yield {"what": f"   {name}, operations at its peak", "value": 1000 * flops / gpu.flops, "unit": "ms a sample"}
    yield {"what": f"   {name}, bytes at its peak", "value": 1000 * traffic / gpu.bandwidth, "unit": "ms a sample"}
    speed = GPUS * min(SHARE * gpu.flops / flops, gpu.bandwidth / traffic)
    of = f"   {GPUS} x {name}, ESTIMATED at {SHARE:.0%} of its {gpu.flops / 1e12:.0f} TFLOP/s"
    yield {"what": of, "value": speed, "unit": "samples/s"}
    yield {"what": "      20 million samples", "value": SAMPLES / speed / DAY, "unit": "days"}


def _kind(quantization: str) -> str:
    return "in bfloat16" if quantization == "none" else f"in {quantization}"
