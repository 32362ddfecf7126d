"""The training run: one process or many, one of the three stages, from config to best checkpoint."""

import contextlib
import itertools
import logging
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from salmonn import checkpoint, distributed
from salmonn.compiled import compile_blocks
from salmonn.dataset import SALMONNDataset
from salmonn.encoder_cache import open_cache
from salmonn.errors import UserError
from salmonn.loader import eval_loader, train_loader
from salmonn.meter import Meter, shown_duration, shown_values
from salmonn.model import SALMONN
from salmonn.optim import learning_rate
from salmonn.plan import make_plan, shown, trainable_parameters
from salmonn.preflight import refuse, run_problems
from salmonn.quarantine import Quarantine
from salmonn.run_folder import Progress, Resumed, RunFolder, changes_of_the_result
from salmonn.run_log import RunLog, setup_logging, write_json
from salmonn.seeding import seed_everything, seed_step
from salmonn.stop_request import StopRequest
from salmonn.training_curves import plot_curves, read_log
from salmonn.training_data import open_datasets
from salmonn.training_step import NotFiniteError, StepResult, TrainingStep
from salmonn.validation import report_listening, validate

logger = logging.getLogger(__name__)

MEASURED_STEPS = 10  # after which the speed is believed and the hours that are left are told


class Runner:
    """Trains (or only evaluates) the model that a config describes; `Runner(config).run()` is all."""

    ddp_model: torch.nn.Module  # there from `prepare` to `close`
    log: RunLog  # there once the run writes

    def __init__(self, config: DictConfig) -> None:
        """Check all that the config names, join the process group, find where to go on. Raises UserError."""
        self.config, self.run_config = config, config.run
        self.run_folder = RunFolder(config)
        self.folder = self.run_folder.path
        setup_logging()
        if distributed.is_local_main():  # one process looks; the others wait for it where all join
            refuse(run_problems(config))
        self.device = distributed.init(config)
        self.run_folder.claim()
        newest = self.run_folder.checkpoint_to_resume() if distributed.is_main() else None
        found: Resumed | None = distributed.from_main(newest)  # None: a new run
        self.progress = found.progress if found else Progress(processes=distributed.world_size())
        self.resume_from = found.path if found else None
        self.changes = found.changes if found else []
        self.quarantine = Quarantine(self.folder, config.datasets.max_bad_fraction)
        self.stop_request = StopRequest()
        self.is_saved = False  # all that was done up to the last attempt

    def run(self) -> bool:
        """Train and validate, or with `run.evaluate` only validate; False when a signal ended it early."""
        try:
            if self.run_config.evaluate:
                self.evaluate()
                return True
            if self.progress.epoch < self.run_config.optims.max_epoch:
                self.prepare()
                if not self.train():
                    return False
            elif changes := changes_of_the_result(self.changes):
                raise UserError(
                    "\n  ".join([f"{self.folder} holds a run that is done, with another configuration:", *changes])
                    + "\nNothing was trained: choose another run.exp_name, or replace it with run.overwrite=True"
                )
            logger.info("all %d epochs are done: %s", self.progress.epoch, self.folder)
            self._draw_curves()
            return True
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the log, the folder and the processes' reducer."""
        if hasattr(self, "log"):
            self.log.close()
        if hasattr(self, "ddp_model"):
            # DDP's reducer must go before its process group: taken down together, gloo can deadlock.
            del self.ddp_model
        self.run_folder.release()

    def train(self) -> bool:
        """All epochs that are left; False when a signal ended them, after saving."""
        with self.stop_request:
            while self.progress.epoch < self.run_config.optims.max_epoch:
                if not self.train_epoch(self.progress.epoch) or not self._finish_epoch(self.progress.epoch):
                    return False
        if not self.is_saved:
            raise UserError(
                f"all epochs are done, but their result could not be written to {self.folder} (see above); "
                f"make room, and the same command goes on from the last checkpoint"
            )
        if stopped := self._is_stopped():  # while the last checkpoint was written
            self._tell_stop()
        return not stopped

    def train_epoch(self, epoch: int) -> bool:
        """What is left of an inner epoch: an optimiser step after each group of micro-batches.

        Returns False when a signal ended it.
        """
        self.model.train()
        accumulate, n_iters = self.run_config.accum_grad_iters, self.plan.iters_per_epoch
        first = self.progress.iteration
        progress_bar = tqdm(
            range(first, n_iters), desc=f"epoch {epoch}", initial=first, total=n_iters,
            disable=not distributed.is_main(), mininterval=1.0,
        )  # fmt: skip
        meter, due = Meter(self.device), False
        for i in progress_bar:
            lr = learning_rate(self.run_config.optims, n_iters, epoch, i)
            if self._is_stopped():  # each micro-batch asks: torchrun and Slurm wait for 30 s only
                self.step.abandon()
                if meter.n_steps:  # the same on every rank
                    self._report(progress_bar, {"epoch": epoch, "lr": lr, **meter.read(), **self.quarantine.sync()})
                self._stop(epoch)
                return False
            self.step.set_learning_rate(lr)
            samples = self._next_samples()
            seed_step(self.run_config.seed, epoch * n_iters + i, distributed.rank())

            group_start = i - i % accumulate
            group_size = min(accumulate, n_iters - group_start)  # the last group may be smaller
            is_last = i == group_start + group_size - 1
            with contextlib.nullcontext() if is_last else self._no_sync():
                with self.autocast():
                    result = self.ddp_model(samples, verbose=True)
                self.step.backward(result, samples["id"], group_size)
            due = due or (i + 1) % self.run_config.log_freq == 0 or i + 1 == n_iters
            if not is_last:
                continue
            meter.add(self._finish_step(epoch, i, group_size))
            if due:
                due = False
                values = {"epoch": epoch, "lr": lr, **meter.read(), **self.quarantine.sync()}
                self._report(progress_bar, values)
            self._save_if_due(epoch)
            if self._is_validation_due():
                self.validate(self.datasets["valid_ann_path"], epoch, self.progress.step)
                self.model.train()
        return True

    def validate(self, dataset: SALMONNDataset, epoch: int, step: int) -> dict[str, Any] | None:
        """Loss and token accuracy, in all and per task, and the same with the audio shuffled between samples.

        None when a signal interrupted it.
        """
        rank, world_size = distributed.rank(), distributed.world_size()
        loader = eval_loader(dataset, self.run_config.batch_size_eval, self.run_config.num_workers, rank, world_size)
        batches = itertools.takewhile(lambda _: not self.stop_request.name, loader)
        with self.autocast():
            result = validate(self.model, batches, self.quarantine)
        if self._is_stopped():
            return None
        if result is None:
            raise UserError("no validation clip could be read: check datasets.valid_ann_path and datasets.prefix")
        report_listening(result, epoch, past_warmup=step >= self.run_config.optims.warmup_steps)
        self.log.write("valid", step, epoch=epoch, **result)
        return result

    def evaluate(self) -> None:
        """Only validate, on the test set."""
        self._load()
        self._open_log()
        result, counts = self.validate(self.datasets["test_ann_path"], epoch=0, step=0), self.quarantine.sync()
        if distributed.is_main() and result:
            write_json(self.folder / "summary.json", result | counts)

    def autocast(self) -> torch.autocast:
        """Mixed precision as configured."""
        return distributed.autocast(self.run_config, self.device)

    def _draw_curves(self) -> None:
        log, picture = self.folder / "log.jsonl", self.folder / "training_curves.png"
        if distributed.is_main() and log.exists():
            try:
                plot_curves(read_log(log), picture, str(self.folder))
            except (OSError, UserError) as error:  # a full disk, and what it left of the log
                logger.warning("%s could not be drawn: %s", picture, error)

    # ---- set-up

    def prepare(self) -> None:
        """Everything that training needs: data, model, optimiser, the state of the run that goes on."""
        self._load()
        run = self.run_config
        self.step = TrainingStep(self.model, run, self.device)
        if self.resume_from:
            self._restore(self.resume_from)
        # an encoder that is trained drops layers, each rank others
        drops_layers = not (self.config.model.freeze_whisper and self.config.model.freeze_beats)
        self.ddp_model = distributed.wrap(self.model, self.device, find_unused_parameters=drops_layers)
        train_set = self.datasets["train_ann_path"]
        rank, world_size = distributed.rank(), distributed.world_size()
        self.plan = make_plan(run, len(train_set), world_size)
        # the mean over a step's tokens is the same however the step is cut into micro-batches
        sorts_steps = run.accum_grad_iters > 1 and run.loss_average == "token" and not run.length_grouped
        loader = train_loader(
            train_set,
            run.batch_size_train,
            run.num_workers,
            rank,
            world_size,
            run.seed,
            first_sample=self.progress.samples,
            length_grouped=run.length_grouped,
            steps=self.plan.step_sizes(self.progress.iteration) if sorts_steps else None,
        )
        self.batches: Iterator[dict[str, Any]] = iter(loader)
        self._open_log()
        self.started_at = self.saved_at = time.monotonic()
        self.first_sample, self.told_hours = self.progress.samples, False
        logger.info(
            "%s: %d training and %d validation samples, %d processes",
            self.folder, len(train_set), len(self.datasets["valid_ann_path"]), world_size,
        )  # fmt: skip
        logger.info("   %s", shown(trainable_parameters(self.model)))
        logger.info("   %s", self.plan)
        if self.config.model.lora_scaling is not None:
            logger.warning(
                "training with model.lora_scaling = %g; checkpoints do not remember it", self.config.model.lora_scaling
            )
        if self.plan.iters_per_epoch < run.optims.warmup_steps:
            logger.warning(
                "run.optims.warmup_steps = %d is longer than an epoch of %d iterations: the ramp begins anew in each, "
                "as in the published code",
                run.optims.warmup_steps,
                self.plan.iters_per_epoch,
            )
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def _load(self) -> None:
        """Data and model. The data first: what is wrong with it is known before any weight is read."""
        self.datasets = open_datasets(self.config)
        model = self.config.model
        if self.resume_from:  # holds all parameters
            model = OmegaConf.merge(model, {"ckpt": "", "speech_llama_proj_model": ""})
        seed_everything(self.run_config.seed)  # the same on every rank: all build the same model
        self.model = SALMONN.from_config(model, self.device)
        if self.run_config.compile:
            compile_blocks(self.model, self.device)
        for dataset in self.datasets.values():
            dataset.max_seconds = self.model.max_seconds
        self.model.encoder_cache = open_cache(self.config, self.model, sum(map(len, self.datasets.values())))

    def _restore(self, path: Path) -> None:
        """Take up the run that a checkpoint holds: parameters, optimiser, scaler, and where it was."""
        state = self.run_folder.take_state(path)
        checkpoint.take_parameters(self.model, state["model"], path)
        try:
            self.step.load_state_dict(state)
        except ValueError as error:
            raise UserError(f"{path}: its optimiser does not fit this configuration ({error})") from error
        self.quarantine.go_on(self.progress.tried, self.progress.bad)
        self._take_place(state["config"]["run"])
        logger.info(
            "going on with %s: epoch %d, iteration %d, %d samples seen",
            path, self.progress.epoch, self.progress.iteration, self.progress.samples,
        )  # fmt: skip
        for change in self.changes:
            logger.warning("   the configuration has changed: %s", change)

    def _take_place(self, run_before: Mapping[str, Any]) -> None:
        """On another number of processes the samples go on where they were; so does an epoch that is a pass."""
        progress, run, now = self.progress, self.run_config, distributed.world_size()
        if progress.processes != now:
            logger.warning(
                "number of processes: %d instead of %d; the samples go on where they were, in another effective batch",
                now,
                progress.processes,
            )
        samples_before, samples_now = run_before["batch_size_train"] * progress.processes, run.batch_size_train * now
        if run.epoch_based and samples_before != samples_now:
            progress.iteration = progress.iteration * samples_before // samples_now
        if samples_before != samples_now or run_before["accum_grad_iters"] != run.accum_grad_iters:
            progress.iteration -= progress.iteration % run.accum_grad_iters  # a step begins with its first micro-batch
        progress.processes = now

    def _open_log(self) -> None:
        """Start writing; only now, when all is well, does an earlier run in the folder give way."""
        if distributed.is_main():
            if not self.resume_from:
                self.run_folder.clear()
            OmegaConf.save(self.config, self.folder / "config.yaml")
            if self.config.datasets.quarantine and not self.resume_from:
                self.quarantine.take_over(self.config.datasets.quarantine)
        self.log = RunLog(self.folder, self.progress.step)

    # ---- parts of a step

    def _next_samples(self) -> dict[str, Any]:
        samples = next(self.batches)
        self.quarantine.add(samples)
        if not samples["text"]:
            last = samples["broken"][-1]
            raise UserError(
                f"{self.config.datasets.train_ann_path}: hardly a clip can be read, e.g. {last.path}: "
                f"{last.reason}. Check datasets.prefix = {self.config.datasets.prefix!r}, and see "
                f"python util/anns_inspector.py --help"
            )
        return samples

    def _no_sync(self) -> contextlib.AbstractContextManager:
        """No all-reduce while a group of micro-batches is still being accumulated."""
        model = self.ddp_model
        return model.no_sync() if isinstance(model, DistributedDataParallel) else contextlib.nullcontext()

    def _finish_step(self, epoch: int, i: int, group_size: int) -> StepResult:
        """Raises RuntimeError, after saving what led to it, when loss or gradients are not finite."""
        try:
            result = self.step.finish(group_size)
        except NotFiniteError as error:
            place = {"epoch": epoch, "iteration": i, "samples": error.samples}
            path, kept = self.folder / "not_finite.pth", ""
            if distributed.is_main():
                try:
                    checkpoint.save(path, self.model, problem=str(error), **place, **self.step.state_dict())
                    kept = f"; the parameters and the optimiser that gave it are in {path}"
                except OSError as full:
                    kept = f"; what gave it could not be saved: {full}"
            raise RuntimeError(f"{error}, epoch {epoch}, iteration {i}, samples {error.samples}{kept}") from error
        self.progress.iteration = i + 1
        self.progress.step += group_size
        self.progress.samples += group_size * self.run_config.batch_size_train * distributed.world_size()
        return result

    def _report(self, progress_bar: tqdm, values: dict[str, Any]) -> None:
        """Write down and show what the last steps gave; once the speed is known, tell the hours that are left."""
        speed = values["samples_per_second"]
        iterations_left = (self.plan.epochs - self.progress.epoch) * self.plan.iters_per_epoch - self.progress.iteration
        seconds = iterations_left * self.plan.samples_per_iteration / speed
        self.log.write("train", self.progress.step, **values, hours_left=seconds / 3600)
        progress_bar.set_postfix_str(f"{shown_values(values)}, {shown_duration(seconds)} left")
        measured = (self.progress.samples - self.first_sample) / self.plan.effective_batch
        if not self.told_hours and measured >= MEASURED_STEPS:
            self.told_hours = True
            logger.info("%.1f samples/s: what is left of this run takes about %s", speed, shown_duration(seconds))

    # ---- results

    def _save_if_due(self, epoch: int) -> None:
        """Save by steps, by the clock of any rank, and before validation."""
        every, minutes = self.run_config.save_every_steps, self.run_config.save_every_minutes
        steps_done = math.ceil(self.progress.iteration / self.run_config.accum_grad_iters)
        is_end = self.progress.iteration == self.plan.iters_per_epoch
        by_steps = bool(every) and steps_done % every == 0
        by_clock = bool(minutes) and time.monotonic() - self.saved_at > 60 * minutes
        if distributed.any_rank(is_end or by_steps or by_clock)[0]:
            self.quarantine.sync()
            self._save(epoch)

    def _is_validation_due(self) -> bool:
        """Inside an epoch only: at its end there is one anyway, and the best checkpoint is of that."""
        every, iteration = self.run_config.valid_every_steps, self.progress.iteration
        steps_done = math.ceil(iteration / self.run_config.accum_grad_iters)
        return bool(every) and steps_done % every == 0 and iteration < self.plan.iters_per_epoch

    def _is_stopped(self) -> bool:
        return distributed.any_rank(bool(self.stop_request.name))[0]

    def _stop(self, epoch: int) -> None:
        """Save, because a signal ends the run. Raises UserError when that cannot be done."""
        self.quarantine.sync()
        self._save(epoch)
        if not self.is_saved:
            raise UserError(
                f"stopped by a signal, but nothing could be written to {self.folder} (see above); make room, and the "
                f"same command goes on from the last checkpoint"
            )
        self._tell_stop()

    def _tell_stop(self) -> None:
        reason = self.stop_request.name or "a signal to another rank"
        logger.warning("stopped by %s after step %d; the same command goes on from there", reason, self.progress.step)

    def _finish_epoch(self, epoch: int) -> bool:
        """Validate, and save; the best checkpoint is the one of highest token accuracy.

        Returns False when a signal interrupted it: then the run goes on with this validation.
        """
        result = self.validate(self.datasets["valid_ann_path"], epoch, self.progress.step)
        counts = self.quarantine.sync()
        if self.model.encoder_cache:
            self.model.encoder_cache.report()
        if result is None:
            self._stop(epoch)
            return False
        best_before = self.progress.best
        is_best = not best_before or result["accuracy"] > best_before["accuracy"]
        self.progress.valid = {"epoch": epoch, **result}
        if is_best:
            self.progress.best = self.progress.valid
        self.progress.epoch, self.progress.iteration = epoch + 1, 0
        self._save(epoch, is_best)
        if not self.is_saved:
            self.progress.best = best_before
        seconds = self._seconds()
        logger.info(
            "epoch %d done, %.0f s since the run began; unusable files so far: %d", epoch, seconds, counts["bad_files"]
        )
        return True

    def _save(self, epoch: int, is_best: bool = False) -> None:
        """Write the checkpoint to go on from; one that cannot be written is no reason to end a run."""
        self.saved_at = time.monotonic()
        failed = distributed.is_main() and not self._write_files(epoch, is_best)
        self.is_saved = not distributed.any_rank(failed)[0]

    def _write_files(self, epoch: int, is_best: bool) -> bool:
        progress = replace(self.progress, seconds=self._seconds(), tried=self.quarantine.tried, bad=self.quarantine.bad)
        state = {**self.step.state_dict(), "epoch": epoch, "step": progress.step}
        try:
            if progress.valid:
                write_json(self.folder / "summary.json", self._summary(progress))
            if is_best:  # first: killed in between, the epoch is validated again
                self.run_folder.save_best(self.model, progress, **state)
            self.run_folder.save(self.model, progress, **state)
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

    def _seconds(self) -> float:
        """Of training, with those before a run was taken up again."""
        return self.progress.seconds + time.monotonic() - self.started_at
