"""Data sets of a run, and which rank sees which sample when: an endless stream in training, else each sample once.

Batches are loaded by processes that are started anew (`common/processes.py`), in the order of one that loads alone.
"""

import contextlib
import math
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice, repeat
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from salmonn.common.errors import UserError, examples
from salmonn.common.processes import DiedError, Parcel, Worker, kill_all
from salmonn.common.samples import Samples
from salmonn.config.missing_files import annotation_keys
from salmonn.config.schema import RunConfig
from salmonn.data.annotations import Annotations
from salmonn.data.collate import collate
from salmonn.data.dataset import SALMONNDataset, load_items
from salmonn.data.filtering import usable_entries

PREFETCH = 4  # batches that each worker has ready: one slow file does not stop the GPU
_POLL = 0.2  # s, after which who waits for a batch looks whether it is to stop


class LoadingError(UserError):
    """A process that loads has died, stands still, or cannot start; or what it reads was changed, or is useless."""


def open_datasets(config: DictConfig, max_seconds: float) -> dict[str, SALMONNDataset]:
    """The usable entries of each annotation file that a run reads; `max_seconds`: what the model hears of a clip.

    Only in training another clip takes an unreadable one's place; in stage 0 the entries of its tasks take part.
    Raises UserError where none can be used.
    """
    found = {}
    for key in annotation_keys(config):
        annotations = Annotations(config.datasets[key], end_sym=config.model.end_sym)
        tasks = config.run.ctc_tasks if config.run.objective == "ctc" else None
        usable = usable_entries(annotations, config.datasets, tasks)
        found[key] = SALMONNDataset.from_config(
            annotations,
            config.datasets,
            usable=usable,
            max_seconds=max_seconds,
            replace_unreadable=key == "train_ann_path",
            seed=config.run.seed,
        )
    return found


class TrainBatches:
    """Batches of this rank from one endless stream of shuffled passes over the data.

    The stream depends on the seed alone; from `first_sample` on, each batch of all ranks is its next
    stretch of B * W samples, cut among the W ranks. So a run goes on at any sample, on any number of
    ranks, with no sample repeated or left out. With `lengths` [n] and `steps`, the number of batches in
    each coming step of the optimiser, a step's samples of like length come together: less padding. It
    holds the samples that it would hold without, and all ranks have about equally much to do. They are
    dealt to the ranks a batch at a time, or `dealt` samples where a rank cuts its step by itself.
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
        dealt: int | None = None,
    ) -> None:
        self.n, self.batch_size, self.rank, self.world_size = n, batch_size, rank, world_size
        self.seed, self.first_sample, self.lengths, self.steps = seed, first_sample, lengths, steps
        self.dealt = dealt or batch_size

    def __iter__(self) -> Iterator[list[int]]:
        stream, size = self._stream(), self.batch_size
        for n_batches in self.steps or repeat(1):
            step = [next(stream) for _ in range(n_batches * self.world_size * size)]
            if self.lengths is not None:  # the longest first: too little memory shows at once
                step.sort(key=self.lengths.__getitem__, reverse=True)
            share = self._share(step)
            yield from (share[i : i + size] for i in range(0, len(share), size))

    def _share(self, step: list[int]) -> list[int]:
        """What of a step's samples is dealt to this rank."""
        share = []
        for number in range(len(step) // (self.world_size * self.dealt)):
            # every second round goes the other way: else the first rank had the longest of each, and all waited
            turn = self.rank if number % 2 == 0 else self.world_size - 1 - self.rank
            start = (number * self.world_size + turn) * self.dealt
            share += step[start : start + self.dealt]
        return share

    def _stream(self) -> Iterator[int]:
        epoch, offset = divmod(self.first_sample, self.n)
        while True:
            yield from map(int, self._order(epoch)[offset:].numpy())
            epoch, offset = epoch + 1, 0

    def _order(self, epoch: int) -> torch.Tensor:
        """[n] all samples once."""
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + epoch)
        return torch.randperm(self.n, generator=generator)


# ---- loaders


def train_loader(
    dataset: SALMONNDataset,
    batch_size: int,
    num_workers: int,
    rank: int,
    world_size: int,
    seed: int,
    first_sample: int = 0,
    steps: Iterable[int] | None = None,
    dealt: int | None = None,
    **kwargs: Any,
) -> Generator[Samples]:
    """Endless training batches from a sample of the stream on; `steps`, `dealt`: as `TrainBatches`, others: `load`."""
    lengths = dataset.text_lengths if steps else None
    batches = TrainBatches(len(dataset), batch_size, rank, world_size, seed, first_sample, lengths, steps, dealt)
    return load(dataset, batches, num_workers, **kwargs)


def eval_loader(
    dataset: SALMONNDataset, batch_size: int, num_workers: int, rank: int, world_size: int, **kwargs: Any
) -> Generator[Samples]:
    """Batches of this rank's share; over all ranks each sample comes exactly once (no padding duplicates)."""
    return inference_loader(dataset, range(rank, len(dataset), world_size), batch_size, num_workers, **kwargs)


