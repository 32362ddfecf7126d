"""One step of the optimiser: losses of its micro-batches averaged, unscaled, clipped, applied."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from salmonn.common import distributed
from salmonn.training.optim import build_optimizer, restore_optimizer, set_learning_rate

NOMINAL_TOKENS = 32  # of a target


class NotFiniteError(RuntimeError):
    """A loss or a gradient that is not finite; `samples` names the clips that gave it."""

    def __init__(self, what: str, samples: Sequence[str]) -> None:
        super().__init__(what)
        self.samples = list(samples)


MAX_OVERFLOWS = 50  # steps in a row; by then the loss scale is 2**-34 and below


class StepResult(NamedTuple):
    """What a step has to tell, of this rank alone except for the norm."""

    loss: float  # summed over target tokens
    tokens: int  # of targets
    samples: int
    cut: int  # targets that lost their end to max_txt_len
    grad_norm: float  # global, before clipping; inf or nan: fp16 overflow, the scaler left the step out


class TrainingStep:
    """Optimiser and loss scaler, and what the micro-batches of the step in work have added so far.

    `run.loss_average` "batch": mean over micro-batches and ranks of the mean over their target
    tokens, as published. "token": mean over the target tokens of all of them, however they are cut.
    """

    def __init__(self, model: nn.Module, run: DictConfig, device: torch.device) -> None:
        """`run`: the config section."""
        self.run = run
        self.trainable = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = build_optimizer(model, run.optims)
        self.scaler = torch.amp.GradScaler(device.type, enabled=run.amp and run.amp_dtype == "fp16")
        self._overflows = 0  # in a row
        self._forget()

    def abandon(self) -> None:
        """Drop what the micro-batches of an unfinished step have added."""
        self.optimizer.zero_grad(set_to_none=True)
        self._forget()

    def _forget(self) -> None:
        self._counts: list[Tensor] = []  # per micro-batch [3] loss, tokens, cut; read once, at the step's end
        self._samples: list[Sequence[str]] = []

    def set_learning_rate(self, lr: float) -> None:
        """Give the rate to all parameter groups."""
        set_learning_rate(self.optimizer, lr)

    def backward(self, result: dict[str, Tensor], samples: Sequence[str], group_size: int) -> None:
        """Add a micro-batch's gradients; `group_size` of them, as loaded, make the step.

        `samples`: names of its clips; where there are none, it was computed with other ranks and counts for nothing.
        """
        loss, total, cut = (result[name] * bool(samples) for name in ("loss", "total", "cut"))
        if self.run.loss_average == "batch":
            share = loss / group_size
        else:
            # sums, which `finish` divides by all tokens; any constant would do in between,
            # this one keeps fp16 gradients near those of a mean
            share = loss * total / self._nominal_tokens(group_size)
        self.scaler.scale(share).backward()
        self._counts.append(torch.stack([value.detach().double() for value in (loss, total, cut)]))
        self._samples.append(samples)

    def finish(self, group_size: int) -> StepResult:
        """Average, clip, step. Raises NotFiniteError, on every rank, before anything has moved.

        An infinite gradient is an error where no loss scaler is there to leave the step out, or where
        it leaves out one after the other.
        """
        rows = torch.stack(self._counts).tolist()  # the first look at the device since the last step
        tokens = self._require_finite_losses([loss for loss, *_ in rows], sum(total for _, total, _ in rows))
        self.scaler.unscale_(self.optimizer)
        if self.run.loss_average == "token":
            self._average_over_tokens(tokens, group_size)
        norm = self._clip().item()
        self._overflows = 0 if math.isfinite(norm) else self._overflows + 1
        if self._overflows > (MAX_OVERFLOWS if self.scaler.is_enabled() else 0):
            everywhere = distributed.gather_objects([name for names in self._samples for name in names])
            often = f" for {self._overflows} steps" if self._overflows > 1 else ""
            raise NotFiniteError(f"the gradients' norm is {norm}{often}", everywhere)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        result = StepResult(
            loss=sum(loss * total for loss, total, _ in rows),
            tokens=int(sum(total for _, total, _ in rows)),
            samples=sum(map(len, self._samples)),
            cut=int(sum(cut for *_, cut in rows)),
            grad_norm=norm,
        )
        self._forget()
        return result

    def _clip(self) -> Tensor:
        """The gradients' global norm; they are clipped where `grad_clip_norm` says so, else nobody touches them."""
        if limit := self.run.optims.grad_clip_norm:
            return torch.nn.utils.clip_grad_norm_(self.trainable, limit)
        return torch.nn.utils.get_total_norm([p.grad for p in self.trainable if p.grad is not None])

    def _require_finite_losses(self, losses: Sequence[float], tokens: float) -> float:
        """The target tokens of all ranks; raises, on all ranks, what names the one with a loss that is not finite."""
        not_finite = [i for i, loss in enumerate(losses) if not math.isfinite(loss)]
        tokens, n_not_finite = distributed.sum_numbers(tokens, len(not_finite))
        if n_not_finite:
            culprits = distributed.gather_objects([(losses[i], list(self._samples[i])) for i in not_finite])
            rank = next(rank for rank, found in enumerate(culprits) if found)
            loss, samples = culprits[rank][0]
            raise NotFiniteError(f"loss is {loss} on rank {rank}", samples)
        return tokens

    def _average_over_tokens(self, tokens: float, group_size: int) -> None:
        factor = self._nominal_tokens(group_size) * distributed.world_size() / tokens  # DDP averaged over the ranks
        gradients = [p.grad for p in self.trainable if p.grad is not None]
        torch._foreach_mul_(gradients, factor)

    def _nominal_tokens(self, group_size: int) -> int:
        return NOMINAL_TOKENS * self.run.batch_size_train * group_size

    def state_dict(self) -> dict[str, Any]:
        """State of optimiser and loss scaler."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state; rates and decay stay as configured now. Raises ValueError if it does not fit."""
        restore_optimizer(self.optimizer, state["optimizer"])
        if self.scaler.is_enabled() and state["scaler"]:  # the run may have had another precision
            self.scaler.load_state_dict(state["scaler"])
