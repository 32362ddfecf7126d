"""Recipes: ways of training one configuration, each a few overrides."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

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


@dataclass
class Study:
    """A file of recipes."""

    config: str = ""  # that all start from
    options: list[str] = field(default_factory=list)  # of all recipes
    max_samples: int = 4800  # where a run ends that has not learned to listen
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
    return study


def recipe_config(study: Study, name: str, options: Sequence[str] = ()) -> DictConfig:
    """The complete configuration of a recipe; `options` come last. Raises UserError for what is not usable in it."""
    config = load_config(study.config, [*study.options, *study.recipes[name].options, *options])
    batch = config.run.batch_size_train * config.run.accum_grad_iters
    if study.valid_every_samples % batch:
        raise UserError(f"{name}: a step of {batch} samples does not divide {study.valid_every_samples} samples")
    config.run.valid_every_steps = study.valid_every_samples // batch
    return config
