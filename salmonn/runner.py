"""The training run: one process or many, one of the three stages, from config to best checkpoint."""

import contextlib
import logging
import math
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from salmonn import checkpoint, distributed, prompts
from salmonn.annotations import Annotations
from salmonn.data_filter import usable_entries
from salmonn.dataset import SALMONNDataset
from salmonn.errors import UserError
from salmonn.loader import eval_loader, train_loader
from salmonn.meter import Meter
from salmonn.model import SALMONN
from salmonn.optim import build_optimizer, learning_rate, restore_optimizer, set_learning_rate
from salmonn.quarantine import Quarantine
from salmonn.run_folder import Progress, RunFolder, changed_keys
from salmonn.run_log import RunLog, setup_logging, write_json
from salmonn.stop_request import StopRequest
from salmonn.validation import report_listening, validate

logger = logging.getLogger(__name__)

MISSING_SHOWN = 5  # tasks without a prompt, in a message
NOMINAL_TOKENS = 32  # of a target


class Runner:
    """Trains (or only evaluates) the model that a config describes; `Runner(config).run()` is all."""

    def __init__(self, config: DictConfig) -> None:
        """Join the process group, load the model and the data. Raises UserError for bad input."""
        self.config, self.run_config = config, config.run
        self.device = distributed.init(config)
        setup_logging()
        self.run_folder = RunFolder(config)
        self.run_folder.claim()
        self.folder = self.run_folder.path
        found = self.run_folder.checkpoint_to_resume() if distributed.is_main() else None
        self.resume_from: Path | None = distributed.from_main(found)
        # the data first: what is wrong with it is known before any weight is read
        keys = ("test_ann_path",) if config.run.evaluate else ("train_ann_path", "valid_ann_path")
        self.annotations = {key: Annotations(config.datasets[key]) for key in keys}
        self._require_prompts()
        self.datasets = {key: self._dataset(key) for key in keys}
        seed_everything(config.run.seed)  # the same on every rank: all build the same model
        self.model = SALMONN.from_config(config.model, self.device)
        for dataset in self.datasets.values():
            dataset.max_seconds = self.model.max_seconds
        self.progress = Progress()
        self.ddp_model: torch.nn.Module | None = None
        self.log: RunLog | None = None
        self.quarantine = Quarantine(self.folder, config.datasets.max_bad_fraction)
        self.stop_request = StopRequest()
        scaled = config.run.amp and config.run.amp_dtype == "fp16"
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=scaled)

    def run(self) -> None:
        """Train and validate, or with `run.evaluate` only validate on the test set."""
        try:
            if self.run_config.evaluate:
                self._open_log()
                result = self.validate(self.datasets["test_ann_path"], epoch=0, step=0)
                result |= self.quarantine.sync()
                if distributed.is_main():
                    write_json(self.folder / "summary.json", result)
            else:
                self.train()
        finally:
            if self.log is not None:
                self.log.close()
            # DDP's reducer must go before its process group: taken down together, gloo can deadlock.
            self.ddp_model = None
            self.run_folder.release()
            distributed.shutdown()

    def train(self) -> None:
        """All epochs that are left; ends early, after saving, when a signal asks for it."""
        self._prepare_training()
        with self.stop_request:
            while self.progress.epoch < self.run_config.optims.max_epoch:
                if not self.train_epoch(self.progress.epoch):
                    return
                saved = self._finish_epoch(self.progress.epoch)
                if not saved and self.progress.epoch == self.run_config.optims.max_epoch:
                    raise UserError(
                        f"all epochs are done, but their result could not be written to {self.folder} (see above); "
                        f"make room, and the same command goes on from the last checkpoint"
                    )
        logger.info("all %d epochs are done: %s", self.progress.epoch, self.folder)

    def train_epoch(self, epoch: int) -> bool:
        """What is left of an inner epoch: an optimiser step after each group of micro-batches.

        Returns False when a signal ended it.
        """
        self.model.train()
        accumulate, n_iters, first = self.run_config.accum_grad_iters, self.iters_per_epoch, self.progress.iteration
        progress_bar = tqdm(
            range(first, n_iters), desc=f"epoch {epoch}", initial=first, total=n_iters,
            disable=not distributed.is_main(), mininterval=1.0,
        )  # fmt: skip
        meter = Meter()
        for i in progress_bar:
            step = epoch * n_iters + i
            lr = learning_rate(self.run_config.optims, n_iters, epoch, i)
            set_learning_rate(self.optimizer, lr)
            samples = self._next_samples()
            seed_step(self.run_config.seed, step, distributed.rank())

            group_start = i - i % accumulate
            group_size = min(accumulate, n_iters - group_start)  # the last group may be smaller
            is_last = i == group_start + group_size - 1
            with contextlib.nullcontext() if is_last else self._no_sync():
                with self.autocast():
                    result = self.ddp_model(samples, verbose=True)
                self.scaler.scale(self._share_of_step(result, group_size)).backward()
            loss = self._finite(result["loss"], epoch, i, samples)
            meter.add_loss(loss, int(result["total"]), len(samples["text"]), int(result["cut"]))
            if is_last:
                meter.add_grad_norm(self._optimizer_step(group_size))
            if (i + 1) % self.run_config.log_freq == 0 or i + 1 == n_iters:
                values = meter.read() | self.quarantine.sync()
                self.log.write("train", step + 1, epoch=epoch, lr=lr, **values)
                progress_bar.set_postfix_str(
                    f"loss {values['loss']:.3f}, lr {lr:.1e}, grad norm {values['grad_norm'] or math.nan:.2f}, "
                    f"{values['samples_per_second']:.1f} samples/s"
                )
            if is_last and self._save_or_stop(epoch, i + 1):
                return False
        return True

    def validate(self, dataset: SALMONNDataset, epoch: int, step: int) -> dict[str, float]:
        """Loss and token accuracy, and the same with the audio shuffled between samples."""
        loader = eval_loader(
            dataset,
            self.run_config.batch_size_eval,
            self.run_config.num_workers,
            distributed.rank(),
            distributed.world_size(),
        )
        with self.autocast():
            result = validate(self.model, loader, self.quarantine)
        report_listening(result, epoch, past_warmup=step >= self.run_config.optims.warmup_steps)
        self.log.write("valid", step, epoch=epoch, **result)
        return result

    def autocast(self) -> torch.autocast:
        """Mixed precision as configured."""
        return distributed.autocast(self.run_config, self.device)

    # ---- one step

    def _share_of_step(self, result: dict[str, Tensor], group_size: int) -> Tensor:
        """What a micro-batch adds to the loss of its step.

        `run.loss_average` "batch": mean over the micro-batches (and ranks) of the mean over their target
        tokens, as published. "token": sums, which `_optimizer_step` divides by the tokens of all.
        """
        if self.run_config.loss_average == "batch":
            return result["loss"] / group_size
        self.tokens_of_step = self.tokens_of_step + result["total"]
        # any constant will do; this one keeps fp16 gradients near those of a mean
        return result["loss"] * result["total"] / self._nominal_tokens(group_size)

    def _nominal_tokens(self, group_size: int) -> int:
        return NOMINAL_TOKENS * self.run_config.batch_size_train * group_size

    def _optimizer_step(self, group_size: int) -> float:
        """Unscale, average, clip, step; returns the gradients' global norm before clipping."""
        self.scaler.unscale_(self.optimizer)
        if self.run_config.loss_average == "token":
            tokens = distributed.sum_over_ranks(self.tokens_of_step)  # DDP has averaged over the ranks
            factor = self._nominal_tokens(group_size) * distributed.world_size() / tokens
            for parameter in self.trainable:
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)
            self.tokens_of_step = torch.zeros_like(self.tokens_of_step)
        limit = self.run_config.optims.grad_clip_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.trainable, limit)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm.item()

    def _save_or_stop(self, epoch: int, iteration: int) -> bool:
        """After an optimiser step: save when it is due on this or another rank; whether the run is to end."""
        self.progress.iteration = iteration
        every, minutes = self.run_config.save_every_steps, self.run_config.save_every_minutes
        steps_done = math.ceil(iteration / self.run_config.accum_grad_iters)
        by_steps = bool(every) and steps_done % every == 0
        by_clock = bool(minutes) and time.monotonic() - self.saved_at > 60 * minutes
        stop, due = distributed.any_rank(bool(self.stop_request.name), by_steps or by_clock)
        if stop or (due and iteration < self.iters_per_epoch):  # the epoch's end saves by itself
            self.quarantine.sync()
            self._save(epoch)
        if stop:
            reason = self.stop_request.name or "a signal to another rank"
            logger.warning("stopped by %s after step %d; the same command goes on from there", reason, self._step())
        return stop

    def _next_samples(self) -> dict[str, Any]:
        samples = next(self.batches)
        self.quarantine.add(samples)
        self.progress.samples += self.run_config.batch_size_train * distributed.world_size()
        if not samples["text"]:
            last = samples["broken"][-1]
            raise UserError(
                f"{self.config.datasets.train_ann_path}: hardly a clip can be read, e.g. {last.path}: "
                f"{last.reason}. Check datasets.prefix = {self.config.datasets.prefix!r}, and see "
                f"python util/anns_inspector.py --help"
            )
        return samples

    def _finite(self, loss: Tensor, epoch: int, i: int, samples: dict[str, Any]) -> float:
        """The loss as a number. Raises RuntimeError, after saving what led to it, when it is not finite."""
        value = loss.item()
        if not math.isfinite(value):
            rank = distributed.rank()
            path = self.folder / f"not_finite_rank{rank}.pth"
            checkpoint.save(path, self.model, loss=value, epoch=epoch, iteration=i, samples=samples["id"])
            raise RuntimeError(
                f"loss is {value} on rank {rank}, epoch {epoch}, iteration {i}, samples {samples['id']}; "
                f"the parameters that gave it are in {path}"
            )
        return value

    def _no_sync(self) -> contextlib.AbstractContextManager:
        """No all-reduce while a group of micro-batches is still being accumulated."""
        return self.ddp_model.no_sync() if self.ddp_model is not self.model else contextlib.nullcontext()

    # ---- set-up and results

    def _prepare_training(self) -> None:
        run = self.run_config
        train_set, valid_set = self.datasets["train_ann_path"], self.datasets["valid_ann_path"]
        self.trainable = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = build_optimizer(self.model, run.optims)
        if self.resume_from:
            self._restore()
        self.ddp_model = self.model
        if distributed.world_size() > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            self.ddp_model = DistributedDataParallel(
                self.model,
                device_ids=ids,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
                # an encoder that is trained drops layers, each rank others
                find_unused_parameters=not (self.config.model.freeze_whisper and self.config.model.freeze_beats),
            )
        self.iters_per_epoch = run.iters_per_epoch
        if run.epoch_based:
            self.iters_per_epoch = math.ceil(len(train_set) / (run.batch_size_train * distributed.world_size()))
        self.tokens_of_step = torch.zeros((), dtype=torch.long, device=self.device)
        self.batches: Iterator[dict[str, Any]] = iter(
            train_loader(
                train_set,
                run.batch_size_train,
                run.num_workers,
                distributed.rank(),
                distributed.world_size(),
                run.seed,
                first_sample=self.progress.samples,
                length_grouped=run.length_grouped,
            )
        )
        self._open_log()
        self.started_at = self.saved_at = time.monotonic()
        effective = run.batch_size_train * run.accum_grad_iters * distributed.world_size()
        logger.info(
            "%s: %d trainable parameters; %d training and %d validation samples; %d epochs of %d iterations, "
            "effective batch %d (%d x accumulation %d x %d processes)",
            self.folder, self._n_trainable(), len(train_set), len(valid_set), run.optims.max_epoch,
            self.iters_per_epoch, effective, run.batch_size_train, run.accum_grad_iters, distributed.world_size(),
        )  # fmt: skip

    def _restore(self) -> None:
        """Take up the run that a checkpoint holds: parameters, optimiser, scaler, and where it was."""
        path = self.resume_from
        state = checkpoint.read(path)
        checkpoint.take_parameters(self.model, state["model"], path)
        try:
            restore_optimizer(self.optimizer, state["optimizer"])
        except ValueError as error:
            raise UserError(f"{path}: its optimiser does not fit this configuration ({error})") from error
        self.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
        self.quarantine.go_on(self.progress.tried, self.progress.bad)
        logger.info(
            "going on with %s: epoch %d, iteration %d, %d samples seen",
            path, self.progress.epoch, self.progress.iteration, self.progress.samples,
        )  # fmt: skip
        for change in changed_keys(state["config"], OmegaConf.to_container(self.config)):
            logger.warning("   the configuration has changed: %s", change)

    def _dataset(self, key: str) -> SALMONNDataset:
        """The usable entries of an annotation file; only in training another clip takes a broken one's place."""
        datasets = self.config.datasets
        annotations = self.annotations[key]
        return SALMONNDataset.from_config(
            annotations,
            datasets,
            usable=usable_entries(annotations, datasets),
            replace_broken=key == "train_ann_path",
            seed=self.run_config.seed,
        )

    def _require_prompts(self) -> None:
        """Raise UserError when a task of the data has no prompt."""
        model = self.config.model
        if not model.prompt_path:
            return
        known = prompts.load_train_prompts(model.prompt_path, model.prompt_template).keys()
        for annotations in self.annotations.values():
            if missing := {task: entry for task, entry in annotations.tasks.items() if task not in known}:
                first = sorted(missing, key=missing.get)[:MISSING_SHOWN]
                named = ", ".join(f"{task!r} (first in entry {missing[task]})" for task in first)
                raise UserError(
                    f"annotation file {annotations.path}: {len(missing)} values of 'task' have no prompt in "
                    f"{model.prompt_path}: {named}{' ...' if len(missing) > len(first) else ''}"
                )

    def _open_log(self) -> None:
        """Start writing; only now, when all is well, does an earlier run in the folder give way."""
        if distributed.is_main():
            if not self.resume_from:
                self.run_folder.clear()
            OmegaConf.save(self.config, self.folder / "config.yaml")
            if self.config.datasets.quarantine and not self.resume_from:
                self.quarantine.take_over(self.config.datasets.quarantine)
        self.log = RunLog(self.folder, self._step() if self.resume_from else 0)

    def _step(self) -> int:
        """Iterations done since the run began."""
        return self.progress.epoch * self.iters_per_epoch + self.progress.iteration

    def _n_trainable(self) -> int:
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def _finish_epoch(self, epoch: int) -> bool:
        """Validate, and save; the best checkpoint is the one of highest token accuracy. Whether it could be saved."""
        step = (epoch + 1) * self.iters_per_epoch
        result = self.validate(self.datasets["valid_ann_path"], epoch, step)
        counts = self.quarantine.sync()
        is_best = not self.progress.best or result["accuracy"] > self.progress.best["accuracy"]
        if is_best:
            self.progress.best = {"epoch": epoch, **result}
        self.progress.epoch, self.progress.iteration = epoch + 1, 0
        saved = self._save(epoch, is_best)
        logger.info(
            "epoch %d done after %.0f s; unusable files so far: %d", epoch, self._seconds(), counts["bad_files"]
        )
        if distributed.is_main():
            summary = {
                "steps": step,
                "seconds": round(self._seconds(), 1),
                "trainable_parameters": self._n_trainable(),
                **counts,
                "valid_loss": result["loss"],
                "valid_loss_shuffled": result["loss_shuffled"],
                "best": self.progress.best,
            }
            write_json(self.folder / "summary.json", summary)
        return saved

    def _save(self, epoch: int, is_best: bool = False) -> bool:
        """Write the checkpoint to go on from; one that cannot be written is no reason to end a run.

        Returns, on every rank, whether it was written.
        """
        self.saved_at = time.monotonic()
        failed = distributed.is_main() and not self._write_checkpoints(epoch, is_best)
        return not distributed.any_rank(failed)[0]

    def _write_checkpoints(self, epoch: int, is_best: bool) -> bool:
        progress = replace(self.progress, seconds=self._seconds(), tried=self.quarantine.tried, bad=self.quarantine.bad)
        state = {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": epoch,
            "step": self._step(),
        }
        try:
            if is_best:  # first: killed in between, the epoch is validated again
                self.run_folder.save_best(self.model, progress, **state)
            self.run_folder.save(self.model, progress, **state)
        except OSError as error:
            logger.error("NO CHECKPOINT WAS WRITTEN: %s. The one before it is kept; training goes on.", error)
            return False
        return True

    def _seconds(self) -> float:
        """Of training, with those before a run was taken up again."""
        return self.progress.seconds + time.monotonic() - self.started_at


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make all randomness of a step (dropout, prompts) depend on these three alone: nothing to save and restore."""
    seed_everything(int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0]))


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
