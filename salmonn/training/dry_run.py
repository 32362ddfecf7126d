"""`train.py --dry-run`: what would happen, and one real step on a tiny model of the same shape."""

import logging
import math
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

from salmonn.common.files import GB
from salmonn.common.logging import setup_logging
from salmonn.config.loading import best_checkpoint
from salmonn.config.missing_files import annotation_keys
from salmonn.data.annotations import Annotations
from salmonn.model.beats import BEATs, read_beats_file
from salmonn.model.llm import llm_quantization, quantised_by
from salmonn.model.meta_model import build_meta_model
from salmonn.model.parameter_counts import show_counts, trainable_parameters
from salmonn.model.salmonn import SALMONN
from salmonn.preflight import checkpoint_bytes
from salmonn.training.curves import read_log
from salmonn.training.progress import make_plan
from salmonn.training.readiness import require_all_ready
from salmonn.training.run_folder import RunFolder
from salmonn.training.run_state import find_resumed
from salmonn.training.runner import Runner

WIDTH, HEADS, LAYERS = 64, 4, 2  # of the tiny model's parts
TINY_CONNECTOR = {"qformer_hidden_size": WIDTH, "qformer_num_heads": HEADS, "qformer_intermediate_size": 2 * WIDTH}


def dry_run(configs: Sequence[DictConfig]) -> None:
    """Check all that the stages name, print their plans, and take one step of each in a folder that goes away.

    Raises UserError with everything that is wrong.
    """
    if int(os.environ.get("RANK", 0)) > 0:
        return  # torchrun may start several of us, one is enough
    setup_logging()
    require_all_ready(configs)
    made: list[str] = []
    for config in configs:
        print(f"\n{config.run.exp_name}\n  " + "\n  ".join(describe(config, made)), flush=True)
        print("  " + tiny_step(config), flush=True)
        made.append(best_checkpoint(config.run))
    print("\nAll that could be checked without reading the big weights is well; nothing was written.")


def describe(config: DictConfig, made: Sequence[str]) -> list[str]:
    """What a run would do, a line each. `made`: checkpoints that earlier stages write."""
    model, run = config.model, config.run
    meta_model = build_meta_model(model)
    counts = trainable_parameters(meta_model)
    sizes = {key: len(Annotations(config.datasets[key])) for key in annotation_keys(config)}
    lines = [f"folder      {Path(run.output_dir) / run.exp_name} ({_beginning(config, made)})"]
    lines += [f"data        datasets.{key}: {n} entries, {config.datasets[key]}" for key, n in sizes.items()]
    lines += [
        f"model       {_parts(meta_model)}",
        f"            {show_counts(counts)}",
        f"precision   {_precision(config)}",
    ]
    if not run.evaluate:
        world_size = int(os.environ.get("WORLD_SIZE", 1)) if run.use_distributed else 1
        plan = make_plan(run, sizes["train_ann_path"], world_size)
        size = checkpoint_bytes(sum(counts.values())) / GB
        lines += [
            f"training    {plan} (torchrun decides how many processes)",
            f"checkpoints {run.keep_checkpoints} to go on from and the best, {size:.2f} GB each",
        ]
    return lines


def _beginning(config: DictConfig, made: Sequence[str]) -> str:
    ckpt = config.model.ckpt
    if found := find_resumed(RunFolder(config)):
        done, path, _ = found[0]
        if done.epoch >= config.run.optims.max_epoch:
            return f"its {done.epoch} epochs are done: nothing is left to train"
        return f"goes on with {path.name}: epoch {done.epoch}, iteration {done.epoch_iteration}"
    if not ckpt:
        return "a new run, from untrained connector and LoRA"
    return f"a new run, from {ckpt}" + (", which the stage before writes" if ckpt in made else "")


def _parts(model: SALMONN) -> str:
    llm, whisper = model.llama_model.config, model.speech_encoder.config
    beats = f", BEATs of {len(model.beats.encoder.layers)} layers" if model.beats is not None else ", no BEATs"
    return (
        f"{type(llm).__name__.removesuffix('Config')} of {llm.num_hidden_layers} layers, {llm.hidden_size} wide; "
        f"Whisper of {whisper.encoder_layers} layers, {model.max_seconds:g} s{beats}"
    )


