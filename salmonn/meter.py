"""What a training log says about the last steps: means, counts, speed."""

import math
import time

from salmonn import distributed


class Meter:
    """Means since the last reading, and the speed."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._loss, self._tokens, self._samples, self._cut = 0.0, 0, 0, 0
        self._grad_norms: list[float] = []
        self._overflows, self._since = 0, time.monotonic()

    def add_loss(self, loss: float, tokens: int, samples: int, cut: int) -> None:
        """Count one micro-batch: mean loss over its target tokens, and targets that lost their end to max_txt_len."""
        self._loss += loss * tokens
        self._tokens += tokens
        self._samples += samples
        self._cut += cut

    def add_grad_norm(self, norm: float) -> None:
        """Count one optimiser step; an overflow (fp16, the scaler skips that step) stays out of the mean."""
        if math.isfinite(norm):
            self._grad_norms.append(norm)
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
        }
        self._clear()
        return values
