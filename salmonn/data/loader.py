"""Data sets of a run, and which rank sees which sample when: an endless stream in training, else each sample once."""

import signal
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch.utils.data import DataLoader, Sampler

from salmonn.config.missing_files import annotation_keys
from salmonn.data.annotations import Annotations
from salmonn.data.dataset import SALMONNDataset, collate
from salmonn.data.filtering import usable_entries

PREFETCH = 4  # batches that each worker has ready: one slow file does not stop the GPU


def open_datasets(config: DictConfig, max_seconds: float) -> dict[str, SALMONNDataset]:
    """The usable entries of each annotation file that a run reads; `max_seconds`: what the model hears of a clip.

    Only in training another clip takes an unreadable one's place. Raises UserError where none can be used.
    """
    found = {}
    for key in annotation_keys(config):
        annotations = Annotations(config.datasets[key])
        found[key] = SALMONNDataset.from_config(
            annotations,
            config.datasets,
            usable=usable_entries(annotations, config.datasets),
            max_seconds=max_seconds,
            replace_unreadable=key == "train_ann_path",
            seed=config.run.seed,
        )
    return found


class TrainBatches(Sampler[list[int]]):
    """Batches of this rank from one endless stream of shuffled passes over the data.

    The stream depends on the seed alone; from `first_sample` on, each batch of all ranks is its next
    stretch of B * W samples, cut among the W ranks. So a run goes on at any sample, on any number of
    ranks, with no sample repeated or left out. With `lengths` [n] and `steps`, the number of batches in
    each coming step of the optimiser, a step's samples of like length come together: less padding. It
    holds the samples that it would hold without.
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
            if self.lengths is not None:  # the longest first: too little memory shows at once
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
        return torch.randperm(self.n, generator=generator)


def train_loader(
    dataset: SALMONNDataset,
    batch_size: int,
    num_workers: int,
    rank: int,
    world_size: int,
    seed: int,
    first_sample: int = 0,
    steps: Iterable[int] | None = None,
) -> DataLoader:
    """Endless loader of training batches, from a sample of the stream on; `steps` as for `TrainBatches`."""
    lengths = dataset.text_lengths if steps else None
    batches = TrainBatches(len(dataset), batch_size, rank, world_size, seed, first_sample, lengths, steps)
    return _loader(dataset, num_workers, batch_sampler=batches)


def eval_loader(dataset: SALMONNDataset, batch_size: int, num_workers: int, rank: int, world_size: int) -> DataLoader:
    """Loader of this rank's share; over all ranks each sample comes exactly once (no padding duplicates)."""
    return inference_loader(dataset, range(rank, len(dataset), world_size), batch_size, num_workers)


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
