"""Muon for matrices beside AdamW for the rest, in one optimiser: `run.optims.muon_lr_factor`. Not in the paper.

Muon (Keller Jordan, 2024) makes the momentum of a matrix orthogonal before it is applied, so that each direction moves
equally far. PyTorch's own takes one matrix after the other in bfloat16, fifteen times slower on CPUs without it; here
matrices of a shape go at once, in bfloat16 where the device has units for it.
"""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW

from salmonn.common.device import has_bfloat16

MOMENTUM = 0.95
KEPT = {"step", "momentum_buffer"}  # of each matrix; AdamW asks for steps as it takes up a state
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of the quintic iteration


class MuonAdamW(AdamW):
    """AdamW, but for the groups of matrices with "muon" True."""

    def __init__(self, groups: list[dict[str, Any]], **settings: Any) -> None:
        """Settings as AdamW's, of which "lr" and "weight_decay" count for Muon, too."""
        super().__init__([{"muon": False, **group} for group in groups], **settings)
        self._step_supports_amp_scaling = False  # fp16: a step that overflowed is left out by who calls, as a whole

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Move all that has gradients. No closure is taken: it would make those of the matrices too late."""
        del closure
        groups = self.param_groups
        for group in groups:
            if group["muon"]:
                self._move(group)
        self.param_groups = [group for group in groups if not group["muon"]]
        try:
            return super().step()
        finally:
            self.param_groups = groups

    def _move(self, group: dict[str, Any]) -> None:
        by_shape: dict[torch.Size, dict[Tensor, Tensor]] = defaultdict(dict)
        for matrix in group["params"]:
            if matrix.grad is not None:
                by_shape[matrix.shape][matrix] = self._momentum(matrix, matrix.grad)
        for (rows, columns), momenta in by_shape.items():
            stacked = torch.stack([*momenta.values()])
            updates = orthogonal(stacked.bfloat16() if has_bfloat16(stacked.device) else stacked)
            rate = group["lr"] * max(1, rows / columns) ** 0.5
            for matrix, update in zip(momenta, updates, strict=True):
                matrix.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=rate)

    def _momentum(self, matrix: Tensor, gradient: Tensor) -> Tensor:
        kept = self.state[matrix]
        if not kept:
            kept |= {"step": torch.zeros(()), "momentum_buffer": torch.zeros_like(matrix)}
        kept["step"] += 1
        kept["momentum_buffer"].lerp_(gradient, 1 - MOMENTUM)
        return gradient.lerp(kept["momentum_buffer"], MOMENTUM)  # Nesterov


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """About the nearest orthogonal matrix of each in [N, rows, columns]."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
