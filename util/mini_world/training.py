"""One short pretraining loop for the three tiny models.

Muon (Keller Jordan, 2024: momentum made orthogonal) for the matrices inside the layers, AdamW for
the rest. In the same time it reaches about half the error of AdamW alone. torch.optim.Muon works in
bfloat16, fifteen times slower on CPUs without it; here it is float32, matrices of a shape at once.
"""

import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of the quintic iteration
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


class Muon(torch.optim.Optimizer):
    def __init__(self, matrices: list[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        del closure
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    by_shape[matrix.shape].append(matrix)
            for shape, matrices in by_shape.items():
                updates = orthogonal(torch.stack([self._momentum(m, group["momentum"]) for m in matrices]))
                rate = group["lr"] * max(1, shape[0] / shape[1]) ** 0.5
                for matrix, update in zip(matrices, updates, strict=True):
                    matrix.mul_(1 - group["lr"] * WEIGHT_DECAY).sub_(update, alpha=rate)

    def _momentum(self, matrix: nn.Parameter, momentum: float) -> Tensor:
        average = self.state[matrix].setdefault("average", torch.zeros_like(matrix))
        average.lerp_(matrix.grad, 1 - momentum)
        return matrix.grad.lerp(average, momentum)  # Nesterov


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """About the nearest orthogonal matrix of each in [N, rows, columns]."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def fit(name: str, model: nn.Module, layers: nn.Module, loss_of: Callable[[], Tensor], steps: int) -> None:
    """Minimise `loss_of()` over all parameters of `model`; Muon for the matrices of `layers`."""
    matrices = [p for p in layers.parameters() if p.ndim == 2]
    own = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in own]
    optimizers = (
        Muon(matrices, lr=MATRIX_LEARNING_RATE),
        torch.optim.AdamW(rest, lr=OTHER_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY),
    )

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / WARM_UP_STEPS, (steps - step) / (DECAY_SHARE * steps))

    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, factor) for optimizer in optimizers]
    model.train()
    progress = tqdm(range(steps), desc=name, mininterval=2.0)
    for _ in progress:
        loss = loss_of()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    model.eval()
