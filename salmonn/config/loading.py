"""Read configuration files: typed, complete, with everything that is wrong told at once.

A config file may start from another one (`base: base.yaml`, relative to the file itself) or from several, of which
the later win; `--options a.b=c` come last. Unknown keys and wrong types are collected and told together.
"""

import copy
import functools
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_origin

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from salmonn.common.errors import UserError
from salmonn.config.checks import PATHS, impossible_values
from salmonn.config.foreign import translate
from salmonn.config.keys import nearest, section_of
from salmonn.config.reading import read_options, read_yaml
from salmonn.config.schema import Config, GenerateConfig, ModelConfig
from salmonn.config.stored import SECRETS, is_reference, plain_address, without_other_names

logger = logging.getLogger(__name__)

BEST = "checkpoint_best.pth"
RESUME = ("", "auto", "none")  # what run.resume may be beside a checkpoint's path


def load_config(path: str | Path, options: Sequence[str] = (), ckpt: str = "") -> DictConfig:
    """Read a YAML file, its bases and the `key=value` overrides into a complete typed config.

    `ckpt` is a path that takes the place of whatever they say of `model.ckpt`.
    Raises UserError that lists every unknown key, wrong type and impossible value.
    """
    source = _translated(read_yaml(Path(path)), str(path))
    overrides = _translated(read_options(options), "--options")

    problems: list[str] = []
    _unknown_keys(OmegaConf.to_container(source), Config, "", str(path), problems)
    _unknown_keys(OmegaConf.to_container(overrides), Config, "", "--options", problems)
    if problems:
        raise UserError("\n  ".join(["the configuration has keys that are not known:", *problems]))
    if ckpt:
        OmegaConf.update(overrides, "model.ckpt", ckpt)
    if "stages" in overrides:
        raise UserError("--options stages: write the list into a config file, as configs/all_stages.yaml has it")

    config = _merge_typed(defaults(Config), source, str(path), problems)
    config = _merge_typed(config, overrides, "--options", problems)
    problems += _expand_home(config)
    problems += impossible_values(config)
    if problems:
        raise UserError("\n  ".join(["the configuration is not usable:", *problems]))
    model, run = config.model, config.run
    if model.llm_dtype == "auto" and run.amp and run.amp_dtype == "bf16" and run.device != "cpu":
        model.llm_dtype = "bfloat16"  # float16 weights under bfloat16 autocast would mix
    if not run.exp_name:
        run.exp_name = Path(path).stem
    return config


def load_stages(path: str | Path, options: Sequence[str] = ()) -> list[DictConfig]:
    """The configs of a file that lists several under `stages`, else the one of the file itself.

    Each stage but the first starts from the best checkpoint of the one before. The overrides count
    for all stages, `model.ckpt` for the first. Raises UserError as `load_config`.
    """
    source = read_yaml(Path(path))
    if "stages" not in source:
        return [load_config(path, options)]
    names = source.stages
    if len(source) > 1 or not isinstance(names, ListConfig) or not names:
        raise UserError(f"{path}: `stages` must be a list of config files, and stand alone")
    given = {option.partition("=")[0] for option in options}
    if alone := given & {"run.exp_name", "run.evaluate", "stages"}:
        raise UserError(f"--options {', '.join(sorted(alone))}: not for several stages at once; start one of {path}")
    configs: list[DictConfig] = []
    for name in names:
        config = load_config(Path(path).parent / str(name), options)
        if config.run.resume not in RESUME:
            raise UserError(f"run.resume = {config.run.resume}: not for several stages at once; start one of {path}")
        if configs:
            config.model.ckpt = best_checkpoint(configs[-1].run)
        configs.append(config)
    if len({config.run.exp_name for config in configs}) < len(configs):
        raise UserError(f"{path}: each stage needs a run.exp_name of its own")
    if not all(config.run.use_distributed for config in configs[:-1]):
        raise UserError(f"{path}: only the last stage may have run.use_distributed = False")
    return configs


def best_checkpoint(run: DictConfig) -> str:
    """Where a run writes the checkpoint that the next stage starts from."""
    return str(Path(run.output_dir) / run.exp_name / BEST)


def _translated(source: DictConfig, where: str) -> DictConfig:
    """The configuration with our keys in the place of other trainers', which is told once a machine."""
    plain = OmegaConf.to_container(source)
    for line in translate(plain, where):
        if os.environ.get("LOCAL_RANK", "0") == "0":
            logger.warning(line)
    return OmegaConf.create(plain)


