"""Training steps by several processes of this CPU, a thread each, with gloo between them: seconds by the clock."""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.distributed.elastic.utils.store import barrier

from salmonn.common import distributed
from salmonn.common.samples import Samples
from salmonn.config.schema import Config, RunConfig
from salmonn.model.salmonn import SALMONN
from salmonn.model.sharding import shard_blocks
from salmonn.training.step import TrainingStep
from util.benchmarks.measure import keep_freed_memory
from util.benchmarks.memory_parts import trained_weights
from util.benchmarks.sizes import build, make_batch
from util.benchmarks.training import accumulated_step

CPU = torch.device("cpu")
SMALL, LARGE = 4096, 1 << 24  # bytes of the all-reduces that tell a link's latency and speed
ALL_REDUCES = 10  # of a size, that are timed


class Job(NamedTuple):
    """What each rank trains."""

    size: str
    dtype: str
    quantization: str
    clips: int  # of a micro-batch of a rank
    accumulate: int  # micro-batches of a step
    recompute: bool
    shard_llm: bool
    repeats: int


class Times(NamedTuple):
    """Seconds on the slowest rank."""

    apart: float  # a step of ranks that all work at once, each for itself
    together: float  # a step of ranks that train one model, as the runner takes it
    small: float  # an all-reduce of SMALL bytes, of nothing but it
    large: float  # of LARGE bytes
    gradients: float  # of as many bytes as the gradients have


def ranks_times(ranks: int, job: Job, keep_memory: bool = True) -> Times:
    """What so many ranks take for the job; `keep_memory` as `keep_freed_memory`."""
    with tempfile.TemporaryDirectory() as folder:
        found = in_processes(_rank_times, [(rank, ranks, folder, job) for rank in range(ranks)], keep_memory)
    return Times(*map(max, zip(*found, strict=True)))


def in_processes(function: Callable, arguments: Sequence[tuple], keep_memory: bool = True) -> list[Any]:
    """What a function returns for each of the arguments, in new processes of one thread that run at once."""
    with ProcessPoolExecutor(len(arguments), get_context("spawn"), _prepare, (keep_memory,)) as processes:
        futures = [processes.submit(function, *values) for values in arguments]
        return [future.result() for future in futures]


def _prepare(keep_memory: bool) -> None:
    torch.set_num_threads(1)
    if keep_memory:
        keep_freed_memory()


def _rank_times(rank: int, ranks: int, folder: str, job: Job) -> Times:
    run = RunConfig(
        device="cpu", amp=job.dtype == "bfloat16", amp_dtype="bf16", batch_size_train=job.clips,
        accum_grad_iters=job.accumulate, dist_url=f"file://{folder}/ranks",
    )  # fmt: skip
    config = OmegaConf.structured(Config(run=run))
    model = build(job.size, CPU, job.dtype, job.quantization, gradient_checkpointing=job.recompute).train()
    samples = make_batch(model, job.clips)
    barrier(dist.FileStore(f"{folder}/start", ranks), ranks, "start")
    apart = _step_seconds(model, model, config.run, samples, job.repeats)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
    distributed.init(config)
    try:
        if job.shard_llm:
            shard_blocks(model._causal_lm(), CPU)
        wrapped = distributed.wrap(model, CPU, is_sharded=job.shard_llm)
        together = _step_seconds(model, wrapped, config.run, samples, job.repeats)
        del wrapped  # DDP's reducer must go before its process group
        return Times(apart, together, *map(_all_reduce_seconds, (SMALL, LARGE, trained_weights(model))))
    finally:
        distributed.shutdown()


def _step_seconds(model: SALMONN, wrapped: nn.Module, run: DictConfig, samples: Samples, repeats: int) -> float:
    step = TrainingStep(model, run, CPU)
    return _median_seconds(lambda: take_step(step, wrapped, run, samples), repeats)


def take_step(step: TrainingStep, wrapped: nn.Module, run: DictConfig, samples: Samples) -> None:
    """A step with all that the ranks agree on in the runner's; one batch for all of its micro-batches."""
    n = run.accum_grad_iters
    accumulated_step(step, wrapped, run, _agreed_on(samples, n), n)
    distributed.any_rank(False)  # has to save


def _agreed_on(samples: Samples, n: int) -> Iterator[Samples]:
    for _ in range(n):
        distributed.any_rank(False)  # is without a batch
        yield samples


def _all_reduce_seconds(size: int) -> float:
    values = torch.zeros(size // torch.float32.itemsize)
    return _median_seconds(lambda: dist.all_reduce(values), ALL_REDUCES)


def _median_seconds(work: Callable[[], object], repeats: int) -> float:
    """Of some turns after one that warms up; ranks that send something wait for each other in each of them."""
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])
