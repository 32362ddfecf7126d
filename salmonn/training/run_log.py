"""What a run writes down: log lines as JSON and TensorBoard curves."""

import contextlib
import json
import logging
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import torch

from salmonn.common import distributed
from salmonn.common.device import peak_memory
from salmonn.common.files import GB, replacing, whole_lines
from salmonn.training.step import StepResult
from salmonn.training.wandb_log import scalars

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter
    from wandb import Run

logger = logging.getLogger("salmonn")


class RunLog:
    """`log.jsonl` and TensorBoard in a run's folder; does nothing on ranks other than 0.

    `step`: where a run goes on; what its folder says of later steps was not kept and goes. So does a validation of
    this one that the run is to make again: `is_validated` tells that it need not. `wandb`: draws the same curves there.
    """

    def __init__(self, folder: Path, step: int = 0, is_validated: bool = True, wandb: "Run | None" = None) -> None:
        self.folder, self._wandb = folder, wandb
        self._lines: TextIO | None = None
        self._tensorboard: SummaryWriter | None = None
        self._told: set[str] = set()
        if distributed.is_main():
            import tensorboardX

            path = folder / "log.jsonl"
            _keep_until(path, step, is_validated)
            self._lines = path.open("a", encoding="utf-8")
            self._tensorboard = tensorboardX.SummaryWriter(
                str(folder / "tensorboard"), purge_step=step + 1 if step else None
            )

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Add a line `{"kind", "step", **values}`, and a curve `kind/name` per number, `kind/task/name` per task."""
        if self._lines is None or self._tensorboard is None:
            return
        try:
            self._lines.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
            self._lines.flush()
        except OSError as error:
            self._warn_once(f"a line of {self.folder / 'log.jsonl'} could not be written: {error}")
        curves = scalars(kind, values)
        self._draw(self._tensorboard, curves, step)
        if self._wandb and curves:
            self._wandb.log({**curves, "step": step})

    def _draw(self, tensorboard: "SummaryWriter", curves: Mapping[str, float], step: int) -> None:
        # the library's thread dies of a full disk, and its queue then blocks whoever adds to it
        if not tensorboard.file_writer.event_writer._worker.is_alive():
            self._warn_once("TensorBoard's curves stop here: its files cannot be written (disk full?)")
            return
        for name, value in curves.items():
            tensorboard.add_scalar(name, value, step)

    def _warn_once(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            logger.warning("%s; training goes on", message)

    def close(self) -> None:
        """Flush and close the files."""
        if self._lines is None or self._tensorboard is None:
            return
        with contextlib.suppress(OSError):  # told when the line was written
            self._lines.close()
        if self._tensorboard.file_writer.event_writer._worker.is_alive():
            self._tensorboard.close()
        if self._wandb:
            self._wandb.finish()


def _keep_until(path: Path, step: int, is_validated: bool) -> None:
    """Drop the lines about what was not kept, and those that a kill or a full disk has cut."""
    lines = [line for _, line in whole_lines(path)] if path.exists() else []
    with replacing(path) as temporary:
        temporary.write_bytes(b"".join(line for line in lines if _is_kept(line, step, is_validated)))


def _is_kept(line: bytes, step: int, is_validated: bool) -> bool:
    try:
        values = json.loads(line)
        return values["step"] < step or (values["step"] == step and (is_validated or values["kind"] != "valid"))
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


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

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What is done meanwhile is no training, and not in the speed."""
        began = time.monotonic()
        yield
        self._since += time.monotonic() - began

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
