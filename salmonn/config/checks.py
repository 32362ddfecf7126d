"""Values of a configuration that cannot be: each key's range, and what does not go together."""

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

from omegaconf import DictConfig, OmegaConf

CHOICES = {
    "model.llm_quantization": ("none", "8bit", "nf4"),
    "model.llm_dtype": ("auto", "float16", "bfloat16", "float32"),
    "model.llm_attention": ("auto", "sdpa", "eager"),
    "model.encoder_dtype": ("float32", "float16", "bfloat16"),
    "run.amp_dtype": ("fp16", "bf16"),
    "run.loss_average": ("token", "batch"),
    "run.objective": ("answer", "ctc"),
    "datasets.channel": ("first", "mean"),
    "datasets.expand_cut": ("head", "share"),
    "datasets.integrity": ("off", "header", "decode", "verified"),
    "evaluate.judge.kind": ("containment", "openai", "local"),
}
AT_LEAST_ONE = (
    "model.num_speech_query_token",
    "model.qformer_hidden_size",
    "model.qformer_num_layers",
    "model.qformer_num_heads",
    "model.qformer_intermediate_size",
    "model.lora_rank",
    "model.max_txt_len",
    "run.accum_grad_iters",
    "run.keep_checkpoints",
    "run.batch_size_train",
    "run.batch_size_eval",
    "run.iters_per_epoch",
    "run.log_freq",
    "run.optims.max_epoch",
    "generate.max_new_tokens",
    "generate.num_beams",
    "evaluate.judge.max_tokens",
    "evaluate.judge.concurrency",
    "evaluate.judge.max_tries",
)
NOT_NEGATIVE = (
    "run.seed",
    "run.num_workers",
    "run.optims.warmup_steps",
    "run.optims.init_lr",
    "run.optims.lora_lr_factor",
    "run.optims.min_lr",
    "run.optims.weight_decay",
    "run.optims.grad_clip_norm",
    "datasets.max_clip_seconds",
    "datasets.max_bad_fraction",
    "run.ctc_negatives",
    "run.valid_every_steps",
    "run.save_every_steps",
    "run.save_every_minutes",
    "generate.min_length",
    "model.lora_scaling",
)
POSITIVE = ("run.timeout_minutes", "run.loader_timeout_minutes", "run.encoder_cache_gb", "evaluate.judge.timeout_s")
_RANGES: tuple[tuple[tuple[str, ...], Callable[[Any], Any], str], ...] = (  # nan is in none
    (AT_LEAST_ONE, lambda value: value >= 1, "must be at least 1"),
    (NOT_NEGATIVE, lambda value: 0 <= value < math.inf, "must be 0 or more"),
    (POSITIVE, lambda value: 0 < value < math.inf, "must be more than 0"),
    (("datasets.max_bad_fraction",), lambda value: not value > 1, "a share, at most 1 (5 % is 0.05)"),
    (("run.device",), re.compile(r"cpu|cuda(:\d+)?").fullmatch, "choose cpu, cuda or cuda:N"),
)


WHISPER_SECONDS = 30.0  # its window


def impossible_values(config: DictConfig) -> list[str]:
    """A line for each value that cannot be; `config` may hold some of the sections only."""
    problems = [
        f"{key} = {value!r}: choose one of {', '.join(CHOICES[key])}"
        for key, value in _given(config, CHOICES)
        if value not in CHOICES[key]
    ]
    for keys, is_possible, rule in _RANGES:
        problems += [f"{key} = {value}: {rule}" for key, value in _given(config, keys) if not is_possible(value)]
    if OmegaConf.select(config, "generate.do_sample") and config.generate.temperature <= 0:
        problems.append(f"generate.temperature = {config.generate.temperature}: sampling needs more than 0")
    if OmegaConf.select(config, "run.amp"):
        amp, llm = config.run.amp_dtype, config.model.llm_dtype
        if (amp, llm) in (("bf16", "float16"), ("fp16", "bfloat16")):
            problems.append(f"run.amp_dtype = {amp} does not go with model.llm_dtype = {llm}: make both one kind")
    if OmegaConf.select(config, "run.encoder_cache"):
        problems += [
            f"model.{key} = False does not go with run.encoder_cache: what is trained gives something else each time"
            for key in ("freeze_whisper", "freeze_beats")
            if not config.model[key]
        ]
    if OmegaConf.select(config, "run.objective") == "ctc":
        problems += _impossible_alignment(config)
    for _, model in _given(config, ["model"]):
        problems += _impossible_model(model)
    for _, judge in _given(config, ["evaluate.judge"]):
        problems += _impossible_judge(judge)
    return problems


