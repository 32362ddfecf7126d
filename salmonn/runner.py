"""The training run: one process or many, one of the three stages, from config to best checkpoint."""

import contextlib
import logging
import math
import random
import shutil
import time
from collections.abc import Iterator
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
from salmonn.model import SALMONN
from salmonn.optim import build_optimizer, learning_rate, set_learning_rate
from salmonn.quarantine import Quarantine
from salmonn.run_log import RunLog, setup_logging, write_json
from salmonn.validation import report_listening, validate

logger = logging.getLogger(__name__)

MISSING_SHOWN = 5  # tasks without a prompt, in a message


class Runner:
    """Trains (or only evaluates) the model that a config describes; `Runner(config).run()` is all."""

    def __init__(self, config: DictConfig) -> None:
        """Join the process group, load the model and the data. Raises UserError for bad input."""
        self.config, self.run_config = config, config.run
        self.device = distributed.init(config)
        setup_logging()
        self.folder = Path(config.run.output_dir) / config.run.exp_name
        if config.run.evaluate:
            self.folder /= "evaluate"  # beside the run that it may be about, which stays as it is
        self._claim_folder()
        # the data first: what is wrong with it is known before any weight is read
        keys = ("test_ann_path",) if config.run.evaluate else ("train_ann_path", "valid_ann_path")
        self.annotations = {key: Annotations(config.datasets[key]) for key in keys}
        self._require_prompts()
        self.datasets = {key: self._dataset(key) for key in keys}
        seed_everything(config.run.seed)  # the same on every rank: all build the same model
        self.model = SALMONN.from_config(config.model, self.device)
        for dataset in self.datasets.values():
            dataset.max_seconds = self.model.max_seconds
        seed_everything(config.run.seed + distributed.rank())  # apart from here on, as published
        self.ddp_model: torch.nn.Module | None = None
        self.log: RunLog | None = None
        self.quarantine = Quarantine(self.folder, config.datasets.max_bad_fraction)
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
            distributed.shutdown()

    def train(self) -> None:
        """All epochs: train, validate, save; the best checkpoint is the one of highest token accuracy."""
        started = time.monotonic()
        self._prepare_training()
        best: dict[str, Any] = {}
        for epoch in range(self.run_config.optims.max_epoch):
            self.train_epoch(epoch)
            step = (epoch + 1) * self.iters_per_epoch
            result = self.validate(self.datasets["valid_ann_path"], epoch, step)
            broken = self.quarantine.sync()
            is_best = not best or result["accuracy"] > best["accuracy"]
            if is_best:
                best = {"epoch": epoch, **result}
            self._save(epoch, step, best, is_best)
            self._summarise(epoch, step, best, result, broken, time.monotonic() - started)

    def train_epoch(self, epoch: int) -> None:
        """One inner epoch: `iters_per_epoch` micro-batches, an optimiser step after each group of them."""
        self.model.train()
        accumulate, n_iters = self.run_config.accum_grad_iters, self.iters_per_epoch
        progress = tqdm(range(n_iters), desc=f"epoch {epoch}", disable=not distributed.is_main(), mininterval=1.0)
        meter = Meter()
        for i in progress:
            lr = learning_rate(self.run_config.optims, n_iters, epoch, i)
            set_learning_rate(self.optimizer, lr)
            samples = self._next_samples()

            group_start = i - i % accumulate
            group_size = min(accumulate, n_iters - group_start)  # the last group may be smaller
            is_last = i == group_start + group_size - 1
            with contextlib.nullcontext() if is_last else self._no_sync():
                with self.autocast():
                    result = self.ddp_model(samples, verbose=True)
                self.scaler.scale(result["loss"] / group_size).backward()
            loss = self._finite(result["loss"], epoch, i, samples)
            meter.add_loss(loss, len(samples["text"]), result["cut"].item())
            if is_last:
                meter.add_grad_norm(self._optimizer_step())
            if (i + 1) % self.run_config.log_freq == 0 or i + 1 == n_iters:
                values = meter.read(distributed.world_size()) | self.quarantine.sync()
                self.log.write("train", epoch * n_iters + i + 1, epoch=epoch, lr=lr, **values)
                progress.set_postfix_str(
                    f"loss {values['loss']:.3f}, lr {lr:.1e}, grad norm {values['grad_norm'] or math.nan:.2f}, "
                    f"{values['samples_per_second']:.1f} samples/s"
                )

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

    def _optimizer_step(self) -> float:
        """Unscale, clip, step; returns the gradients' global norm before clipping."""
        self.scaler.unscale_(self.optimizer)
        limit = self.run_config.optims.grad_clip_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.trainable, limit)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm.item()

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

    def _finite(self, loss: Tensor, epoch: int, i: int, samples: dict[str, Any]) -> float:
        value = loss.item()
        if not math.isfinite(value):
            raise RuntimeError(
                f"loss is {value} on rank {distributed.rank()}, epoch {epoch}, iteration {i}, samples {samples['id']}"
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
        self.batches: Iterator[dict[str, Any]] = iter(
            train_loader(
                train_set,
                run.batch_size_train,
                run.num_workers,
                distributed.rank(),
                distributed.world_size(),
                run.seed,
                length_grouped=run.length_grouped,
            )
        )
        self._open_log()
        effective = run.batch_size_train * run.accum_grad_iters * distributed.world_size()
        logger.info(
            "%s: %d trainable parameters; %d training and %d validation samples; %d epochs of %d iterations, "
            "effective batch %d (%d x accumulation %d x %d processes)",
            self.folder, self._n_trainable(), len(train_set), len(valid_set), run.optims.max_epoch,
            self.iters_per_epoch, effective, run.batch_size_train, run.accum_grad_iters, distributed.world_size(),
        )  # fmt: skip

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
            clear_run(self.folder)
            OmegaConf.save(self.config, self.folder / "config.yaml")
            if self.config.datasets.quarantine:
                self.quarantine.take_over(self.config.datasets.quarantine)
        self.log = RunLog(self.folder)

    def _n_trainable(self) -> int:
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def _claim_folder(self) -> None:
        """Make the run's folder; refuse to replace a run, or the checkpoint that this one starts from."""
        if not self.run_config.evaluate:
            if (self.folder / "checkpoint_last.pth").exists() and not self.run_config.overwrite:
                raise UserError(
                    f"{self.folder} already holds a run; choose another run.exp_name, or replace it with "
                    f"--options run.overwrite=True"
                )
            if self.config.model.ckpt and Path(self.config.model.ckpt).resolve().parent == self.folder.resolve():
                raise UserError(
                    f"model.ckpt = {self.config.model.ckpt} lies in the folder that this run would replace; "
                    f"choose another run.exp_name"
                )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"run.output_dir = {self.run_config.output_dir}: {error}") from error

    def _save(self, epoch: int, step: int, best: dict[str, Any], is_best: bool) -> None:
        if not distributed.is_main():
            return
        state = {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "config": OmegaConf.to_container(self.config),
            "epoch": epoch,
            "step": step,
            "best": best,
        }
        checkpoint.save(self.folder / "checkpoint_last.pth", self.model, **state)
        if is_best:
            checkpoint.save(self.folder / "checkpoint_best.pth", self.model, **state)

    def _summarise(
        self,
        epoch: int,
        step: int,
        best: dict[str, Any],
        result: dict[str, float],
        broken: dict[str, Any],
        seconds: float,
    ) -> None:
        logger.info("epoch %d done after %.0f s; unusable files so far: %d", epoch, seconds, broken["bad_files"])
        if distributed.is_main():
            summary = {
                "steps": step,
                "seconds": round(seconds, 1),
                "trainable_parameters": self._n_trainable(),
                **broken,
                "valid_loss": result["loss"],
                "valid_loss_shuffled": result["loss_shuffled"],
                "best": best,
            }
            write_json(self.folder / "summary.json", summary)


