"""Recipes: ways of training one configuration, each a few overrides."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from experiments.samples_to_learn.criterion import HALF_WAY_ACCURACY
from salmonn.common.errors import UserError
from salmonn.config.loading import load_config, typed_section
from salmonn.config.reading import read_yaml


@dataclass
class Recipe:
    """One way of training, as it differs from the published one."""

    says: str = ""  # what differs, for people
    options: list[str] = field(default_factory=list)  # key=value as after --options
    tasks: list[str] = field(default_factory=list)  # trained on; none = all
    projection_scale: float = 1.0  # factor on the initial weights of speech_llama_proj
    llm_scale: float = 1.0  # factor on all that enters the LLM's residual stream; its function stays the same
    stage0: str = ""  # config of a stage 0 whose checkpoint the run starts from
    stage0_options: list[str] = field(default_factory=list)


@dataclass
class Study:
    """A file of recipes."""

    config: str = ""  # that all start from
    options: list[str] = field(default_factory=list)  # of all recipes
    stage0_options: list[str] = field(default_factory=list)  # of the stage 0 of those that have one
    max_samples: int = 4800  # where a run ends that has not learned to listen
    min_samples: int = 0  # that each run takes at least
    half_way_accuracy: float = HALF_WAY_ACCURACY
    word_errors_every: int = 0  # samples; after so many the validation's speech is transcribed, too. 0 = never
    valid_clips: int = 48
    valid_every_samples: int = 96  # must be a multiple of each recipe's batch
    recipes: dict[str, Recipe] = field(default_factory=dict)


def load_study(path: Path) -> Study:
    """Read a file of recipes. Raises UserError for unknown keys, also for those of the recipes' configs."""
    values = OmegaConf.to_container(read_yaml(path))
    recipes = values.pop("recipes", None) or {}
    study = OmegaConf.to_object(typed_section(values, Study, str(path)))
    for name, recipe in recipes.items():
        study.recipes[name] = OmegaConf.to_object(typed_section(recipe, Recipe, f"{path}: {name}"))
        recipe_config(study, name)
        if study.recipes[name].stage0:
            stage0_config(study, name)
    return study


def recipe_config(study: Study, name: str, options: Sequence[str] = ()) -> DictConfig:
    """The complete configuration of a recipe; `options` come last. Raises UserError for what is not usable in it."""
    config = load_config(study.config, [*study.options, *study.recipes[name].options, *options])
    batch = config.run.batch_size_train * config.run.accum_grad_iters
    if study.valid_every_samples % batch:
        raise UserError(f"{name}: a step of {batch} samples does not divide {study.valid_every_samples} samples")
    if study.word_errors_every % study.valid_every_samples:
        raise UserError(f"word_errors_every is no multiple of valid_every_samples = {study.valid_every_samples}")
    config.run.valid_every_steps = study.valid_every_samples // batch
    return config


def stage0_options(study: Study, name: str) -> list[str]:
    """What the study and a recipe say of the stage 0 before it."""
    return [*study.stage0_options, *study.recipes[name].stage0_options]


def stage0_config(study: Study, name: str, options: Sequence[str] = ()) -> DictConfig:
    """The complete configuration of the stage 0 before a recipe; `options` come last."""
    return load_config(study.recipes[name].stage0, [*stage0_options(study, name), *options])
