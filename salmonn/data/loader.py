"""Which rank sees which sample when: an endless, resumable stream for training, each sample once for evaluation."""

import signal
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from salmonn.data.dataset import SALMONNDataset, collate

# Length-grouped passes: samples are sorted within blocks of the shuffled order, and the groups of
# neighbours of a block come in random order. Neither size depends on batch size or number of ranks.
LENGTH_BLOCK, LENGTH_GROUP = 4096, 64
PREFETCH = 4  # batches that each worker has ready: one slow file does not stop the GPU


class TrainBatches(Sampler[list[int]]):
    """Batches of this rank from one endless stream of shuffled passes over the data.

    The stream depends on the seed alone; from `first_sample` on, each batch of all ranks is its next
    stretch of B * W samples, cut among the W ranks. So a run goes on at any sample, on any number of
    ranks, with no sample repeated or left out. With `lengths` [n], samples of like length come together:
    less padding. With `steps`, too, the number of batches in each coming step of the optimiser, they do
    so within a step alone, which then holds the samples that it would hold without.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        rank: int,
        world_size: int,
        seed: int,
        first_sample: int = 0,
        lengths: np.ndarray | None = None,
        steps: Iterable[int] | None = None,
    ) -> None:
        self.n, self.batch_size, self.rank, self.world_size = n, batch_size, rank, world_size
        self.seed, self.first_sample, self.lengths, self.steps = seed, first_sample, lengths, steps

    def __iter__(self) -> Iterator[list[int]]:
        stream, size = self._stream(), self.batch_size
        for n_batches in self.steps or repeat(1):
            step = [next(stream) for _ in range(n_batches * self.world_size * size)]
            if self.steps and self.lengths is not None:  # the longest first: too little memory shows at once
                step.sort(key=self.lengths.__getitem__, reverse=True)
            for start in range(self.rank * size, len(step), self.world_size * size):
                yield step[start : start + size]

    def _stream(self) -> Iterator[int]:
        epoch, offset = divmod(self.first_sample, self.n)
        while True:
            yield from map(int, self._order(epoch)[offset:].numpy())
            epoch, offset = epoch + 1, 0

    def _order(self, epoch: int) -> torch.Tensor:
        """[n] all samples once."""
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + epoch)
        order = torch.randperm(self.n, generator=generator)
        if self.lengths is None or self.steps:
            return order
        groups = []
        for block in order.split(LENGTH_BLOCK):
            lengths = torch.from_numpy(self.lengths[block.numpy()].astype(np.int64))
            by_length = block[lengths.argsort(stable=True)].split(LENGTH_GROUP)
            groups += [by_length[i] for i in torch.randperm(len(by_length), generator=generator)]
        return torch.cat(groups)


def train_loader(
    dataset: SALMONNDataset,
    batch_size: int,
    num_workers: int,
    rank: int,
    world_size: int,
    seed: int,
    first_sample: int = 0,
    length_grouped: bool = False,
    steps: Iterable[int] | None = None,
) -> DataLoader:
    """Endless loader of training batches, from a sample of the stream on; `steps` as for `TrainBatches`."""
    lengths = dataset.text_lengths if length_grouped or steps else None
    batches = TrainBatches(len(dataset), batch_size, rank, world_size, seed, first_sample, lengths, steps)
    return _loader(dataset, num_workers, batch_sampler=batches)


def eval_loader(dataset: SALMONNDataset, batch_size: int, num_workers: int, rank: int, world_size: int) -> DataLoader:
    """Loader of this rank's share; over all ranks each sample comes exactly once (no padding duplicates)."""
    indices = range(rank, len(dataset), world_size)
    batches = [list(indices[i : i + batch_size]) for i in range(0, len(indices), batch_size)]
    return _loader(dataset, num_workers, batch_sampler=batches)


def inference_loader(dataset: SALMONNDataset, order: Sequence[int], batch_size: int, num_workers: int) -> DataLoader:
    """Loader of these entries in this order, each exactly once."""
    batches = [list(order[i : i + batch_size]) for i in range(0, len(order), batch_size)]
    return _loader(dataset, num_workers, batch_sampler=batches)


def _leave_signals_to_the_run(_worker: int) -> None:
    """Ctrl-C and Slurm's SIGTERM reach every process; the run saves first and ends its workers itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _loader(dataset: SALMONNDataset, num_workers: int, **kwargs: Any) -> DataLoader:
    return DataLoader(
        dataset,
        num_workers=num_workers,
        collate_fn=collate,
        worker_init_fn=_leave_signals_to_the_run,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
        prefetch_factor=PREFETCH if num_workers else None,
        **kwargs,
    )