def _expand_home(config: DictConfig) -> list[str]:
    """Put the home folder where a path begins with ~; a line for each path whose ~ nobody knows."""
    problems = []
    for key in PATHS:
        if (path := OmegaConf.select(config, key)).startswith("~"):
            OmegaConf.update(config, key, os.path.expanduser(path))
            if OmegaConf.select(config, key) == path:
                problems.append(f"{key} = {path}: this home folder is not known; write ./{path} for a name with ~")
    for mapping in config.datasets.path_map:
        mapping.update({name: os.path.expanduser(path) for name, path in mapping.items() if name == "to"})
    return problems


def model_config(values: Mapping[str, Any] | DictConfig | ModelConfig) -> DictConfig:
    """Complete a `model` section (mapping, OmegaConf node or ModelConfig) with the defaults, and check it."""
    plain = OmegaConf.to_container(OmegaConf.create(values) if isinstance(values, Mapping) else values)
    return _foreign_section(plain, ModelConfig, "model")


def llm_quantization(model: DictConfig) -> str:
    """What loading does to the LLM's weights: none | 8bit | nf4 | int8."""
    return "8bit" if model.low_resource else model.llm_quantization


def generate_config(values: Mapping[str, Any] | DictConfig | GenerateConfig | None) -> DictConfig:
    """Complete a `generate` section with the defaults, as `model_config`; None gives the published settings."""
    if isinstance(values, GenerateConfig):
        return OmegaConf.structured(values)
    plain = {} if values is None else OmegaConf.to_container(OmegaConf.create(values))
    return _foreign_section(plain, GenerateConfig, "generate")


def _foreign_section(plain: Any, schema: type, section: str) -> DictConfig:
    """A section that may be written for another trainer, typed and checked."""
    values = OmegaConf.to_container(_translated(OmegaConf.create({section: plain}), "given values"))
    return typed_section(values.get(section, {}), schema, section)


def typed_section(values: Any, schema: type, section: str) -> DictConfig:
    """Values over the defaults of a schema. Raises UserError that lists what is wrong with the section."""
    problems: list[str] = []
    _unknown_keys(values, schema, f"{section}.", "given values", problems)
    if not problems:
        config = _merge_typed(defaults(schema), OmegaConf.create(values), section, problems)
        problems += impossible_values(OmegaConf.create({section: config}))
    if problems:
        raise UserError("\n  ".join([f"the section {section} is not usable:", *problems]))
    return config


def _unknown_keys(values: Any, schema: type, prefix: str, where: str, problems: list[str]) -> None:
    known = {f.name: f for f in fields(schema)}
    if values is None:
        return
    if not isinstance(values, dict):
        what = "a list" if isinstance(values, list) else "one value"  # not which: it may be a secret
        problems.append(f"{where}: {prefix.rstrip('.')} must be a section of keys, not {what}")
        return
    for key, value in values.items():
        if key not in known:
            problems.append(f"{where}: {prefix}{key}{nearest(prefix, str(key), list(known))}")
        elif section := section_of(known[key]):
            _unknown_keys(value, section, f"{prefix}{key}.", where, problems)
        elif isinstance(value, dict) and get_origin(known[key].type) is not dict:
            problems.append(f"{where}: {prefix}{key} takes a value, not a section")


def defaults(schema: type) -> DictConfig:
    """A schema's defaults, for the caller to change."""
    return copy.deepcopy(_built(schema))


@functools.cache
def _built(schema: type) -> DictConfig:
    return OmegaConf.structured(schema)  # takes OmegaConf six times as long as a copy


def _merge_typed(config: DictConfig, values: DictConfig, where: str, problems: list[str]) -> DictConfig:
    """Merge leaf by leaf, so that every wrong type is reported and not only the first."""
    try:
        plain = OmegaConf.to_container(values, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        problems.append(f"{where}: {without_other_names(str(error).splitlines()[0])}")
        return config
    written = dict(leaves(OmegaConf.to_container(values)))
    for key, value in leaves(plain):
        is_secret = key in SECRETS or f"{where}.{key}" in SECRETS  # the section by itself goes without its name
        if is_secret and is_reference(written.get(key)):
            value = written[key]  # looked up when it is used, so that what is written down still says where it is
        if value is None:  # an empty value takes back what a base or a file says
            value = copy.deepcopy(OmegaConf.select(_built(OmegaConf.get_type(config)), key))
        try:
            OmegaConf.update(config, key, value, merge=False)
        except OmegaConfBaseException as error:
            wrong = "must be text" if is_secret else f"{str(error).splitlines()[0]}"
            problems.append(plain_address(f"{where}: {key}{'' if is_secret else f' = {value!r}'}: {wrong}"))
    return config


def leaves(values: Mapping[Any, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted key, value) of all values of nested dicts."""
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            found += leaves(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", value))
    return found
