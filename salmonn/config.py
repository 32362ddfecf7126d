"""Typed configuration: the published keys, ours beside them, each default in one place.

A config file may start from another one (`base: base.yaml`, relative to the file itself);
`--options a.b=c` come last. Unknown keys and wrong types are collected and told together.
"""

import difflib
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from salmonn.errors import UserError


@dataclass
class ModelConfig:
    llama_path: str = ""  # folder (or hub name) of the language model
    whisper_path: str = ""  # folder (or hub name) of Whisper
    beats_path: str = ""  # published BEATs .pt file; "" trains without BEATs
    ckpt: str = ""  # SALMONN checkpoint to start from
    token: str = ""  # hub access token for gated models
    freeze_whisper: bool = True
    freeze_beats: bool = True
    use_speech_Qformer: bool = True
    freeze_speech_QFormer: bool = False
    window_level_Qformer: bool = True  # False: one window over the whole clip
    num_speech_query_token: int = 1  # queries per window
    second_per_window: float = 0.333333  # s
    second_stride: float = 0.333333  # s
    qformer_hidden_size: int = 768
    qformer_num_layers: int = 2
    qformer_num_heads: int = 12
    qformer_intermediate_size: int = 3072
    speech_llama_proj_model: str = ""  # checkpoint to take parameters from before `ckpt`
    freeze_speech_llama_proj: bool = False
    lora: bool = True
    lora_rank: int = 8
    lora_alpha: float = 32
    lora_dropout: float = 0.1
    lora_target_modules: list[str] = field(default_factory=lambda: ["q_proj", "v_proj"])
    multi_prompt: bool = True  # False: one prompt for all samples of a single-task batch
    prompt_path: str = ""  # JSON {task: [prompt, ...]}
    test_prompt_path: str = ""  # JSON {task: prompt}
    prompt_template: str = "USER: {}\nASSISTANT:"
    max_txt_len: int = 300  # tokens of a target, end symbol included
    end_sym: str = "</s>"
    low_resource: bool = False  # published name of llm_quantization: 8bit
    llm_quantization: str = "none"  # none | 8bit | nf4
    llm_dtype: str = "auto"  # auto (float16 on GPU as published, float32 on CPU) | float16 | ...
    device_8bit: int = 0  # GPU of a quantised model when torchrun gives no local rank


@dataclass
class DatasetsConfig:
    prefix: str = ""  # joined in front of each annotation's path
    train_ann_path: str = ""
    valid_ann_path: str = ""
    test_ann_path: str = ""
    valid_ann_path_asr: str = ""  # evaluate.py --mode valid_asr
    valid_ann_path_aac: str = ""
    test_ann_path_asr: str = ""  # evaluate.py --mode submission_asr
    test_ann_path_aac: str = ""
    whisper_path: str = ""  # accepted as published; features are made as model.whisper_path says


@dataclass
class OptimsConfig:
    max_epoch: int = 30
    warmup_steps: int = 3000
    warmup_start_lr: float = 1e-6  # below 0: no ramp, start at init_lr
    init_lr: float = 3e-5
    min_lr: float = 1e-5
    weight_decay: float = 0.05
    beta2: float = 0.999
    grad_clip_norm: float = 0.0  # global norm of the unscaled gradients; 0 = no clipping


@dataclass
class RunConfig:
    seed: int = 42
    output_dir: str = "output"
    exp_name: str = ""  # folder inside output_dir; "" = the config file's name
    overwrite: bool = False  # True: a run may replace the one that its folder holds
    evaluate: bool = False  # only validate, on datasets.test_ann_path
    log_freq: int = 5  # steps
    epoch_based: bool = False  # True: an epoch is one pass over the data
    iters_per_epoch: int = 3000
    accum_grad_iters: int = 1
    batch_size_train: int = 8  # per process
    batch_size_eval: int = 8
    num_workers: int = 8  # loader processes per rank
    device: str = "cuda"
    use_distributed: bool = True  # False: ignore torchrun's environment
    amp: bool = True
    amp_dtype: str = "fp16"  # fp16 (with loss scaling) | bf16
    world_size: int = 1  # accepted as published; torchrun decides
    dist_url: str = "env://"
    optims: OptimsConfig = field(default_factory=OptimsConfig)


