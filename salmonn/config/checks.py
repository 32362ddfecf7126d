"""Values of a configuration that cannot be: each key's range, and what does not go together."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from salmonn.config.stored import SECRETS

CHOICES = {
    "model.llm_quantization": ("none", "8bit", "nf4", "int8"),
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
    "evaluate.efficiency.protocol": ("ours", "hackathon"),
}
NOTHING_SPELLED = "generate.ctc_weight > 0 needs model.spelled_tokens = True: without it generate.ctc_weight=0"
_MANY = 10**9  # more of anything than a run can have
_MORE, _BELOW = "more than 0", "below 1"
# Each number's least and most; `_MORE` and `_BELOW` are bounds that are not reached. nan is in none.
BOUNDS: dict[str, tuple[float | str, float | str]] = {
    "model.max_seconds": (1, 30),  # Whisper's window
    "model.whisper_silence": (0, 30),
    "model.sound_seconds": (0.02, 3600),
    "model.num_speech_query_token": (1, 10_000),
    "model.second_per_window": (0.02, 3600),  # a frame of Whisper
    "model.second_stride": (0.02, 3600),
    "model.qformer_hidden_size": (1, 100_000),
    "model.qformer_num_layers": (1, 1000),
    "model.qformer_num_heads": (1, 10_000),
    "model.qformer_intermediate_size": (1, 100_000),
    "model.lora_rank": (1, 10_000),
    "model.lora_alpha": (0, 1e6),
    "model.lora_dropout": (0, _BELOW),
    "model.lora_scaling": (0, 1e6),
    "model.max_txt_len": (1, 10**6),
    "model.device_8bit": (0, 999),
    "datasets.max_clip_seconds": (0, 1e9),
    "datasets.max_bad_fraction": (0, 1),
    "run.ctc_negatives": (0, _MANY),
    "run.ctc_weight": (0, 100),
    "run.ctc_until": ("above 0", 1),
    "run.seed": (0, 2**32 - 1),
    "run.save_every_steps": (0, _MANY),
    "run.save_every_minutes": (0, 1e6),
    "run.keep_checkpoints": (1, 10**6),
    "run.log_freq": (1, _MANY),
    "run.iters_per_epoch": (1, _MANY),
    "run.valid_every_steps": (0, _MANY),
    "run.accum_grad_iters": (1, 10**6),
    "run.batch_size_train": (1, 10**5),
    "run.batch_seconds": (0, 1e9),
    "run.batch_size_eval": (1, 10**5),
    "run.num_workers": (0, 1000),
    "run.loader_timeout_minutes": (_MORE, 1e6),
    "run.encoder_cache_gb": (_MORE, 1e6),
    "run.timeout_minutes": (_MORE, 1e6),
    "run.world_size": (0, 10**6),
    "run.optims.max_epoch": (1, _MANY),
    "run.optims.warmup_steps": (0, _MANY),
    "run.optims.warmup_start_lr": (-1, 1),
    "run.optims.init_lr": (0, 1),
    "run.optims.min_lr": (0, 1),
    "run.optims.weight_decay": (0, 1000),
    "run.optims.beta2": (0, _BELOW),
    "run.optims.lora_lr_factor": (0, 1000),
    "run.optims.muon_lr_factor": (0, 1000),
    "run.optims.grad_clip_norm": (0, 1e9),
    "generate.max_new_tokens": (1, 10**6),
    "generate.num_beams": (1, 1000),
    "generate.min_length": (0, 10**6),
    "generate.temperature": (0, 1000),
    "generate.top_p": (_MORE, 1),
    "generate.repetition_penalty": (_MORE, 1000),
    "generate.length_penalty": (-1000, 1000),
    "generate.ctc_weight": (0, 1000),
    "evaluate.judge.max_tokens": (1, 10**6),
    "evaluate.judge.concurrency": (1, 1000),
    "evaluate.judge.timeout_s": (_MORE, 1e6),
    "evaluate.judge.max_tries": (1, 1000),
    "evaluate.efficiency.seconds": (_MORE, 3600),
    "evaluate.efficiency.new_tokens": (2, 10**6),
    "evaluate.efficiency.runs": (1, 10**6),
    "evaluate.efficiency.warmup": (0, 10**6),
    "evaluate.efficiency.num_beams": (1, 1000),
}
FORMS = {
    "run.batch_tokens": (r"|auto|[1-9]\d{0,8}", "choose a number of tokens, auto, or nothing"),
    "run.device": (r"cpu|cuda(:\d{1,3})?", "choose cpu, cuda or cuda:N"),
    "run.dist_url": (
        r"env://|tcp://\S+:([1-5]?\d{1,4}|6[0-4]\d{3}|65[0-4]\d\d|655[0-2]\d|6553[0-5])|file://\S+",
        "choose env:// (torchrun, srun), tcp://HOST:PORT (up to 65535) or file://FILE",
    ),
}
# Text that names a file or a folder; ~ in front is the home folder.
PATHS = (
    *(f"model.{key}" for key in ("llama_path", "whisper_path", "beats_path", "ckpt", "speech_llama_proj_model")),
    *(f"model.{key}" for key in ("prompt_path", "test_prompt_path")),
    *(f"datasets.{key}" for key in ("prefix", "train_ann_path", "valid_ann_path", "test_ann_path")),
    *(f"datasets.{split}_ann_path_{kind}" for split in ("valid", "test") for kind in ("asr", "aac")),
    *(f"datasets.{key}" for key in ("whisper_path", "verdicts", "quarantine")),
    *(f"run.{key}" for key in ("output_dir", "exp_name", "resume", "encoder_cache")),
    *(f"evaluate.{key}" for key in ("results_dir", "name", "tasks_file", "judge.local_path")),
)
_LONGEST_NAME, _LONGEST_PATH = 200, 3000  # bytes; systems take 255 and 4095, and runs add names of their own
_MOST_FOLDERS = 300  # in each other: they are made by a function that calls itself


def impossible_values(config: DictConfig) -> list[str]:
    """A line for each value that cannot be; `config` may hold some of the sections only."""
    problems = [
        f"{key} = {value!r}: choose one of {', '.join(CHOICES[key])}"
        for key, value in _given(config, CHOICES)
        if value not in CHOICES[key]
    ]
    problems += [
        f"{key} = {value}: must be {_shown(*BOUNDS[key])}"
        for key, value in _given(config, BOUNDS)
        if not _is_within(value, *BOUNDS[key])
    ]
    problems += [
        f"{key} = {value}: {FORMS[key][1]}"
        for key, value in _given(config, FORMS)
        if not re.fullmatch(FORMS[key][0], value)
    ]
    problems += _impossible_paths(config) + _impossible_run_name(config)
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
    if OmegaConf.select(config, "run.batch_tokens"):
        problems += _impossible_budget(config.run)
    if OmegaConf.select(config, "run.shard_llm"):
        problems += _impossible_shares(config)
    if OmegaConf.select(config, "run.objective") == "ctc":
        problems += _impossible_alignment(config)
    elif "run" in config and config.model.spelled_tokens:
        problems += _impossible_spelling(config)
    if OmegaConf.select(config, "run.ctc_weight"):
        problems += _impossible_ctc_weight(config)
    if OmegaConf.select(config, "generate.ctc_weight") and "run" in config and not config.model.spelled_tokens:
        problems.append(NOTHING_SPELLED)
    problems += [
        f"{key}: holds spaces, a line break or other characters that no token has"  # not which: it is a secret
        for key, value in _given(config, SECRETS)
        if not re.fullmatch("[!-~]*", value)
    ]
    for _, model in _given(config, ["model"]):
        problems += _impossible_model(model)
    for _, judge in _given(config, ["evaluate.judge"]):
        problems += _impossible_judge(judge)
    return problems


def _given(config: DictConfig, keys: Iterable[str]) -> list[tuple[str, Any]]:
    return [(key, value) for key in keys if (value := OmegaConf.select(config, key)) is not None]


def _is_within(value: float, least: float | str, most: float | str) -> bool:
    is_enough = value > 0 if isinstance(least, str) else value >= least
    return is_enough and (value < 1 if isinstance(most, str) else value <= most)


def _shown(least: float | str, most: float | str) -> str:
    lower = least if isinstance(least, str) else f"at least {least}"
    return f"{lower} and {most if isinstance(most, str) else f'at most {most}'}"


def _impossible_paths(config: DictConfig) -> list[str]:
    """What no file system takes as a name, and what cannot be written down."""
    problems = []
    for key, path in _given(config, PATHS):
        names = [len(name.encode(errors="replace")) for name in path.split("/")]
        if max(names) > _LONGEST_NAME or sum(names) > _LONGEST_PATH or len(names) > _MOST_FOLDERS:
            problems.append(f"{key} = {path[:60]}...: longer, or deeper, than the name of a file can be")
        elif re.search("[\0\ud800-\udfff]", path):
            problems.append(f"{key} = {path!r}: holds characters that no name can have here (it must be UTF-8)")
    return problems


def _impossible_run_name(config: DictConfig) -> list[str]:
    """A name that leads to another run's folder, or out of `run.output_dir`; "" is the config file's."""
    return [
        f"run.exp_name = {name}: must be the name of a folder of its own in run.output_dir, as stage1 or may/stage1, "
        "without a slash at either end, // and the names . and .. (run.output_dir says where runs lie)"
        for _, name in _given(config, ["run.exp_name"])
        if name and {"", ".", ".."} & set(name.split("/"))
    ]


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
    if model.only_filled_windows and not model.window_level_Qformer:
        problems.append(
            "model.only_filled_windows = True does not go with model.window_level_Qformer = False: there are no windows"
        )
    if model.whisper_silence is not None:
        needed = {
            "only_filled_windows": "what Whisper has not heard makes no audio tokens",
            "freeze_whisper": "its window is that of each clip",
        }
        problems += _missing(model, f"model.whisper_silence = {model.whisper_silence:g}", needed)
    if model.spelled_tokens:
        heard = "the connector spells what it has heard in stage 0"
        needed = {"only_filled_windows": "as stage 0", "freeze_whisper": heard, "freeze_beats": heard}
        problems += _missing(model, "model.spelled_tokens = True", needed)
    if model.sound_seconds is not None:
        needed = {"spelled_tokens": "audio tokens hold how it sounds, too"}
        problems += _missing(model, f"model.sound_seconds = {model.sound_seconds:g}", needed)
    if model.low_resource and model.llm_quantization not in ("none", "8bit"):
        other = model.llm_quantization
        problems.append(f"model.low_resource = True means 8bit, model.llm_quantization says {other}: drop one of them")
    return problems


def _missing(model: DictConfig, said: str, needed: Mapping[str, str]) -> list[str]:
    return [f"{said} needs model.{key} = True: {reason}" for key, reason in needed.items() if not model[key]]


def _impossible_shares(config: DictConfig) -> list[str]:
    quantised = "8bit" if config.model.low_resource else config.model.llm_quantization
    reasons = {
        f"model.llm_quantization = {quantised}: bitsandbytes keeps a part of its weights where it is not shared; "
        "int8 can be": quantised in ("8bit", "nf4"),
        "run.objective = ctc: it does not run the LLM's blocks": config.run.objective == "ctc",
        "run.compile = True": config.run.compile,
    }
    return [f"run.shard_llm = True does not go with {reason}" for reason, is_so in reasons.items() if is_so]


def _impossible_budget(run: DictConfig) -> list[str]:
    is_auto = run.batch_tokens == "auto"
    reasons = {
        "run.loss_average = batch: that mean depends on how a step is cut": run.loss_average == "batch",
        "run.ctc_weight > 0: CTC's mean and negatives depend on how a step is cut": run.ctc_weight > 0,
        "run.objective = ctc: the LLM is not run": run.objective == "ctc",
        "run.device = cpu: name a number": is_auto and run.device == "cpu",
        "run.shard_llm = True: a process whose memory is full leaves the others waiting; name a number": (
            is_auto and run.shard_llm
        ),
    }
    said = f"run.batch_tokens = {run.batch_tokens} does not go with"
    return [f"{said} {reason}" for reason, is_so in reasons.items() if is_so]


def _impossible_alignment(config: DictConfig) -> list[str]:
    model, problems = config.model, _impossible_ctc(config, "run.objective = ctc")
    problems += [
        f"model.{key} = False does not go with run.objective = ctc: it trains the connector alone"
        for key in ("freeze_whisper", "freeze_beats")
        if not model[key]
    ]
    return problems


def _impossible_ctc_weight(config: DictConfig) -> list[str]:
    said = f"run.ctc_weight = {config.run.ctc_weight}"
    if config.run.objective == "ctc":
        return [f"{said} does not go with run.objective = ctc: there is no other loss beside which it could stand"]
    return _impossible_ctc(config, said)


def _impossible_spelling(config: DictConfig) -> list[str]:
    said = "model.spelled_tokens = True"
    problems = _impossible_order(config.model, said)
    if config.run.ctc_weight:
        problems.append(f"run.ctc_weight does not go with {said}: the LLM is not given what CTC wants")
    if not (config.model.ckpt or config.model.speech_llama_proj_model):
        problems.append(f"{said} needs a connector that spells: model.ckpt, at first that of stage 0 (configs/fast)")
    return problems


def _impossible_ctc(config: DictConfig, said: str) -> list[str]:
    problems = []
    if not config.run.ctc_tasks:
        problems.append(f"run.ctc_tasks is empty: {said} needs the tasks whose texts follow the audio")
    return problems + _impossible_order(config.model, said)


def _impossible_order(model: DictConfig, said: str) -> list[str]:
    whole = f"model.window_level_Qformer = False does not go with {said}: no order in one window"
    return [] if model.window_level_Qformer else [whole]


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