def _given(config: DictConfig, keys: Iterable[str]) -> list[tuple[str, Any]]:
    return [(key, value) for key in keys if (value := OmegaConf.select(config, key)) is not None]


def _impossible_model(model: DictConfig) -> list[str]:
    problems = []
    if not model.use_speech_Qformer:
        problems.append("model.use_speech_Qformer = False: no other connector exists (nor in the published code)")
    if model.qformer_hidden_size % max(1, model.qformer_num_heads):
        problems.append(
            f"model.qformer_hidden_size = {model.qformer_hidden_size} is not a multiple of "
            f"model.qformer_num_heads = {model.qformer_num_heads}"
        )
    if "{}" not in model.prompt_template:
        problems.append(f"model.prompt_template = {model.prompt_template!r}: needs {{}} where the prompt goes")
    if escapes := sorted(set(re.findall(r"\\[nt]", model.prompt_template))):
        problems.append(
            f"model.prompt_template holds {' and '.join(escapes)} as two characters each, no line break and no tab: in "
            'YAML write it in double quotes, as "USER: {}\\nASSISTANT:"'
        )
    for key in ("second_per_window", "second_stride"):
        if round(50 * model[key]) < 1:
            problems.append(f"model.{key} = {model[key]}: shorter than one 20 ms frame of Whisper")
    if not 1 <= model.max_seconds <= WHISPER_SECONDS:
        problems.append(
            f"model.max_seconds = {model.max_seconds}: 1 to {WHISPER_SECONDS:g}, which is what Whisper hears"
        )
    if model.only_filled_windows and not model.window_level_Qformer:
        problems.append(
            "model.only_filled_windows = True does not go with model.window_level_Qformer = False: there are no windows"
        )
    if model.low_resource and model.llm_quantization == "nf4":
        problems.append("model.low_resource = True means 8bit, model.llm_quantization says nf4: drop one of them")
    return problems


def _impossible_alignment(config: DictConfig) -> list[str]:
    model, problems = config.model, []
    if not config.run.ctc_tasks:
        problems.append("run.ctc_tasks is empty: run.objective = ctc needs the tasks whose texts follow the audio")
    if not model.window_level_Qformer:
        problems.append(
            "model.window_level_Qformer = False does not go with run.objective = ctc: no order in one window"
        )
    problems += [
        f"model.{key} = False does not go with run.objective = ctc: it trains the connector alone"
        for key in ("freeze_whisper", "freeze_beats")
        if not model[key]
    ]
    return problems


def _impossible_judge(judge: DictConfig) -> list[str]:
    problems = []
    needed = {"openai": ("base_url", "model"), "local": ("local_path",)}.get(judge.kind, ())
    problems += [f"evaluate.judge.{key} is empty: kind = {judge.kind} needs it" for key in needed if not judge[key]]
    # These two values are not repeated: what stands there by mistake may be a secret.
    if judge.base_url and not re.fullmatch(r"https?://[!-~]+", judge.base_url):
        problems.append("evaluate.judge.base_url: must start with http:// or https:// and hold no spaces")
    elif re.search(r"[@?#]|/chat/completions", judge.base_url):
        problems.append("evaluate.judge.base_url: the plain address, without password, ?, # and /chat/completions")
    if not re.fullmatch(r"([A-Za-z_]\w*)?", judge.key_variable, re.ASCII):
        problems.append("evaluate.judge.key_variable: the name of an environment variable, not the key itself")
    return problems
