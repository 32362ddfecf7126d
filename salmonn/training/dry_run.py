"""`train.py --dry-run`: what would happen, and one real step on a tiny model of the same shape."""

import logging
import math
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from salmonn.common.device import device_of
from salmonn.common.files import GB
from salmonn.common.logging import setup_logging
from salmonn.common.screen import counted
from salmonn.config.loading import best_checkpoint, llm_quantization
from salmonn.config.missing_files import annotation_keys
from salmonn.data.annotations import Annotations
from salmonn.model.alignment import Aligner, model_class
from salmonn.model.compilation import NOTHING, compiler_problem
from salmonn.model.meta_model import build_meta_model
from salmonn.model.parameter_counts import show_counts, trainable_parameters
from salmonn.model.random_model import write_tiny_parts
from salmonn.model.salmonn import SALMONN
from salmonn.model.sharding import ALONE
from salmonn.preflight import checkpoint_bytes, refuse
from salmonn.training.curves import read_log
from salmonn.training.progress import make_plan, unusual_about
from salmonn.training.readiness import require_all_ready, shared_memory_problem
from salmonn.training.resume import find_resumed
from salmonn.training.run_folder import RunFolder
from salmonn.training.runner import Runner


def dry_run(configs: Sequence[DictConfig]) -> None:
    """Check all that the stages name, print their plans, and take one step of each in a folder that goes away.

    Raises UserError with everything that is wrong.
    """
    if int(os.environ.get("RANK", 0)) > 0:
        return  # torchrun may start several of us, one is enough
    setup_logging()
    require_all_ready(configs)
    refuse([folder.taken for folder in map(RunFolder, configs) if folder.is_taken()])
    if problem := shared_memory_problem(configs, n_gpus=torch.cuda.device_count()):
        print(f"warning: {problem}", flush=True)
    made: list[str] = []
    unreadable = 0
    for config in configs:
        print(f"\n{config.run.exp_name}\n  " + "\n  ".join(describe(config, made)), flush=True)
        step = tiny_step(config)
        print(f"  {told_step(step)}", flush=True)
        unreadable += step["bad"]
        made.append(best_checkpoint(config.run))
    but = f" but for {counted(unreadable, 'unreadable clip')}" if unreadable else ""
    print(f"\nAll that could be checked without reading the big weights is well{but}; nothing was written.")


def describe(config: DictConfig, made: Sequence[str]) -> list[str]:
    """What a run would do, a line each. `made`: checkpoints that earlier stages write."""
    model, run = config.model, config.run
    meta_model = build_meta_model(model, model_class(run))
    counts = trainable_parameters(meta_model)
    sizes = {key: _n_entries(config, key) for key in annotation_keys(config)}
    beginning, changes = _beginning(config, made)
    lines = [f"folder      {Path(run.output_dir) / run.exp_name} ({beginning})"]
    lines += [f"warning     the configuration has changed: {change}" for change in changes]
    lines += [f"data        datasets.{key}: {n} entries, {config.datasets[key]}" for key, n in sizes.items()]
    lines += [
        f"model       {_parts(meta_model)}",
        f"            {show_counts(counts)}",
        f"precision   {_precision(config)}",
    ]
    world_size = int(os.environ.get("WORLD_SIZE", 1)) if run.use_distributed else 1
    if not run.evaluate:
        plan = make_plan(run, sizes["train_ann_path"], world_size)
        size = checkpoint_bytes(sum(counts.values())) / GB
        lines += [
            f"training    {plan} (torchrun decides how many processes)",
            f"checkpoints {run.keep_checkpoints} to go on from and the best, {size:.2f} GB each",
            *(f"warning     {unusual}" for unusual in unusual_about(plan, config)),
        ]
    if run.compile and (problem := compiler_problem(device_of(config))):
        lines.append(f"warning     {NOTHING.format(problem)}")
    if run.shard_llm and world_size == 1:
        lines.append(f"warning     {ALONE}")
    return lines


