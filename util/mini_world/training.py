"""One short pretraining loop for the three tiny models.

Muon for the matrices inside the layers, AdamW for the rest: in the same time about half the error of AdamW alone.
"""

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from salmonn.training.muon import MuonAdamW

MATRIX_LEARNING_RATE, OTHER_LEARNING_RATE = 0.01, 6e-3
WEIGHT_DECAY = 0.01
WARM_UP_STEPS = 30
DECAY_SHARE = 0.7  # of the steps, linearly to zero
BLOCK = 8  # batches that are sorted by length together


T = TypeVar("T")


def endless(items: Sequence[T], rng: random.Random) -> Iterator[T]:
    """One permutation of the items after the other."""
    while True:
        yield from rng.sample(items, len(items))


def batches(items: Iterator[T], length: Callable[[T], int], size: int, rng: random.Random) -> Iterator[list[T]]:
    """Batches of items of similar length, which saves much of the padding."""
    while True:
        block = sorted(itertools.islice(items, BLOCK * size), key=length)
        parts = [block[i : i + size] for i in range(0, len(block), size)]
        yield from rng.sample(parts, len(parts))


def fit(name: str, model: nn.Module, layers: nn.Module, loss_of: Callable[[], Tensor], steps: int) -> None:
    """Minimise `loss_of()` over all parameters of `model`; Muon for the matrices of `layers`."""
    matrices = [p for p in layers.parameters() if p.ndim == 2]
    own = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in own]
    groups: list[dict[str, Any]] = [{"params": matrices, "muon": True, "lr": MATRIX_LEARNING_RATE}, {"params": rest}]
    optimizer = MuonAdamW(groups, lr=OTHER_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY)

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / WARM_UP_STEPS, (steps - step) / (DECAY_SHARE * steps))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    model.train()
    progress = tqdm(range(steps), desc=name, mininterval=2.0)
    for _ in progress:
        loss = loss_of()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    model.eval()
