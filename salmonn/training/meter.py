"""What a training log says about the last steps: means, counts, speed, memory."""

import math
import resource
import time
from collections.abc import Mapping
from typing import Any

import torch

from salmonn.common import distributed
from salmonn.common.files import GB
from salmonn.training.step import StepResult


class Meter:
    """Means since the last reading, and the speed."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._clear()

    def _clear(self) -> None:
        self._loss, self._tokens, self._samples, self._cut = 0.0, 0, 0, 0
        self._grad_norms: list[float] = []
        self._overflows, self._since = 0, time.monotonic()
        self.n_steps = 0

    def add(self, step: StepResult) -> None:
        """Count a step; the norm of an overflow (fp16, the scaler skips that step) stays out of the mean."""
        self.n_steps += 1
        self._loss += step.loss
        self._tokens += step.tokens
        self._samples += step.samples
        self._cut += step.cut
        if math.isfinite(step.grad_norm):
            self._grad_norms.append(step.grad_norm)
        else:
            self._overflows += 1

    def read(self) -> dict[str, float | None]:
        """Means and counts over all ranks since the last call, for which each rank must ask."""
        loss, tokens, samples, cut = distributed.sum_numbers(self._loss, self._tokens, self._samples, self._cut)
        values = {
            "loss": loss / tokens,
            "grad_norm": sum(self._grad_norms) / len(self._grad_norms) if self._grad_norms else None,
            "overflow_steps": self._overflows,
            "cut_targets": int(cut),
            "samples_per_second": samples / max(time.monotonic() - self._since, 1e-9),
            "memory_gb": peak_memory(self.device) / GB,
        }
        self._clear()
        return values


def shown_values(values: Mapping[str, Any]) -> str:
    """What the bar shows of a reading and its learning rate."""
    return (
        f"loss {values['loss']:.3f}, lr {values['lr']:.1e}, grad norm {values['grad_norm'] or math.nan:.2f}, "
        f"{values['samples_per_second']:.1f} samples/s, memory {values['memory_gb']:.1f} GB"
    )


def shown_duration(seconds: float) -> str:
    """Hours, minutes or seconds, whatever is fitting."""
    for unit, name in ((3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} s"


def peak_memory(device: torch.device) -> int:
    """Bytes that this process has needed at most: of the GPU's memory, or of the machine's on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
