"""The training run: one process or many, one of the three stages, from config to best checkpoint."""

import contextlib
import logging
import time
from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from salmonn.common import distributed
from salmonn.common.device import autocast, seed_everything, seed_step
from salmonn.common.errors import UserError
from salmonn.common.files import write_json
from salmonn.common.logging import setup_logging
from salmonn.common.samples import Samples
from salmonn.common.screen import counted
from salmonn.config.stored import written_config
from salmonn.data.dataset import SALMONNDataset
from salmonn.data.loader import LoadingError, eval_loader, open_datasets, train_loader
from salmonn.data.quarantine import Quarantine
from salmonn.model.alignment import build_model, set_ctc_weight
from salmonn.model.compilation import compile_blocks
from salmonn.model.encoder_cache import open_cache
from salmonn.model.meta_model import heard_seconds
from salmonn.model.sharding import is_sharded
from salmonn.training.curves import draw_curves
from salmonn.training.optim import learning_rate
from salmonn.training.progress import Progress, log_plan, make_plan
from salmonn.training.resume import Resumed, find_resumed, mend_best
from salmonn.training.run_content import Content, read_content
from salmonn.training.run_folder import RunFolder
from salmonn.training.run_log import Meter, RunLog, shown_duration, shown_values
from salmonn.training.run_state import RunState, lineage_of_run
from salmonn.training.step import NotFiniteError, StepResult, TrainingStep
from salmonn.training.stop_signal import StopRequest
from salmonn.training.token_batches import Budget, micro_batches
from salmonn.training.token_budget import token_budget
from salmonn.training.validation import report_listening, report_too_long, validate
from salmonn.training.wandb_log import open_wandb

logger = logging.getLogger(__name__)

MEASURED_STEPS = 10  # after which the speed is believed and the hours that are left are told


class MicroBatch(NamedTuple):
    """What of a step is computed at once."""

    samples: Samples
    is_last: bool
    iteration: int  # of the epoch
    part: int = 0  # of the iteration, where a step is cut by tokens