def _precision(config: DictConfig) -> str:
    model, run = config.model, config.run
    quantization = llm_quantization(model)
    llm = f"LLM {model.llm_dtype}" if quantization == "none" else f"LLM {quantization}"
    amp = f"AMP {run.amp_dtype}" if run.amp else "no AMP"
    return f"{llm}, encoders {model.encoder_dtype}, trained parameters float32, {amp}, on {run.device}"


# ---- one step


def tiny_step(config: DictConfig) -> str:
    """Take one optimiser step with the run's data, prompts, tokenizer, precision and device; says what came out.

    The weights are random and few, the layers, windows, vocabulary and file formats those of the run.
    """
    with tempfile.TemporaryDirectory(prefix="salmonn-dry-run-") as folder:
        short: dict[str, Any] = {
            "model": {**_write_tiny_parts(config.model, Path(folder)), **TINY_CONNECTOR},
            "datasets": {"integrity": "off"},  # looking at each file takes its time; the run does
            "run": {
                "output_dir": folder, "resume": "none", "overwrite": True, "evaluate": False, "use_distributed": False,
                "encoder_cache": "", "compile": False,
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
        finally:
            runner.close()
            log.setLevel(level)
        line = read_log(runner.folder / "log.jsonl")[-1]
    return (
        f"one step    of a tiny model of this shape: loss {line['loss']:.2f}, gradient norm {line['grad_norm']:.2f}, "
        f"{line['tried']} clips tried, {line['bad']} unusable, {time.monotonic() - began:.1f} s"
    )


def _write_tiny_parts(model: DictConfig, folder: Path) -> dict[str, str]:
    """Random Whisper, BEATs and LLM of the configured kinds in their file formats; returns their keys and paths."""
    token = model.token or None
    whisper = WhisperConfig.from_pretrained(model.whisper_path, token=token)
    whisper.update(
        {"d_model": WIDTH, "encoder_layers": LAYERS, "encoder_attention_heads": HEADS, "encoder_ffn_dim": 2 * WIDTH}
        | {"decoder_layers": 1, "decoder_attention_heads": HEADS, "decoder_ffn_dim": 2 * WIDTH}
    )
    WhisperModel(whisper).save_pretrained(folder / "whisper")
    WhisperFeatureExtractor.from_pretrained(model.whisper_path, token=token).save_pretrained(folder / "whisper")

    llm = shrink_llm(AutoConfig.from_pretrained(model.llama_path, token=token))
    AutoModelForCausalLM.from_config(llm).save_pretrained(folder / "llm")
    AutoTokenizer.from_pretrained(model.llama_path, token=token).save_pretrained(folder / "llm")

    paths = {"llama_path": str(folder / "llm"), "whisper_path": str(folder / "whisper"), "beats_path": ""}
    if model.beats_path:
        cfg = read_beats_file(model.beats_path, lazily=True)["cfg"]
        cfg = {**cfg, "encoder_layers": LAYERS, "encoder_embed_dim": WIDTH, "encoder_ffn_embed_dim": 2 * WIDTH}
        cfg |= {"embed_dim": WIDTH, "encoder_attention_heads": HEADS, "conv_pos_groups": HEADS}
        torch.save({"cfg": cfg, "model": BEATs(cfg).state_dict()}, folder / "beats.pt")
        paths["beats_path"] = str(folder / "beats.pt")
    return paths | {"ckpt": "", "speech_llama_proj_model": ""}


def shrink_llm(llm: PretrainedConfig) -> PretrainedConfig:
    """The configuration of a tiny LLM of the same architecture and vocabulary."""
    keys_per_head = llm.num_attention_heads // getattr(llm, "num_key_value_heads", llm.num_attention_heads)
    sizes = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": max(2, math.ceil(HEADS / keys_per_head)),  # nf4 on a CPU wants 32 values
        "head_dim": WIDTH // HEADS,
    }
    llm.update({key: value for key, value in sizes.items() if hasattr(llm, key)})
    if getattr(llm, "layer_types", None):
        llm.layer_types = llm.layer_types[:LAYERS]
    if quantised_by(llm):
        del llm.quantization_config  # random weights are plain ones
    return llm
