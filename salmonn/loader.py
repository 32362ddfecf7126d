"""Which rank sees which sample when: an endless, resumable stream for training, each sample once for evaluation."""

from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Sampler

from salmonn.dataset import SALMONNDataset, collate


class TrainBatches(Sampler[list[int]]):
    """Batches of this rank from one endless stream of shuffled passes over the data.

    The stream depends on the seed alone: global batch k is its stretch [k * B * W, (k + 1) * B * W),
    cut among the W ranks. So a run continues at any batch, on any number of ranks, with no sample
    repeated or left out.
    """

    def __init__(self, n: int, batch_size: int, rank: int, world_size: int, seed: int, first_batch: int = 0) -> None:
        self.n, self.batch_size, self.rank, self.world_size = n, batch_size, rank, world_size
        self.seed, self.first_batch = seed, first_batch

    def __iter__(self) -> Iterator[list[int]]:
        position = (self.first_batch * self.world_size + self.rank) * self.batch_size
        epoch, order = -1, torch.empty(0)
        while True:
            batch = []
            for p in range(position, position + self.batch_size):
                if p // self.n != epoch:
                    epoch = p // self.n
                    generator = torch.Generator().manual_seed(1_000_003 * self.seed + epoch)
                    order = torch.randperm(self.n, generator=generator)
                batch.append(int(order[p % self.n]))
            yield batch
            position += self.batch_size * self.world_size


def train_loader(
    dataset: SALMONNDataset,
    batch_size: int,
    num_workers: int,
    rank: int,
    world_size: int,
    seed: int,
    first_batch: int = 0,
) -> DataLoader:
    """Endless loader of training batches, from global batch `first_batch` on."""
    batches = TrainBatches(len(dataset), batch_size, rank, world_size, seed, first_batch)
    return _loader(dataset, num_workers, batch_sampler=batches)


def eval_loader(dataset: SALMONNDataset, batch_size: int, num_workers: int, rank: int, world_size: int) -> DataLoader:
    """Loader of this rank's share; over all ranks each sample comes exactly once (no padding duplicates)."""
    indices = range(rank, len(dataset), world_size)
    batches = [list(indices[i : i + batch_size]) for i in range(0, len(indices), batch_size)]
    return _loader(dataset, num_workers, batch_sampler=batches)


def _loader(dataset: SALMONNDataset, num_workers: int, **kwargs) -> DataLoader:
    return DataLoader(
        dataset,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
        **kwargs,
    )
