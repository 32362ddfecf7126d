"""A run's folder: where a run is, its checkpoints kept by count, and which of them to go on from."""

import logging
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from salmonn import checkpoint, distributed
from salmonn.errors import UserError
from salmonn.files import replacing

logger = logging.getLogger(__name__)

BEST, LAST = "checkpoint_best.pth", "checkpoint_last.pth"
_LOCK_SECONDS = 20  # for the ranks of a run that was killed to go
_RUN_FILES = (BEST, "log.jsonl", "summary.json", "quarantine.jsonl")


@dataclass
class Progress:
    """Where a run is; with parameters, optimiser and scaler it is all that going on takes."""

    epoch: int = 0  # that is being trained
    iteration: int = 0  # micro-batches done in it, per process
    samples: int = 0  # taken from the stream of training data, by all processes
    best: dict[str, Any] = field(default_factory=dict)  # validation of the best epoch
    seconds: float = 0.0  # of training
    tried: int = 0  # entries
    bad: int = 0  # of them


class RunFolder:
    """The folder `run.output_dir`/`run.exp_name`."""

    def __init__(self, config: DictConfig) -> None:
        run = config.run
        self.config = config
        self.path = Path(run.output_dir) / run.exp_name
        if run.evaluate:
            self.path /= "evaluate"  # beside the run that it may be about, which stays as it is
        self.keep = run.keep_checkpoints

    def claim(self) -> None:
        """Make the folder. Raises UserError where it holds a run that may be neither continued nor replaced."""
        run, ckpt = self.config.run, self.config.model.ckpt
        if not run.evaluate:
            if run.resume == "none" and not run.overwrite and self.kept():
                raise UserError(
                    f"{self.path} already holds a run; go on with it (run.resume=auto), choose another run.exp_name, "
                    f"or replace it with --options run.overwrite=True"
                )
            if ckpt and Path(ckpt).resolve().parent == self.path.resolve():
                raise UserError(
                    f"model.ckpt = {ckpt} lies in the folder that this run writes to; choose another run.exp_name "
                    f"(to go on with a run, leave model.ckpt as it was)"
                )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock()
        except OSError as error:
            raise UserError(f"run.output_dir = {run.output_dir}: {error}") from error

    def _lock(self) -> None:
        """Held until this process ends: ranks that outlived their launcher must not write beside a new run."""
        if not distributed.is_main():
            return
        self.lock = FileLock(self.path / ".lock")
        try:
            self.lock.acquire(timeout=_LOCK_SECONDS)
        except Timeout as error:
            raise UserError(
                f"another process is training in {self.path}; end it, or choose another run.exp_name"
            ) from error
        except NotImplementedError:  # a file system without locks
            logger.warning("%s cannot be locked: take care that no second run writes there", self.path)

    def release(self) -> None:
        """Let other processes use the folder."""
        if distributed.is_main():
            self.lock.release()

    def kept(self) -> list[Path]:
        """The checkpoints to go on from, newest first."""
        older = sorted(self.path.glob("checkpoint_last-*.pth"), key=lambda path: int(path.stem.rpartition("-")[2]))
        return [path for path in (self.path / LAST, *older) if path.exists()]

    def checkpoint_to_resume(self) -> Path | None:
        """The newest usable checkpoint of this folder, or the one that `run.resume` names; None for a new run.

        Raises UserError where there are checkpoints and none can be read: a run of days is not
        started anew by accident.
        """
        run = self.config.run
        if run.overwrite or run.resume == "none" or run.evaluate:
            return None
        if run.resume != "auto":
            _read_state(Path(run.resume))
            return Path(run.resume)
        kept = self.kept()
        for path in kept:
            try:
                _read_state(path)
                return path
            except UserError as error:
                logger.warning("%s; trying the checkpoint before it", error)
        if kept:
            raise UserError(
                f"none of the checkpoints in {self.path} can be read ({', '.join(path.name for path in kept)}); "
                f"run.overwrite=True starts anew, run.resume=PATH goes on from another one"
            )
        return None

    def clear(self) -> None:
        """Remove what an earlier run left: nothing of it may be taken for the new run's."""
        for path in (*self.kept(), *(self.path / name for name in _RUN_FILES)):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.path / "tensorboard", ignore_errors=True)

    def save(self, model: torch.nn.Module, progress: Progress, **state: Any) -> None:
        """Write checkpoint_last.pth; the one before becomes checkpoint_last-1.pth, and so on up to `keep` files.

        Killed at any moment, a whole checkpoint is left. Raises OSError when the disk is full; then
        all is as before.
        """
        for left in self.path.glob(".checkpoint_*.tmp"):  # of a process that was killed while it wrote
            left.unlink(missing_ok=True)
        with replacing(self.path / LAST) as temporary:
            checkpoint.write(temporary, model, **self._state(progress, state))
            kept = self.kept()
            for path in kept[self.keep - 1 :]:
                path.unlink()
            for i, path in reversed(list(enumerate(kept[: self.keep - 1]))):
                path.replace(self.path / f"checkpoint_last-{i + 1}.pth")

    def save_best(self, model: torch.nn.Module, progress: Progress, **state: Any) -> None:
        """Write checkpoint_best.pth."""
        checkpoint.save(self.path / BEST, model, **self._state(progress, state))

    def _state(self, progress: Progress, state: dict[str, Any]) -> dict[str, Any]:
        return {
            **state,
            "config": OmegaConf.to_container(self.config),
            "progress": asdict(progress),
        }


def _read_state(path: Path) -> dict[str, Any]:
    """A checkpoint that a run can go on from. Raises UserError for any other file."""
    state = checkpoint.read(path)
    if missing := {"optimizer", "scaler", "config", "progress"} - state.keys():
        raise UserError(f"{path} holds parameters but no run to go on with (no {', '.join(sorted(missing))})")
    return state


def changed_keys(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """What a configuration says otherwise than another: `key: before -> now`."""
    changes = []
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            changes += changed_keys(old, new, f"{prefix}{key}.")
        elif old != new:
            changes.append(f"{prefix}{key}: {old} -> {new}")
    return changes
