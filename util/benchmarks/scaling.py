"""Training steps on two ranks against one, each with one thread: what the second core gives, and what it costs."""

import argparse
import math
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import NamedTuple
from unittest import mock

import torch
from omegaconf import OmegaConf
from torch.nn.parallel import DistributedDataParallel

from salmonn.common import distributed
from salmonn.config.schema import Config, RunConfig
from util.benchmarks.measure import row
from util.benchmarks.sizes import build, make_batch, rows_of
from util.benchmarks.training import BATCH, our_step

RANKS = 2
TURN = 2.0  # s that one rank works in a turn, at least
EXIT_SECONDS = 30.0


class Work(NamedTuple):
    """What a group is to do in a turn."""

    passes: int  # over the group's batches, a step for each
    averaged: bool  # gradients over all ranks, as in training; else each rank works for itself


class Group:
    """The processes of one run; they wait without work until they are told."""

    def __init__(self, ranks: list[Connection]) -> None:
        self.ranks = ranks
        self.answers()  # they are ready

    def answers(self) -> list[float]:
        """What each rank has to say."""
        return [rank.recv() for rank in self.ranks]

    def __call__(self, work: Work) -> list[float]:
        """Let all ranks do it at once; the seconds that each took for a pass."""
        for rank in self.ranks:
            rank.send(work)
        return self.answers()


def bench_scaling(args: argparse.Namespace) -> Iterator[dict]:
    """Rows: samples/s on two ranks and on one, over the same samples; then why it is not twice as much.

    A rank alone, both at once without averaging gradients, and both as in training take turns.
    """
    n = args.batch or BATCH
    with processes(args.size, n, 1) as alone, processes(args.size, n, RANKS) as both:
        first = max(both(Work(1, averaged=True)))
        passes = math.ceil(TURN / first)
        turns = {"alone": (alone, False), "apart": (both, False), "together": (both, True)}
        seconds: dict[str, list[list[float]]] = {name: [] for name in turns}
        for repeat in range(args.repeats + 1):
            for name, (group, averaged) in turns.items():
                taken = group(Work(passes, averaged))
                if repeat:
                    seconds[name].append(taken)
    yield from scaling_rows(f"scaling {args.size}, float32, batch {n}", RANKS * n, seconds)


def scaling_rows(what: str, n: int, seconds: dict[str, list[list[float]]]) -> Iterator[dict]:
    """The table from the seconds of each rank in each round; `n` samples are a pass."""
    slowest = {name: statistics.median(map(max, rounds)) for name, rounds in seconds.items()}
    alone, apart, together = slowest["alone"], slowest["apart"], slowest["together"]
    yield {
        "what": f"{what}: {RANKS} ranks against 1",
        "ours": n / together,
        "plain": n / alone,
        "ratio": alone / together,
        "unit": "samples/s",
    }
    yield row(f"   {RANKS} ranks, each for itself: the slower one", (apart, alone))
    behind = statistics.median(max(taken) - min(taken) for taken in seconds["apart"])
    yield {"what": "   how much it is behind the faster one", "seconds": behind}
    yield {"what": "   what averaging the gradients adds", "seconds": together - apart}


@contextmanager
def _for_itself(ddp_model: DistributedDataParallel) -> Iterator[None]:
    """Steps in which a rank neither averages gradients nor waits for the others' token counts."""
    with ddp_model.no_sync(), mock.patch.object(distributed, "sum_numbers", lambda *values: list(values)):
        yield


@contextmanager
def processes(size: str, n: int, world_size: int) -> Iterator[Group]:
    """The ranks of a run, ready; they end when the block does."""
    context = get_context("spawn")
    with ExitStack() as stack:
        meeting = stack.enter_context(tempfile.TemporaryDirectory())
        connections = []
        for rank in range(world_size):
            ours, theirs = context.Pipe()
            arguments = (theirs, f"file://{meeting}/ranks", rank, world_size, size, n)
            process = context.Process(target=serve, args=arguments, daemon=True)
            process.start()
            theirs.close()  # else a rank that dies would leave us waiting
            stack.callback(process.join, EXIT_SECONDS)
            connections.append(ours)
        for connection in connections:
            stack.callback(connection.close)  # before the join: the rank then leaves
        yield Group(connections)


def serve(orders: Connection, dist_url: str, rank: int, world_size: int, size: str, n: int) -> None:
    """A rank: takes steps as it is told, until its orders end. Tells the seconds of a pass."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    run = RunConfig(device="cpu", amp=False, batch_size_train=n, dist_url=dist_url, use_distributed=world_size > 1)
    config = OmegaConf.structured(Config(run=run))
    device = distributed.init(config)
    model = build(size, device).train()
    ddp_model = distributed.wrap(model, device)
    samples = make_batch(model, RANKS * n)
    # The same samples for both groups: interleaved, for the shares to have clips and texts of like length.
    batches = [rows_of(samples, slice(share, None, RANKS)) for share in range(rank, RANKS, world_size)]
    steps = [our_step(model, config.run, batch, ddp_model) for batch in batches]
    orders.send(0.0)
    try:
        while True:
            work: Work = orders.recv()
            with nullcontext() if work.averaged or world_size == 1 else _for_itself(ddp_model):
                began = time.perf_counter()
                for _ in range(work.passes):
                    for step in steps:
                        step()
                orders.send((time.perf_counter() - began) / work.passes)
    except EOFError:
        del ddp_model, steps  # DDP's reducer must go before its process group
        distributed.shutdown()