def _beginning(config: DictConfig, made: Sequence[str]) -> tuple[str, list[str]]:
    """Where a run begins, and what has changed since the one that it goes on with."""
    ckpt = config.model.ckpt
    if found := find_resumed(RunFolder(config)):
        done, path, changes = found[0]
        if done.epoch >= config.run.optims.max_epoch:
            return f"{counted(done.epoch, 'epoch')} done: nothing is left to train", []
        return f"goes on with {path.name}: epoch {done.epoch}, iteration {done.epoch_iteration}", changes
    if not ckpt:
        return f"a new run, from untrained connector{'' if config.run.objective == 'ctc' else ' and LoRA'}", []
    return f"a new run, from {ckpt}" + (", which the stage before writes" if ckpt in made else ""), []


def _n_entries(config: DictConfig, key: str) -> int:
    """Entries of an annotation file that take part."""
    annotations = Annotations(config.datasets[key], end_sym=config.model.end_sym)
    of_stage_0 = config.run.objective == "ctc"
    return int(annotations.of_tasks(config.run.ctc_tasks).sum()) if of_stage_0 else len(annotations)


def _parts(model: SALMONN) -> str:
    llm, whisper = model.llama_model.config, model.speech_encoder.config
    beats = f", BEATs of {len(model.beats.encoder.layers)} layers" if model.beats is not None else ", no BEATs"
    unread = ", input embeddings only" if isinstance(model, Aligner) else ""
    return (
        f"{type(llm).__name__.removesuffix('Config')} of {llm.num_hidden_layers} layers, {llm.hidden_size} wide{unread}"
        f"; Whisper of {whisper.encoder_layers} layers, {model.max_seconds:g} s{beats}"
    )


def _precision(config: DictConfig) -> str:
    model, run = config.model, config.run
    quantization = llm_quantization(model)
    llm = f"LLM {model.llm_dtype}" if quantization == "none" else f"LLM {quantization}"
    amp = f"AMP {run.amp_dtype}" if run.amp else "no AMP"
    return f"{llm}, encoders {model.encoder_dtype}, trained parameters float32, {amp}, on {run.device}"


# ---- one step


def tiny_step(config: DictConfig) -> dict[str, Any]:
    """Take one optimiser step with the run's data, prompts, tokenizer, precision and device; its line of the log.

    The weights are random and few, the layers, windows, vocabulary and file formats those of the run.
    """
    with tempfile.TemporaryDirectory(prefix="salmonn-dry-run-") as folder:
        short: dict[str, Any] = {
            "model": write_tiny_parts(config.model, Path(folder)),
            "datasets": {"integrity": "off", "max_clip_seconds": 0},  # looking at each file takes time; the run does
            "run": {
                "output_dir": folder, "resume": "none", "overwrite": True, "evaluate": False, "use_distributed": False,
                "encoder_cache": "", "compile": False, "shard_llm": False, "wandb_project": "",
                "num_workers": 0, "epoch_based": False, "iters_per_epoch": config.run.accum_grad_iters,
                "optims": {"max_epoch": 1, "warmup_steps": 0},
            },
        }  # fmt: skip
        if config.run.evaluate:
            short["datasets"] |= {key: config.datasets.test_ann_path for key in ("train_ann_path", "valid_ann_path")}
        runner = Runner(OmegaConf.merge(config, short))
        log, began = logging.getLogger("salmonn"), time.monotonic()
        level = log.level
        log.setLevel(logging.WARNING)  # of the tiny model there is nothing to tell
        try:
            runner.prepare()
            runner.train_epoch(0)  # one step long
            runner.raise_failure()
        finally:
            runner.close()
            log.setLevel(level)
        return {**read_log(runner.folder / "log.jsonl")[-1], "seconds": time.monotonic() - began}


def told_step(line: Mapping[str, Any]) -> str:
    """What `tiny_step` returns, for a person."""
    norm = math.nan if line["grad_norm"] is None else line["grad_norm"]  # the step overflowed
    return (
        f"one step    of a tiny model of this shape: loss {line['loss']:.2f}, gradient norm {norm:.2f}, "
        f"{line['tried']} clips tried, {line['bad']} unreadable, {line['seconds']:.1f} s"
    )
