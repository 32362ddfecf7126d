"""Which rank sees which sample when: an endless, resumable stream for training, each sample once for evaluation."""

import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from salmonn.dataset import SALMONNDataset, collate

# Length-grouped passes: samples are sorted within blocks of the shuffled order, and the groups of
# neighbours of a block come in random order. Neither size depends on batch size or number of ranks.
LENGTH_BLOCK, LENGTH_GROUP = 4096, 64
PREFETCH = 4  # batches that each worker has ready: one slow file does not stop the GPU


class TrainBatches(Sampler[list[int]]):
    """Batches of this rank from one endless stream of shuffled passes over the data.

    The stream depends on the seed alone; from `first_sample` on, each batch of all ranks is its next
    stretch of B * W samples, cut among the W ranks. So a run goes on at any sample, on any number of
    ranks, with no sample repeated or left out. With `lengths` [n], samples of like length come together: less padding.
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
    ) -> None:
        self.n, self.batch_size, self.rank, self.world_size = n, batch_size, rank, world_size
        self.seed, self.first_sample, self.lengths = seed, first_sample, lengths

    def __iter__(self) -> Iterator[list[int]]:
        position = self.first_sample + self.rank * self.batch_size
        epoch, order = -1, torch.empty(0)
        while True:
            batch = []
            for p in range(position, position + self.batch_size):
                if p // self.n != epoch:
                    epoch = p // self.n
                    order = self._order(epoch)
                batch.append(int(order[p % self.n]))
            yield batch
            position += self.batch_size * self.world_size

    def _order(self, epoch: int) -> torch.Tensor:
        """[n] all samples once."""
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + epoch)
        order = torch.randperm(self.n, generator=generator)
        if self.lengths is None:
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
) -> DataLoader:
    """Endless loader of training batches, from a sample of the stream on."""
    lengths = dataset.text_lengths if length_grouped else None
    batches = TrainBatches(len(dataset), batch_size, rank, world_size, seed, first_sample, lengths)
    return _loader(dataset, num_workers, batch_sampler=batches)


def eval_loader(dataset: SALMONNDataset, batch_size: int, num_workers: int, rank: int, world_size: int) -> DataLoader:
    """Loader of this rank's share; over all ranks each sample comes exactly once (no padding duplicates)."""
    indices = range(rank, len(dataset), world_size)
    batches = [list(indices[i : i + batch_size]) for i in range(0, len(indices), batch_size)]
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