class Runner:
    """Trains (or only evaluates) the model that a config describes; `Runner(config).run()` is all."""

    ddp_model: torch.nn.Module  # there from `prepare` to `close`
    budget: Budget | None  # of a micro-batch; None: as loaded
    batches: Generator[Samples]  # there from `prepare` on
    log: RunLog  # there once the run writes

    def __init__(self, config: DictConfig) -> None:
        """Join the process group, find where to go on; `config` has passed `require_all_ready`. Raises UserError."""
        self.config, self.run_config = config, config.run
        self.run_folder = RunFolder(config)
        self.folder = self.run_folder.path
        setup_logging()
        self.device = distributed.init(config)
        self.run_folder.claim()
        found = find_resumed(self.run_folder) if distributed.is_main() else None
        self.resumed: Resumed | None = distributed.from_main(found and found[0])  # None: a new run
        self.content: Content | None = found and found[1]  # of the checkpoint, where this rank has read it already
        self.progress = self.resumed.progress if self.resumed else Progress(processes=distributed.world_size())
        self.quarantine = Quarantine(self.folder, config.datasets.max_bad_fraction)
        self.stop_request = StopRequest()
        self.told_too_long = False  # the transcripts are the same in each validation
        self.failure: LoadingError | None = None  # of this rank's loader: told once all ranks have stopped and saved

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
            logger.info("training is done, %s: %s", counted(self.progress.epoch, "epoch"), self.folder)
            if distributed.is_main():
                draw_curves(self.folder)
            if problem := self._mend_best():
                raise UserError(
                    f"{problem}\nNo other checkpoint in {self.folder} is of its step {self.progress.best.get('step')}: "
                    f"name another one there where this one was to be used, or train again (run.overwrite=True)"
                )
            return True
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the loader, the log, the folder and the processes' reducer."""
        if hasattr(self, "batches"):
            self.batches.close()
        if hasattr(self, "log"):
            self.log.close()
        if hasattr(self, "ddp_model"):
            # DDP's reducer must go before its process group: taken down together, gloo can deadlock.
            del self.ddp_model
        self.run_folder.release()

    # ---- the training loop

    def train(self) -> bool:
        """All epochs that are left; False when a signal ended them, after saving.

        Raises LoadingError, after saving too, when a rank's loader failed.
        """
        with self.stop_request:
            while self.progress.epoch < self.run_config.optims.max_epoch:
                if not (self.train_epoch(self.progress.epoch) and self._finish_epoch(self.progress.epoch)):
                    if self.progress.iteration == 0:
                        self.raise_failure()  # unsaved: a checkpoint of nothing would bind the next try to this data
                    self.state.save(self.progress.epoch)
                    self.state.require_saved("stopped by a signal, but nothing could be written")
                    break
        self.state.require_saved("all epochs are done, but their result could not be written")
        if stopped := self._is_stopped():  # also while the last checkpoint was written
            self.raise_failure("\nWhat was done until then is saved: the same command goes on from there")
            reason, iteration = self.stop_request.name or "a signal to another rank", self.progress.iteration
            logger.warning("stopped by %s after iteration %d; the same command goes on from there", reason, iteration)
        return not stopped

    def train_epoch(self, epoch: int) -> bool:
        """What is left of an inner epoch: an optimiser step after each group of micro-batches.

        Returns False when a signal ended it.
        """
        self.model.train()
        if self._is_best_inside(epoch):  # a run that was stopped before it could validate here
            self.state.save(epoch, is_best=True)
        meter = Meter(self.device)
        with self._progress_bar(epoch) as progress_bar:
            for group in self.plan.steps(self.progress.epoch_iteration):
                lr = learning_rate(self.run_config.optims, self.plan.iters_per_epoch, epoch, group[-1])
                self.step.set_learning_rate(lr)
                for batch in self._micro_batches(epoch, group):
                    # each micro-batch asks: torchrun and Slurm wait for 30 s only
                    if distributed.any_rank(batch is None)[0] or batch is None:
                        self.step.abandon()
                        if meter.n_steps:  # the same on every rank
                            self._report(progress_bar, meter, lr)
                        return False
                    self._add_micro_batch(batch, epoch, len(group))
                meter.add(self._finish_step(epoch, group))
                progress_bar.update(len(group))
                if self._is_log_due(group):
                    self._report(progress_bar, meter, lr)
                with meter.paused():
                    is_best = self._is_best_inside(epoch)
                if is_best or self._is_save_due():
                    self.state.save(epoch, is_best)
        return True

    def _micro_batches(self, epoch: int, group: range) -> Iterator[MicroBatch | None]:
        """Those of a step; None where the run is to stop."""
        if self.budget is None:
            for i in group:
                samples = self._next_samples()
                yield None if samples is None else MicroBatch(samples, i == group[-1], i)
            return
        loaded = [self._next_samples() for _ in group]
        if distributed.any_rank(None in loaded)[0]:
            yield None
            return
        self._seed(epoch, group[0])  # of the prompts
        clips = [samples for samples in loaded if samples]
        batches = micro_batches(self.model, clips, self.budget)
        for part, samples in enumerate(batches):
            # not numbered as iterations: there may be more than the step has, and the next ones are the next step's
            batch = MicroBatch(samples, part + 1 == len(batches), group[0], part)
            yield None if self.stop_request.name else batch

    def _add_micro_batch(self, batch: MicroBatch, epoch: int, group_size: int) -> None:
        """Forward and backward; with the last micro-batch of a group the ranks average their gradients."""
        iteration = self._seed(epoch, batch.iteration, batch.part)
        set_ctc_weight(self.model, self.run_config, iteration / (self.plan.epochs * self.plan.iters_per_epoch))
        with contextlib.nullcontext() if batch.is_last else self._no_sync():
            with self.autocast():
                result = self.ddp_model(batch.samples, verbose=True)
            self.step.backward(result, batch.samples["id"], group_size)

    def _seed(self, epoch: int, i: int, part: int = 0) -> int:
        """Make what an epoch's micro-batch draws depend on its number alone, which is returned without the part's."""
        iteration = epoch * self.plan.iters_per_epoch + i
        seed_step(self.run_config.seed, iteration, distributed.rank(), part)
        return iteration

    def _finish_step(self, epoch: int, group: range) -> StepResult:
        """Raises RuntimeError, after saving what led to it, when loss or gradients are not finite."""
        try:
            result = self.step.finish(len(group))
        except NotFiniteError as error:
            kept = self.state.keep_not_finite(error, epoch, group[-1])
            place = f"epoch {epoch}, iteration {group[-1]}, samples {error.samples}"
            raise RuntimeError(f"{error}, {place}{kept}") from error
        self.progress.epoch_iteration = group.stop
        self.progress.iteration += len(group)
        self.progress.samples += len(group) * self.plan.samples_per_iteration
        return result

    def _finish_epoch(self, epoch: int) -> bool:
        """Validate, and save; False when a signal interrupted it: then the run goes on with this validation."""
        is_best = self._is_best(epoch)
        if self.model.encoder_cache:
            self.model.encoder_cache.report()
        if is_best is None:
            return False
        self.progress.epoch, self.progress.epoch_iteration = epoch + 1, 0
        self.state.save(epoch, is_best)
        seconds, n_unreadable = self.state.seconds, len(self.quarantine.files)
        logger.info(
            "epoch %d done, %.0f s since the run began; unreadable files so far: %d", epoch, seconds, n_unreadable
        )
        return True

    # ---- validation

    def _is_best(self, epoch: int) -> bool | None:
        """Validate: whether this is the best so far (`Progress.is_best`). None when a signal or failure came."""
        if self._is_stopped():
            return None
        result = self.validate(self.datasets["valid_ann_path"], epoch, self.progress.iteration)
        if result is None:
            return None
        self.progress.valid = {"epoch": epoch, "step": self.progress.iteration, **result}
        return self.progress.is_best()

    def _is_best_inside(self, epoch: int) -> bool:
        """The same in the middle of an epoch, where a validation is due."""
        if not self._is_validation_due():
            return False
        is_best = self._is_best(epoch)
        self.model.train()
        return bool(is_best)

    def _mend_best(self) -> str:
        """What is wrong with the best checkpoint and cannot be mended, on every rank."""
        return distributed.from_main(distributed.is_main() and mend_best(self.run_folder, self.progress.best))

    def validate(self, dataset: SALMONNDataset, epoch: int, step: int) -> dict[str, Any] | None:
        """Loss and token accuracy, in all and per task, and the same with the audio shuffled between samples.

        None when a signal or a rank's loader interrupted it.
        """
        run, ranks = self.run_config, (distributed.rank(), distributed.world_size())
        loader = eval_loader(dataset, run.batch_size_eval, run.num_workers, *ranks, **self._loader_options())
        with self.autocast(), contextlib.closing(self._until_failure(loader)) as batches:
            result = validate(self.model, batches, self.quarantine)
        if self._is_stopped():
            return None
        if result is None:
            raise UserError("no validation clip could be read: check datasets.valid_ann_path and datasets.prefix")
        report_listening(result, epoch, past_warmup=run.evaluate or step >= run.optims.warmup_steps)
        if result.get("too_long") and not self.told_too_long:
            self.told_too_long = True
            report_too_long(result)
        self.log.write("valid", step, epoch=epoch, **result)
        return result

    def evaluate(self) -> None:
        """Only validate, on the test set."""
        self._load()
        self._open_log()
        result, counts = self.validate(self.datasets["test_ann_path"], epoch=0, step=0), self.quarantine.sync()
        self.raise_failure()
        if distributed.is_main() and result:
            write_json(self.folder / "summary.json", result | counts)

    # ---- set-up

    def prepare(self) -> None:
        """Everything that training needs: data, model, optimiser, the state of the run that goes on."""
        self._load()
        # before the optimiser's state is loaded: a resumed run measures the memory of a new one
        changes = self.resumed.changes if self.resumed else []
        self.budget = token_budget(self.model, self.run_config, self.device, self.progress, changes)
        self.step = TrainingStep(self.model, self.run_config, self.device)
        self.state = RunState(self.run_folder, self.model, self.step, self.progress, self.quarantine)
        train_set = self.datasets["train_ann_path"]
        content = self.content or read_content(self.resumed.path) if self.resumed else None
        self.state.annotations = {key: dataset.content for key, dataset in self.datasets.items()}
        self.state.lineage = lineage_of_run(self.config, train_set.tasks, content)
        if self.resumed and content:
            self.state.restore(self.resumed, content)
            self.content = content = None  # its memory is needed
            if problem := self._mend_best():
                logger.warning("%s: the best of what comes is kept instead", problem)
                self.progress.best = {}
        # an encoder that is trained drops layers, each rank others
        drops_layers = not (self.config.model.freeze_whisper and self.config.model.freeze_beats)
        self.ddp_model = distributed.wrap(self.model, self.device, drops_layers, is_sharded(self.model))
        self.plan = make_plan(self.run_config, len(train_set), distributed.world_size())
        self.batches = self._training_batches(train_set)
        self._open_log()
        self.first_sample, self.told_hours = self.progress.samples, False
        samples = f"{len(train_set)} training and {len(self.datasets['valid_ann_path'])} validation samples"
        logger.info("%s: %s, %s", self.folder, samples, counted(distributed.world_size(), "process", "processes"))
        model = self.config.model
        if not (self.resumed or model.ckpt or model.speech_llama_proj_model):
            logger.info("   nothing trained to start from (model.ckpt is empty): connector and LoRA begin at random")
        log_plan(self.plan, self.config, self.model)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self.state.started_at = time.monotonic()  # what was read and opened until here is no training

    def _load(self) -> None:
        """Data and model. The data first: what is wrong with it is known before any weight is read."""
        self.datasets = open_datasets(self.config, heard_seconds(self.config.model))
        model = self.config.model
        if self.resumed:  # the checkpoint holds all parameters
            model = OmegaConf.merge(model, {"ckpt": "", "speech_llama_proj_model": ""})
        seed_everything(self.run_config.seed)  # the same on every rank: all build the same model
        self.model = build_model(model, self.run_config, self.device)
        if self.run_config.compile:
            compile_blocks(self.model, self.device)
        self.model.encoder_cache = open_cache(self.config, self.model, sum(map(len, self.datasets.values())))
        self.model.hold_encoders_rounded(self.run_config)

    def _training_batches(self, dataset: SALMONNDataset) -> Generator[Samples]:
        """This rank's micro-batches without end, from where the run is."""
        run, plan = self.run_config, self.plan
        is_cut = self.budget is not None
        # the mean over a step's tokens is the same however the step is cut into micro-batches
        sorts_steps = run.loss_average == "token" and (run.accum_grad_iters > 1 or is_cut)
        loader = train_loader(
            dataset,
            run.batch_size_train,
            run.num_workers,
            distributed.rank(),
            distributed.world_size(),
            run.seed,
            first_sample=self.progress.samples,
            steps=plan.step_sizes(self.progress.epoch_iteration) if sorts_steps else None,
            dealt=1 if is_cut else None,
            **self._loader_options(),
        )
        return self._until_failure(loader)

    def _loader_options(self) -> dict[str, Any]:
        """A loader ends when a signal comes, also while a batch is waited for."""
        timeout = self.run_config.loader_timeout_minutes
        return {"stopped": lambda: bool(self.stop_request.name), "timeout_minutes": timeout}

    def _open_log(self) -> None:
        """Start writing; only now, when all is well, does an earlier run in the folder give way."""
        if distributed.is_main():
            if not self.resumed:
                self.run_folder.clear()
            OmegaConf.save(written_config(self.config), self.folder / "config.yaml")
            if self.config.datasets.quarantine and not self.resumed:
                self.quarantine.take_over(self.config.datasets.quarantine)
        is_validated = self.progress.valid.get("step") == self.progress.iteration
        at_wandb = distributed.is_main() and self.run_config.wandb_project
        wandb = open_wandb(self.folder, self.config) if at_wandb else None
        self.log = RunLog(self.folder, self.progress.iteration, is_validated, wandb)

    # ---- parts of the loop

    def autocast(self) -> torch.autocast:
        """Mixed precision as configured."""
        return autocast(self.run_config, self.device)

    def _no_sync(self) -> contextlib.AbstractContextManager:
        """No all-reduce while a group of micro-batches is still being accumulated."""
        model = self.ddp_model
        return model.no_sync() if isinstance(model, DistributedDataParallel) else contextlib.nullcontext()

    def _until_failure(self, loader: Generator[Samples]) -> Generator[Samples]:
        """The batches; a failure of the loader is kept, and stops the run as a signal does: all ranks save first."""
        try:
            yield from loader
        except LoadingError as error:
            self.failure = error

    def raise_failure(self, more: str = "") -> None:
        """Raise LoadingError on every rank if the loader of one has failed; `more`: what is said besides."""
        failures = distributed.gather_objects(str(self.failure or ""))
        if any(failures):
            ranks = [f"rank {rank}: " if len(failures) > 1 else "" for rank in range(len(failures))]
            told = [rank + failure for rank, failure in zip(ranks, failures, strict=True) if failure]
            raise LoadingError("\n".join(told) + more)

    def _next_samples(self) -> Samples | None:
        """What is loaded next, None when the run is to stop; what could not be read is counted."""
        samples = None if self.failure else next(self.batches, None)
        if samples is None:
            return None
        self.quarantine.add(samples)
        if not samples["text"]:
            last = samples["unreadable"][-1]
            self.failure = LoadingError(
                f"{self.config.datasets.train_ann_path}: hardly a clip can be read, e.g. {last.path}: "
                f"{last.reason}. Check datasets.prefix = {self.config.datasets.prefix!r}, and see "
                f"python util/anns_inspector.py --help"
            )
            return None
        return samples

    def _is_stopped(self) -> bool:
        return distributed.any_rank(bool(self.stop_request.name or self.failure))[0]

    def _is_log_due(self, group: range) -> bool:
        return any((i + 1) % self.run_config.log_freq == 0 for i in group) or self._is_epoch_end()

    def _is_save_due(self) -> bool:
        """By steps, by the clock of any rank, and before the validation at an epoch's end."""
        by_steps = self.plan.is_multiple(self.progress.epoch_iteration, self.run_config.save_every_steps)
        minutes = self.run_config.save_every_minutes
        by_clock = bool(minutes) and time.monotonic() - self.state.saved_at > 60 * minutes
        return distributed.any_rank(self._is_epoch_end() or by_steps or by_clock)[0]

    def _is_validation_due(self) -> bool:
        """Inside an epoch, as at its end there is one anyway; and once, also where a run goes on at this place."""
        progress = self.progress
        by_steps = self.plan.is_multiple(progress.epoch_iteration, self.run_config.valid_every_steps)
        is_done = progress.valid.get("step") == progress.iteration
        return by_steps and progress.epoch_iteration > 0 and not (self._is_epoch_end() or is_done)

    def _is_epoch_end(self) -> bool:
        return self.progress.epoch_iteration == self.plan.iters_per_epoch

    # ---- what is shown

    def _progress_bar(self, epoch: int) -> tqdm:
        return tqdm(
            desc=f"epoch {epoch}", initial=self.progress.epoch_iteration, total=self.plan.iters_per_epoch,
            disable=not distributed.is_main(), mininterval=1.0,
        )  # fmt: skip

    def _report(self, progress_bar: tqdm, meter: Meter, lr: float) -> None:
        """Write down and show what the last steps gave; once the speed is known, tell the hours that are left."""
        values: dict[str, Any] = {"epoch": self.progress.epoch, "lr": lr, **meter.read(), **self.quarantine.sync()}
        speed = values["samples_per_second"]
        iterations_left = (
            self.plan.epochs - self.progress.epoch
        ) * self.plan.iters_per_epoch - self.progress.epoch_iteration
        seconds = iterations_left * self.plan.samples_per_iteration / speed
        self.log.write("train", self.progress.iteration, **values, hours_left=seconds / 3600)
        if not self.failure and distributed.is_main() and (problem := self.quarantine.too_many()):
            self.failure = LoadingError(problem)
        progress_bar.set_postfix_str(f"{shown_values(values)}, {shown_duration(seconds)} left")
        measured = (self.progress.samples - self.first_sample) / self.plan.effective_batch
        if not self.told_hours and measured >= MEASURED_STEPS:
            self.told_hours = True
            logger.info("%.1f samples/s: what is left of this run takes about %s", speed, shown_duration(seconds))