@dataclass
class GenerateConfig:
    max_new_tokens: int = 200
    num_beams: int = 4
    do_sample: bool = False
    min_length: int = 1
    temperature: float = 1.0
    top_p: float = 0.9
    repetition_penalty: float = 1.0
    length_penalty: float = 1.0


@dataclass
class EvaluateConfig:
    results_dir: str = "results"
    name: str = ""  # folder inside results_dir; "" = the mode
    shuffled_control: bool = False  # score once more with the audio swapped between clips


@dataclass
class Config:
    model: ModelConfig = field(default_factory=ModelConfig)
    datasets: DatasetsConfig = field(default_factory=DatasetsConfig)
    run: RunConfig = field(default_factory=RunConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)


CHOICES = {
    "model.llm_quantization": ("none", "8bit", "nf4"),
    "model.llm_dtype": ("auto", "float16", "bfloat16", "float32"),
    "run.amp_dtype": ("fp16", "bf16"),
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
    "run.batch_size_train",
    "run.batch_size_eval",
    "run.iters_per_epoch",
    "run.log_freq",
    "run.optims.max_epoch",
    "generate.max_new_tokens",
    "generate.num_beams",
)
NOT_NEGATIVE = ("run.num_workers", "run.optims.warmup_steps", "run.optims.grad_clip_norm", "generate.min_length")


def load_config(path: str | Path, options: Sequence[str] = ()) -> DictConfig:
    """Read a YAML file, its bases and the `key=value` overrides into a complete typed config.

    Raises UserError that lists every unknown key, wrong type and impossible value.
    """
    source = _read_yaml(Path(path))
    for option in options:
        if "=" not in option:
            raise UserError(f"--options {option}: write it as key=value, e.g. run.batch_size_train=4")
    try:
        overrides = OmegaConf.from_dotlist(list(options))
    except (OmegaConfBaseException, YAMLError) as error:
        raise UserError(f"--options {' '.join(options)}: {error}") from error

    problems: list[str] = []
    _unknown_keys(OmegaConf.to_container(source), Config, "", str(path), problems)
    _unknown_keys(OmegaConf.to_container(overrides), Config, "", "--options", problems)
    if problems:
        raise UserError("\n  ".join(["the configuration has keys that are not known:", *problems]))

    config = _merge_typed(OmegaConf.structured(Config), source, str(path), problems)
    config = _merge_typed(config, overrides, "--options", problems)
    problems += _impossible_values(config)
    if problems:
        raise UserError("\n  ".join(["the configuration is not usable:", *problems]))
    if not config.run.exp_name:
        config.run.exp_name = Path(path).stem
    return config


def model_config(values: Mapping[str, Any] | DictConfig | ModelConfig) -> DictConfig:
    """Complete a `model` section (mapping, OmegaConf node or ModelConfig) with the defaults."""
    plain = OmegaConf.to_container(OmegaConf.create(values) if isinstance(values, Mapping) else values)
    return _complete(plain, ModelConfig, "model")


def generate_config(values: Mapping[str, Any] | DictConfig | GenerateConfig | None) -> DictConfig:
    """Complete a `generate` section with the defaults; None gives the published settings."""
    if isinstance(values, GenerateConfig):
        return OmegaConf.structured(values)
    return _complete(
        {} if values is None else OmegaConf.to_container(OmegaConf.create(values)), GenerateConfig, "generate"
    )


def _complete(values: Any, schema: type, section: str) -> DictConfig:
    problems: list[str] = []
    _unknown_keys(values, schema, f"{section}.", "given values", problems)
    if not problems:
        config = _merge_typed(OmegaConf.structured(schema), OmegaConf.create(values), section, problems)
        problems += _impossible_values(OmegaConf.create({section: config}))
    if problems:
        raise UserError("\n  ".join([f"the section {section} is not usable:", *problems]))
    return config


