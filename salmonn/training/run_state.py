"""The state of a run that trains: saved as a checkpoint, taken up from one."""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from salmonn.common import distributed
from salmonn.common.errors import UserError
from salmonn.common.files import write_json
from salmonn.data.quarantine import Quarantine
from salmonn.model import checkpoint
from salmonn.model.lineage import LINEAGE, Training, lineage_before, lineage_of, written
from salmonn.model.parameter_counts import trainable_parameters
from salmonn.model.salmonn import SALMONN
from salmonn.training.progress import Progress
from salmonn.training.resume import Resumed
from salmonn.training.run_content import DATA, OTHER_SHAPE, Content, build_content, require_optimizer
from salmonn.training.run_folder import RunFolder
from salmonn.training.step import NotFiniteError, TrainingStep

logger = logging.getLogger(__name__)


def lineage_of_run(config: DictConfig, tasks: Sequence[str], content: Content | None) -> list[Training]:
    """The runs that a run's parameters come from, itself the last; `content`: the checkpoint where it goes on."""
    run, model = config.run, config.model
    if run.objective == "ctc":
        tasks = [task for task in tasks if task in run.ctc_tasks]
    this = Training(run.exp_name, Path(config.datasets.train_ann_path).name, tuple(tasks))
    starts = [path for path in (model.speech_llama_proj_model, model.ckpt) if path]
    if content is None:
        return [*(before for path in starts for before in lineage_before(path)), this]
    known = lineage_of(content)  # what the run began from may be gone by now, and is not looked at
    return [*(known[:-1] if known else [Training(Path(path).name) for path in starts]), this]


class RunState:
    """What a checkpoint holds: parameters, optimiser and loss scaler, where the run is, what it could not use."""

    def __init__(
        self, folder: RunFolder, model: SALMONN, step: TrainingStep, progress: Progress, quarantine: Quarantine
    ) -> None:
        self.folder, self.model, self.step, self.progress, self.quarantine = folder, model, step, progress, quarantine
        self.lineage: list[Training] = []  # the runs that the parameters come from, this one the last
        self.annotations: dict[str, str] = {}  # what tells the contents of its annotation files, by key
        self.is_saved = False  # all that was done up to the last attempt
        self.started_at = self.saved_at = time.monotonic()

    @property
    def seconds(self) -> float:
        """Of training, with those before a run was taken up again."""
        return self.progress.seconds + time.monotonic() - self.started_at

    def restore(self, resumed: Resumed, content: Content) -> None:
        """Take up the run that a checkpoint holds."""
        path, progress = resumed.path, self.progress
        checkpoint.take_parameters(self.model, content["model"], path)
        require_optimizer(content, progress, path)
        try:
            self.step.load_state_dict(content)
        except OTHER_SHAPE as error:
            raise UserError(f"{path}: its optimiser does not fit this configuration ({error})") from error
        self.quarantine.go_on(progress.tried, progress.unreadable)
        progress.go_on(content["config"]["run"], self.folder.config.run, distributed.world_size())
        logger.info(
            "going on with %s: epoch %d, iteration %d, %d samples seen",
            path, progress.epoch, progress.epoch_iteration, progress.samples,
        )  # fmt: skip
        for change in resumed.changes:
            logger.warning("   the configuration has changed: %s", change)

    def save(self, epoch: int, is_best: bool = False) -> None:
        """Write the checkpoint to go on from; one that cannot be written is no reason to end a run.

        `is_best`: that of the newest validation, to be kept as the best, too.
        """
        self.quarantine.sync()
        self.saved_at = time.monotonic()
        best_before = self.progress.best
        if is_best:
            self.progress.best = self.progress.valid
        written = self._write(epoch, is_best) if distributed.is_main() else None
        self.is_saved, is_best_kept = distributed.from_main(written)
        if is_best and not is_best_kept:
            self.progress.best = best_before

    def require_saved(self, failure: str) -> None:
        """Raise UserError, which begins with `failure`, if the last checkpoint could not be written."""
        if not self.is_saved:
            raise UserError(
                f"{failure} to {self.folder.path} (see above); make room, and the same command goes on from the last "
                f"checkpoint"
            )

    def _write(self, epoch: int, is_best: bool) -> tuple[bool, bool]:
        """Whether all could be written, and whether the best could."""
        tried, unreadable = self.quarantine.tried, self.quarantine.unreadable
        progress = replace(self.progress, seconds=self.seconds, tried=tried, unreadable=unreadable)
        *before, this = self.lineage or [Training(self.folder.config.run.exp_name)]
        lineage = written([*before, replace(this, step=progress.iteration)])
        more = {"epoch": epoch, "step": progress.iteration, LINEAGE: lineage, DATA: self.annotations}
        content = build_content(self.model, self.folder.config, progress, **self.step.state_dict(), **more)
        is_best_kept = False
        try:
            if progress.valid:
                write_json(self.folder.path / "summary.json", self._summary(progress))
            if is_best:  # first: killed in between, the same is validated again
                self.folder.save_best(content)
                is_best_kept = True
            self.folder.save(content)
        except OSError as error:
            logger.error("NO CHECKPOINT WAS WRITTEN: %s. The one before it is kept; training goes on.", error)
            return False, is_best_kept
        return True, is_best_kept

    def _summary(self, progress: Progress) -> dict[str, Any]:
        return {
            "iterations": progress.iteration,
            "seconds": round(progress.seconds, 1),
            "trainable_parameters": sum(trainable_parameters(self.model).values()),
            "tried": progress.tried,
            "bad": progress.unreadable,
            "bad_files": len(self.quarantine.files),
            "valid_loss": progress.valid.get("loss"),
            "valid_loss_shuffled": progress.valid.get("loss_shuffled"),
            "best": progress.best,
        }

    def keep_not_finite(self, error: NotFiniteError, epoch: int, iteration: int) -> str:
        """Save what led to a loss or gradients that are not finite; says where, behind a semicolon."""
        if not distributed.is_main():
            return ""
        path = self.folder.path / "not_finite.pth"
        place = {"epoch": epoch, "iteration": iteration, "samples": error.samples}
        try:
            state = {"problem": str(error), **place, **self.step.state_dict()}
            checkpoint.save(path, build_content(self.model, self.folder.config, self.progress, **state))
        except OSError as full:
            return f"; what gave it could not be saved: {full}"
        return f"; the parameters and the optimiser that gave it are in {path}"
