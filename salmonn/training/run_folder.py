"""A run's folder: whether a run may write there, its files' names, its checkpoints kept by count."""

import logging
import os
import re
import shutil
import socket
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig

from salmonn.common.errors import UserError
from salmonn.common.files import UNFINISHED, clear_unfinished, make_folder, replacing, unwritable_part
from salmonn.common.spelling import did_you_mean
from salmonn.config.loading import BEST, RESUME
from salmonn.training.wandb_log import WANDB_ID

logger = logging.getLogger(__name__)

LAST = "checkpoint_last.pth"
_LOCK_SECONDS = 60  # for the ranks of a run whose launcher was killed to save and go
_HOLDER = re.compile(r"process \d+ on [\w.-]+")
_RUN_FILES = (BEST, "log.jsonl", "summary.json", "quarantine.jsonl", "training_curves.png", "not_finite.pth", WANDB_ID)


class RunFolder:
    """The folder `run.output_dir`/`run.exp_name`."""

    def __init__(self, config: DictConfig) -> None:
        run = config.run
        self.config = config
        self.path = Path(run.output_dir) / run.exp_name
        if run.evaluate:
            self.path /= "evaluate"  # beside the run that it may be about, which stays as it is
        self.keep = run.keep_checkpoints

    @property
    def taken(self) -> str:
        """What is said where another process is training here."""
        return f"another process is training in {self.path}{self._holder()}; end it, or choose another run.exp_name"

    def _holder(self) -> str:
        """Which process that is, in brackets; "" where it has not said so."""
        try:
            text = self._holder_file.read_text(encoding="utf-8")
        except (OSError, ValueError):
            return ""
        return f" ({text})" if _HOLDER.fullmatch(text) else ""

    @property
    def _holder_file(self) -> Path:
        return self.path / ".holder"

    def problems(self) -> list[str]:
        """Why this run may not write here: the folder holds another run, or what it starts from."""
        run, ckpt = self.config.run, self.config.model.ckpt
        if run.evaluate:
            return []
        problems = []
        if there := unwritable_part(self.path):
            problems.append(f"run.output_dir = {run.output_dir}: {there} is no folder that can be written to")
        best = self.path / BEST
        if run.resume == "none" and not run.overwrite and (self.kept() or best.exists()) and not is_restart():
            problems.append(
                f"{self.path} already holds a run; go on with it (run.resume=auto), choose another run.exp_name, "
                f"or replace it with --options run.overwrite=True"
            )
        elif best.exists() and not run.overwrite and not self.continues():
            problems.append(
                f"{self.path} holds {BEST} but no checkpoint to go on from ({LAST}); choose another run.exp_name, "
                f"or replace it with --options run.overwrite=True"
            )
        if self.names_checkpoint() and not Path(run.resume).is_file():
            inside = Path(run.resume) / LAST
            hint = f"; this folder has {inside}" if inside.is_file() else did_you_mean(run.resume, Path.is_file)
            problems.append(f"run.resume = {run.resume}: choose auto, none, or a checkpoint that exists{hint}")
        if ckpt and Path(ckpt).resolve().parent == self.path.resolve():
            problems.append(
                f"model.ckpt = {ckpt} lies in the folder that this run writes to; choose another run.exp_name "
                f"(to go on with a run, leave model.ckpt as it was)"
            )
        return problems

    def is_taken(self) -> bool:
        """Whether another process is training here now."""
        if not (self.path / ".lock").exists():
            return False
        try:
            with FileLock(self.path / ".lock", timeout=0):
                return False
        except Timeout:
            return True
        except (NotImplementedError, OSError):  # where nothing can be locked nothing is known
            return False

    def claim(self) -> None:
        """Make the folder, keep other runs out of it, and clear what killed ones were writing.

        Raises UserError where that cannot be.
        """
        try:
            make_folder(self.path)
            self._lock()
            if _is_main():
                self._holder_file.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
                clear_unfinished(self.path.rglob(UNFINISHED))
        except OSError as error:
            raise UserError(f"run.output_dir = {self.config.run.output_dir}: {error}") from error

    def _lock(self) -> None:
        """Held until this process ends: ranks that outlived their launcher must not write beside a new run."""
        if not _is_main():
            return
        if self.is_taken():
            logger.info("waiting up to %d s: %s", _LOCK_SECONDS, self.taken)
        self.lock = FileLock(self.path / ".lock")
        try:
            self.lock.acquire(timeout=_LOCK_SECONDS)
        except Timeout as error:
            raise UserError(self.taken) from error
        except NotImplementedError:  # a file system without locks
            logger.warning("%s cannot be locked: take care that no second run writes there", self.path)

    def release(self) -> None:
        """Let other processes use the folder."""
        if _is_main():
            self._holder_file.unlink(missing_ok=True)
            self.lock.release()

    def kept(self) -> list[Path]:
        """The checkpoints to go on from, newest first."""
        numbers = {path: path.stem.removeprefix("checkpoint_last-") for path in self.path.glob("checkpoint_last-*.pth")}
        ours = {path: int(number) for path, number in numbers.items() if re.fullmatch("[0-9]{1,9}", number)}
        return [path for path in (self.path / LAST, *sorted(ours, key=lambda path: ours[path])) if path.exists()]

    def names_checkpoint(self) -> bool:
        """Whether `run.resume` is a checkpoint's path."""
        return self.config.run.resume not in RESUME

    def continues(self) -> bool:
        """Whether this run goes on from a checkpoint, as far as can be said without reading it."""
        run = self.config.run
        if run.evaluate or self.names_checkpoint():
            return not run.evaluate
        return bool(self.kept()) and (is_restart() or not (run.overwrite or run.resume == "none"))

    def candidates(self) -> list[Path]:
        """Files that this run may go on from, the most likely first; not all of them may be readable."""
        named = [Path(self.config.run.resume)] if self.names_checkpoint() else []
        return [*self.kept(), *named] if self.continues() else []

    def clear(self) -> None:
        """Remove what an earlier run left: nothing of it may be taken for the new run's."""
        for path in (*self.kept(), *(self.path / name for name in _RUN_FILES)):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.path / "tensorboard", ignore_errors=True)

    def save(self, content: dict[str, Any]) -> None:
        """Write checkpoint_last.pth; the one before becomes checkpoint_last-1.pth, and so on up to `keep` files.

        Killed at any moment, a whole checkpoint is left. Raises OSError when the disk is full; then
        all is as before.
        """
        from salmonn.model import checkpoint

        with replacing(self.path / LAST) as temporary:
            checkpoint.write_content(temporary, content)
            kept = self.kept()
            for path in kept[max(self.keep - 1, 1) :]:  # the newest gives way to the new one by name only
                path.unlink()
            for i, path in reversed(list(enumerate(kept[: self.keep - 1]))):
                path.replace(self.path / f"checkpoint_last-{i + 1}.pth")

    def save_best(self, content: dict[str, Any]) -> None:
        """Write checkpoint_best.pth."""
        from salmonn.model import checkpoint

        checkpoint.save(self.path / BEST, content)


def _is_main() -> bool:
    from salmonn.common import distributed  # with PyTorch: what is wrong with a folder is told without

    return distributed.is_main()


def is_restart() -> bool:
    """Whether torchrun (--max-restarts) or Slurm (requeue) has started this command before."""
    counts = (os.environ.get(name, "0") for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))
    return any(int(count) > 0 for count in counts)
