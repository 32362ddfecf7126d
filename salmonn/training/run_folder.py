"""A run's folder: its checkpoints kept by count, and which of them to go on from."""

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from salmonn.common import distributed
from salmonn.common.errors import UserError
from salmonn.common.files import replacing
from salmonn.config.loading import BEST
from salmonn.config.schema import Config
from salmonn.model import checkpoint
from salmonn.training.progress import Progress

logger = logging.getLogger(__name__)

LAST = "checkpoint_last.pth"
_LOCK_SECONDS = 20  # for the ranks of a run that was killed to go
_RUN_FILES = (BEST, "log.jsonl", "summary.json", "quarantine.jsonl", "training_curves.png", "not_finite.pth")


class Resumed(NamedTuple):
    """Where a run goes on."""

    progress: Progress
    path: Path  # of the checkpoint
    changes: list[str]  # of the configuration since: `key: before -> now`


class RunFolder:
    """The folder `run.output_dir`/`run.exp_name`."""

    def __init__(self, config: DictConfig) -> None:
        run = config.run
        self.config = config
        self.path = Path(run.output_dir) / run.exp_name
        if run.evaluate:
            self.path /= "evaluate"  # beside the run that it may be about, which stays as it is
        self.keep = run.keep_checkpoints
        self._state_read: dict[str, Any] | None = None  # of the checkpoint to go on from

    def problems(self) -> list[str]:
        """Why this run may not write here: the folder holds another run, or what it starts from."""
        run, ckpt = self.config.run, self.config.model.ckpt
        if run.evaluate:
            return []
        problems = []
        best = self.path / BEST
        if run.resume == "none" and not run.overwrite and (self.kept() or best.exists()) and not _is_restart():
            problems.append(
                f"{self.path} already holds a run; go on with it (run.resume=auto), choose another run.exp_name, "
                f"or replace it with --options run.overwrite=True"
            )
        elif best.exists() and not run.overwrite and not self.continues():
            problems.append(
                f"{self.path} holds {BEST} but no checkpoint to go on from ({LAST}); choose another run.exp_name, "
                f"or replace it with --options run.overwrite=True"
            )
        if self._names_checkpoint() and not Path(run.resume).is_file():
            problems.append(f"run.resume = {run.resume}: choose auto, none, or a checkpoint that exists")
        if ckpt and Path(ckpt).resolve().parent == self.path.resolve():
            problems.append(
                f"model.ckpt = {ckpt} lies in the folder that this run writes to; choose another run.exp_name "
                f"(to go on with a run, leave model.ckpt as it was)"
            )
        return problems

    def claim(self) -> None:
        """Make the folder and keep other runs out of it. Raises UserError where that cannot be."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock()
        except OSError as error:
            raise UserError(f"run.output_dir = {self.config.run.output_dir}: {error}") from error

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

    def _names_checkpoint(self) -> bool:
        return self.config.run.resume not in ("auto", "none")

    def continues(self) -> bool:
        """Whether this run goes on from a checkpoint, as far as can be said without reading it."""
        run = self.config.run
        if run.evaluate or self._names_checkpoint():
            return not run.evaluate
        return bool(self.kept()) and (_is_restart() or not (run.overwrite or run.resume == "none"))

    def checkpoint_to_resume(self) -> Resumed | None:
        """Where to go on: at the newest usable checkpoint of this folder, or the one of `run.resume`; None: nowhere.

        With `run.resume` PATH, and after a restart by torchrun or Slurm, what the same command has saved
        comes first, whatever it says about a run that was there before. Raises UserError where there
        are checkpoints and none can be read: a run of days is not started anew by accident.
        """
        run = self.config.run
        if not self.continues():
            return None
        named = self._names_checkpoint()
        if (named or _is_restart()) and (own := self._newest(self._is_own)):
            return own
        if (run.overwrite and not named) or run.resume == "none":
            return None
        if named:
            path = Path(run.resume)
            if self.kept() and not run.overwrite and path.resolve().parent != self.path.resolve():
                raise UserError(
                    f"{self.path} already holds another run than run.resume = {path}; choose another run.exp_name, "
                    f"or replace it with --options run.overwrite=True"
                )
            return self._keep_state(path, _read_state(path))
        kept = self.kept()
        found = self._newest()
        if kept and not found:
            raise UserError(
                f"none of the checkpoints in {self.path} can be read ({', '.join(path.name for path in kept)}); "
                f"run.resume=PATH goes on from another one ({BEST} of this folder, for one), run.overwrite=True starts "
                f"anew"
            )
        return found

    def candidates(self) -> list[Path]:
        """Files that this run may go on from, the most likely first; not all of them may be readable."""
        named = [Path(self.config.run.resume)] if self._names_checkpoint() else []
        return [*self.kept(), *named] if self.continues() else []

    def _newest(self, accepted: Callable[[dict[str, Any]], bool] = lambda _: True) -> Resumed | None:
        for path in self.kept():
            try:
                state = _read_state(path)
            except UserError as error:
                logger.warning("%s", error)
                continue
            if accepted(state):
                return self._keep_state(path, state)
        return None

    def _is_own(self, state: dict[str, Any]) -> bool:
        return state["config"] == OmegaConf.to_container(self.config)

    def _keep_state(self, path: Path, state: dict[str, Any]) -> Resumed:
        self._state_read = state
        changes = changed_keys(state["config"], OmegaConf.to_container(self.config))
        return Resumed(Progress(**state["progress"]), path, changes)

    def take_state(self, path: Path) -> dict[str, Any]:
        """What the checkpoint holds; not read again where it was already."""
        state, self._state_read = self._state_read, None
        return _read_state(path) if state is None else state

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
            for path in kept[max(self.keep - 1, 1) :]:  # the newest gives way to the new one by name only
                path.unlink()
            for i, path in reversed(list(enumerate(kept[: self.keep - 1]))):
                path.replace(self.path / f"checkpoint_last-{i + 1}.pth")

    def save_best(self, model: torch.nn.Module, progress: Progress, **state: Any) -> None:
        """Write checkpoint_best.pth."""
        checkpoint.save(self.path / BEST, model, **self._state(progress, state))

    def _state(self, progress: Progress, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "config": OmegaConf.to_container(self.config), "progress": asdict(progress)}


def _is_restart() -> bool:
    """Whether torchrun (--max-restarts) or Slurm (requeue) has started this command before."""
    counts = (os.environ.get(name, "0") for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))
    return any(int(count) > 0 for count in counts)


def _read_state(path: Path) -> dict[str, Any]:
    """A checkpoint that a run can go on from. Raises UserError for any other file."""
    state = checkpoint.read(path)
    if missing := {"optimizer", "scaler", "config", "progress"} - state.keys():
        raise UserError(f"{path} holds parameters but no run to go on with (no {', '.join(sorted(missing))})")
    try:
        Progress(**state["progress"])
    except TypeError as error:
        raise UserError(f"{path} was written by another version of this code ({error})") from error
    _drop_removed_keys(state["config"], path)
    defaults = OmegaConf.create(OmegaConf.to_container(OmegaConf.structured(Config)))
    state["config"] = OmegaConf.to_container(OmegaConf.merge(defaults, state["config"]))  # keys that came later
    return state


_REMOVED = {"run": ("length_grouped",)}  # keys that earlier versions had, by section


def _drop_removed_keys(config: dict[str, Any], path: Path) -> None:
    """Take keys that are gone out of a checkpoint's configuration: a run of an earlier version goes on without them."""
    for section, keys in _REMOVED.items():
        found = config.get(section, {})
        if dropped := [f"{section}.{key} = {found.pop(key)}" for key in keys if key in found]:
            logger.info("%s names keys that are gone; they are left out: %s", path, ", ".join(dropped))


# What may differ in a run that is done without making it another run.
_NOT_OF_THE_RESULT = (
    "run.num_workers", "run.log_freq", "run.save_every", "run.keep_checkpoints", "run.timeout_minutes", "run.device",
    "run.batch_size_eval", "run.resume", "run.overwrite", "run.world_size", "run.dist_url", "generate.", "evaluate.",
    "run.encoder_cache", "run.compile", "model.token", "model.device_8bit",
)  # fmt: skip


def changes_of_the_result(changes: Sequence[str]) -> list[str]:
    """The changes that would have given another model."""
    return [change for change in changes if not change.startswith(_NOT_OF_THE_RESULT)]


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