def _read_yaml(path: Path, seen: tuple[Path, ...] = ()) -> DictConfig:
    if path.resolve() in seen:
        raise UserError(f"{path}: `base` leads back to the same file")
    if not path.is_file():
        raise UserError(f"config file {path} does not exist; the ready ones are in configs/")
    try:
        config = OmegaConf.load(path)
    except (YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(config, DictConfig):
        raise UserError(f"{path}: expected sections (model, datasets, run, ...) at the top level")
    base = config.pop("base", None)
    if base is None:
        return config
    if not isinstance(base, str):
        raise UserError(f"{path}: base = {base!r}: expected the name of a config file")
    return OmegaConf.merge(_read_yaml(path.parent / base, (*seen, path.resolve())), config)


def _unknown_keys(values: Any, schema: type, prefix: str, where: str, problems: list[str]) -> None:
    known = {f.name: f for f in fields(schema)}
    if values is None:
        return
    if not isinstance(values, dict):
        problems.append(f"{where}: {prefix.rstrip('.')} must be a section of keys, got {values!r}")
        return
    for key, value in values.items():
        if key not in known:
            problems.append(f"{where}: {prefix}{key}{_nearest(prefix, str(key))}")
        elif is_dataclass(known[key].type):
            _unknown_keys(value, known[key].type, f"{prefix}{key}.", where, problems)
        elif isinstance(value, dict):
            problems.append(f"{where}: {prefix}{key} takes a value, not a section")


def _nearest(prefix: str, key: str) -> str:
    everywhere = list(known_keys())
    same_section = [k for k in everywhere if k.rpartition(".")[0] == prefix.rstrip(".")]
    for pool in (same_section, everywhere):
        by_name = {k.rpartition(".")[2].lower(): k for k in reversed(pool)}
        match = difflib.get_close_matches(key.lower(), by_name, n=1, cutoff=0.6)
        if match:
            return f" (did you mean {by_name[match[0]]}?)"
    return f" (known here: {', '.join(k.rpartition('.')[2] for k in same_section)})"


def known_keys(schema: type = Config, prefix: str = "") -> list[str]:
    """Every dotted key of the schema, sections before their keys."""
    keys = []
    for f in fields(schema):
        keys.append(prefix + f.name)
        if is_dataclass(f.type):
            keys += known_keys(f.type, f"{prefix}{f.name}.")
    return keys


def _merge_typed(config: DictConfig, values: DictConfig, where: str, problems: list[str]) -> DictConfig:
    """Merge leaf by leaf, so that every wrong type is reported and not only the first."""
    try:
        plain = OmegaConf.to_container(values, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        problems.append(f"{where}: {str(error).splitlines()[0]}")
        return config
    defaults = OmegaConf.structured(OmegaConf.get_type(config))
    for key, value in _leaves(plain):
        if value is None:  # an empty value takes back what a base or a file says
            value = OmegaConf.select(defaults, key)
        try:
            OmegaConf.update(config, key, value, merge=False)
        except OmegaConfBaseException as error:
            problems.append(f"{where}: {key} = {value!r}: {str(error).splitlines()[0]}")
    return config


def _leaves(values: dict[Any, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            found += _leaves(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", value))
    return found


def _impossible_values(config: DictConfig) -> list[str]:
    problems = []
    for key, choices in CHOICES.items():
        value = OmegaConf.select(config, key)
        if value is not None and value not in choices:
            problems.append(f"{key} = {value!r}: choose one of {', '.join(choices)}")
    for key in AT_LEAST_ONE:
        value = OmegaConf.select(config, key)
        if value is not None and value < 1:
            problems.append(f"{key} = {value}: must be at least 1")
    for key in NOT_NEGATIVE:
        value = OmegaConf.select(config, key)
        if value is not None and value < 0:
            problems.append(f"{key} = {value}: must not be negative")
    if OmegaConf.select(config, "generate.do_sample") and config.generate.temperature <= 0:
        problems.append(f"generate.temperature = {config.generate.temperature}: sampling needs more than 0")
    model = OmegaConf.select(config, "model")
    if model is not None:
        problems += _impossible_model(model)
    return problems


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
    for key in ("second_per_window", "second_stride"):
        if round(50 * model[key]) < 1:
            problems.append(f"model.{key} = {model[key]}: shorter than one 20 ms frame of Whisper")
    if model.low_resource and model.llm_quantization == "nf4":
        problems.append("model.low_resource = True means 8bit, model.llm_quantization says nf4: drop one of them")
    return problems


def argument_parser(description: str, default_cfg_path: str | None = None) -> ArgumentParser:
    """The options shared by the commands: --cfg-path and --options."""
    parser = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cfg-path",
        required=default_cfg_path is None,
        default=default_cfg_path,
        metavar="FILE",
        help="YAML configuration"
        + (f" (default: {default_cfg_path})" if default_cfg_path else ", e.g. configs/stage1.yaml"),
    )
    parser.add_argument(
        "--options",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="override single keys, e.g. run.batch_size_train=4 model.ckpt=last.pth",
    )
    return parser
