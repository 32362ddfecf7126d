"""The state of a run: written as it trains, taken up again when it goes on."""

import logging
import time
from dataclasses import replace
from typing import Any

from salmonn.common import distributed
from salmonn.common.errors import UserError
from salmonn.common.files import write_json
from salmonn.data.quarantine import Quarantine
from salmonn.model import checkpoint
from salmonn.model.parameter_counts import trainable_parameters
from salmonn.model.salmonn import SALMONN
from salmonn.training.progress import Progress
from salmonn.training.run_folder import Resumed, RunFolder
from salmonn.training.step import NotFiniteError, TrainingStep

logger = logging.getLogger(__name__)


class RunState:
    """What a checkpoint holds: parameters, optimiser and loss scaler, where the run is, what it could not use."""

    def __init__(
        self, folder: RunFolder, model: SALMONN, step: TrainingStep, progress: Progress, quarantine: Quarantine
    ) -> None:
        self.folder, self.model, self.step, self.progress, self.quarantine = folder, model, step, progress, quarantine
        self.is_saved = False  # all that was done up to the last attempt
        self.started_at = self.saved_at = time.monotonic()

    @property
    def seconds(self) -> float:
        """Of training, with those before a run was taken up again."""
        return self.progress.seconds + time.monotonic() - self.started_at

    def restore(self, resumed: Resumed) -> None:
        """Take up the run that a checkpoint holds."""
        path, progress = resumed.path, self.progress
        state = self.folder.take_state(path)
        checkpoint.take_parameters(self.model, state["model"], path)
        try:
            self.step.load_state_dict(state)
        except ValueError as error:
            raise UserError(f"{path}: its optimiser does not fit this configuration ({error})") from error
        self.quarantine.go_on(progress.tried, progress.bad)
        progress.go_on(state["config"]["run"], self.folder.config.run, distributed.world_size())
        logger.info(
            "going on with %s: epoch %d, iteration %d, %d samples seen",
            path, progress.epoch, progress.iteration, progress.samples,
        )  # fmt: skip
        for change in resumed.changes:
            logger.warning("   the configuration has changed: %s", change)

    def save(self, epoch: int, is_best: bool = False) -> None:
        """Write the checkpoint to go on from; one that cannot be written is no reason to end a run."""
        self.quarantine.sync()
        self.saved_at = time.monotonic()
        failed = distributed.is_main() and not self._write(epoch, is_best)
        self.is_saved = not distributed.any_rank(failed)[0]

    def require_saved(self, failure: str) -> None:
        """Raise UserError, which begins with `failure`, if the last checkpoint could not be written."""
        if not self.is_saved:
            raise UserError(
                f"{failure} to {self.folder.path} (see above); make room, and the same command goes on from the last "
                f"checkpoint"
            )

    def _write(self, epoch: int, is_best: bool) -> bool:
        progress = replace(self.progress, seconds=self.seconds, tried=self.quarantine.tried, bad=self.quarantine.bad)
        state = {**self.step.state_dict(), "epoch": epoch, "step": progress.step}
        try:
            if progress.valid:
                write_json(self.folder.path / "summary.json", self._summary(progress))
            if is_best:  # first: killed in between, the epoch is validated again
                self.folder.save_best(self.model, progress, **state)
            self.folder.save(self.model, progress, **state)
        except OSError as error:
            logger.error("NO CHECKPOINT WAS WRITTEN: %s. The one before it is kept; training goes on.", error)
            return False
        return True

    def _summary(self, progress: Progress) -> dict[str, Any]:
        return {
            "steps": progress.step,
            "seconds": round(progress.seconds, 1),
            "trainable_parameters": sum(trainable_parameters(self.model).values()),
            "tried": progress.tried,
            "bad": progress.bad,
            "bad_files": len(self.quarantine.files),
            "valid_loss": progress.valid["loss"],
            "valid_loss_shuffled": progress.valid["loss_shuffled"],
            "best": progress.best,
        }

    def keep_not_finite(self, error: NotFiniteError, epoch: int, iteration: int) -> str:
        """Save what led to a loss or gradients that are not finite; says where, behind a semicolon."""
        if not distributed.is_main():
            return ""
        path = self.folder.path / "not_finite.pth"
        place = {"epoch": epoch, "iteration": iteration, "samples": error.samples}
        try:
            checkpoint.save(path, self.model, problem=str(error), **place, **self.step.state_dict())
        except OSError as full:
            return f"; what gave it could not be saved: {full}"
        return f"; the parameters and the optimiser that gave it are in {path}"