def clear_run(folder: Path) -> None:
    """Remove what an earlier run left in its folder: nothing of it may be taken for the new run's."""
    for name in ("checkpoint_best.pth", "checkpoint_last.pth", "log.jsonl", "summary.json", "quarantine.jsonl"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "tensorboard", ignore_errors=True)


class Meter:
    """Means since the last reading, and the speed."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._losses: list[float] = []
        self._grad_norms: list[float] = []
        self._samples, self._cut, self._overflows, self._since = 0, 0, 0, time.monotonic()

    def add_loss(self, loss: float, samples: int, cut: int) -> None:
        """Count one micro-batch and its targets that lost their end to max_txt_len."""
        self._losses.append(loss)
        self._samples += samples
        self._cut += cut

    def add_grad_norm(self, norm: float) -> None:
        """Count one optimiser step; an overflow (fp16, the scaler skips that step) stays out of the mean."""
        if math.isfinite(norm):
            self._grad_norms.append(norm)
        else:
            self._overflows += 1

    def read(self, world_size: int) -> dict[str, float | None]:
        """Means and counts of this rank since the last call; the speed is that of all ranks."""
        values = {
            "loss": float(np.mean(self._losses)),
            "grad_norm": float(np.mean(self._grad_norms)) if self._grad_norms else None,
            "overflow_steps": self._overflows,
            "cut_targets": self._cut,
            "samples_per_second": self._samples * world_size / max(time.monotonic() - self._since, 1e-9),
        }
        self._clear()
        return values


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