def inference_loader(
    dataset: SALMONNDataset, order: Sequence[int], batch_size: int, num_workers: int, **kwargs: Any
) -> Generator[Samples]:
    """Batches of these entries in this order, each exactly once."""
    batches = [list(order[i : i + batch_size]) for i in range(0, len(order), batch_size)]
    return load(dataset, batches, num_workers, **kwargs)


def load(
    dataset: SALMONNDataset,
    batches: Iterable[Sequence[int]],
    num_workers: int,
    stopped: Callable[[], bool] = lambda: False,
    timeout_minutes: float = RunConfig.loader_timeout_minutes,
) -> Generator[Samples]:
    """Yield the batches in their order, loaded by this many processes (0: by this one), until `stopped`.

    Raises LoadingError when a process dies or cannot be started, the annotation file is rewritten, or a batch does not
    come within `timeout_minutes`. The processes end with the generator: close it where it is not read to its end.
    """
    pinned = torch.cuda.is_initialized()
    if num_workers:
        yield from _from_workers(dataset, batches, num_workers, stopped, timeout_minutes, pinned)
        return
    batches = iter(batches)
    while not stopped() and (batch := next(batches, None)) is not None:
        try:
            items = load_items(dataset, batch)
        except UserError as error:
            raise LoadingError(str(error)) from error
        yield collate(items, pinned)


def _from_workers(
    dataset: SALMONNDataset,
    batches: Iterable[Sequence[int]],
    num_workers: int,
    stopped: Callable[[], bool],
    timeout_minutes: float,
    pinned: bool,
) -> Generator[Samples]:
    """The workers take turns, each with PREFETCH batches to do; a thread for each makes batches of its answers."""
    batches = iter(batches)
    first = list(islice(batches, num_workers))  # no more workers than batches
    finish = partial(collate, pinned=pinned)
    asked: deque[tuple[Worker, SimpleQueue, Sequence[int]]] = deque()

    def ask(worker: Worker, answers: SimpleQueue, batch: Sequence[int] | None) -> None:
        if batch is not None:
            worker.send(batch)
            asked.append((worker, answers, batch))

    workers: list[tuple[Worker, SimpleQueue]] = []
    try:
        parcel = Parcel(partial(load_items, dataset))
        for batch in first:
            workers.append((Worker(parcel), SimpleQueue()))
            threading.Thread(target=_take_answers, args=(*workers[-1], finish), daemon=True).start()
            ask(*workers[-1], batch)
        for _ in range(PREFETCH - 1):
            for worker, answers in workers:
                ask(worker, answers, next(batches, None))
        while asked:
            worker, answers, batch = asked.popleft()
            try:
                answer = _wait(answers, stopped, 60 * timeout_minutes)
            except Empty:
                raise LoadingError(_stands_still(worker, dataset.paths(batch), timeout_minutes)) from None
            if answer is None:
                return
            if isinstance(answer, DiedError):
                raise LoadingError(_died(worker, answer, dataset.paths(batch), num_workers))
            if isinstance(answer, Exception):
                raise answer
            ask(worker, answers, next(batches, None))
            yield answer
    except LoadingError:
        raise
    except UserError as error:  # such as a process that could not be started for want of memory after days
        raise LoadingError(str(error)) from error
    finally:
        kill_all(worker for worker, _ in workers)


def _take_answers(worker: Worker, answers: SimpleQueue, finish: Callable[[Any], Samples]) -> None:
    """Take what a worker sends as soon as it comes, so that it never waits for the model."""
    while True:
        try:
            answers.put(finish(worker.receive()))
        except Exception as error:  # for the thread that waits
            answers.put(error)
            return


def _wait(answers: SimpleQueue, stopped: Callable[[], bool], seconds: float) -> Any:
    """The next answer; None where `stopped`. Raises Empty after that many seconds.

    They are counted a while at a time: those for which the whole job was suspended are none.
    """
    for _ in range(math.ceil(seconds / _POLL)):
        if stopped():
            return None
        with contextlib.suppress(Empty):
            return answers.get(timeout=_POLL)
    raise Empty


def _died(worker: Worker, died: DiedError, paths: list[str], num_workers: int) -> str:
    """What is said of a worker that has died while it loaded these clips."""
    says = f"loader process {worker.pid} {died} while it loaded {examples(paths)}. "
    if died.signal == signal.SIGKILL:
        return (
            f"{says}Unless somebody killed it, the memory of the machine or of the job was full (the system's log "
            f"says so): ask for more, or set run.num_workers = {num_workers} lower (0: the run loads by itself)"
        )
    return (
        f"{says}A clip that crashes the decoder does that: python util/anns_inspector.py --check-integrity finds it, "
        f"datasets.integrity=verified leaves it out"
    )


def _stands_still(worker: Worker, paths: list[str], timeout_minutes: float) -> str:
    """What is said of a worker that does not answer."""
    return (
        f"loader process {worker.pid} stands still: for run.loader_timeout_minutes = {timeout_minutes:g} it has been "
        f"loading {examples(paths)}. Does the disk answer that holds them? A slow one may need more minutes"
    )
