"""Recipes: ways of training one configuration, each a few overrides."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from experiments.samples_to_learn.criterion import HALF_WAY_ACCURACY
from salmonn.common.errors import UserError
from salmonn.config.loading import load_config, typed_section
from salmonn.config.reading import read_yaml

# what the encoders are and hear: of the model
OF_ENCODERS = ("whisper_path", "beats_path", "encoder_dtype", "max_seconds", "whisper_silence")
_OF_ALL_STAGES = ("model.", "datasets.", "run.amp", "run.encoder_cache")  # what is heard, by what, how precisely
_OF_STAGE_0 = "stage0/checkpoint_best.pth"  # what a recipe with a stage 0 starts from, until it is known where it lies


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
    layer_norm: bool = False  # behind the projection, at the LLM's embeddings' scale; in stage 0, too
    frame_dropout: float = 0.0  # share of the encoders' frames that stage 1 trains without
    stage0_frame_dropout: float = 0.0  # the same in stage 0
    distillation: float = 0.0  # weight of the KL from what the LLM says of the text in place of the audio
    curriculum: str = ""  # what is trained on first: a task, or `short`, the shorter half of each task
    curriculum_samples: int = 1024  # so long


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
    valid_files: list[str] = field(default_factory=list)  # where validation clips are from; none: as configured
    valid_clips: int = 48  # at least, evenly spread over all: each n-th, so it may be almost twice as many
    keep_clips: bool = False  # decode each once; then CPU seconds are without it
    valid_every_samples: int = 96  # must be a multiple of each recipe's batch
    default: list[str] = field(default_factory=list)  # recipes that run unless others are named; none: all
    recipes: dict[str, Recipe] = field(default_factory=dict)


def load_study(path: Path) -> Study:
    """Read a file of recipes. Raises UserError for unknown keys, also for those of the recipes' configs."""
    values = OmegaConf.to_container(read_yaml(path))
    recipes = values.pop("recipes", None) or {}
    study = OmegaConf.to_object(typed_section(values, Study, str(path)))
    for name, recipe in recipes.items():
        study.recipes[name] = OmegaConf.to_object(typed_section(recipe, Recipe, f"{path}: {name}"))
        config = recipe_config(study, name)
        _require_shares(study.recipes[name], f"{path}: {name}")
        if study.recipes[name].stage0:
            _require_same_ears(stage0_config(study, name), config, f"{path}: {name}")
    _require_recipes(study, study.default, f"{path}: default")
    return study


def chosen(study: Study, only: Sequence[str], path: Path) -> list[str]:
    """The recipes that are named, `all`, or where none is named the file's own choice. Raises UserError for others."""
    if "all" in only:
        return list(study.recipes)
    _require_recipes(study, only, f"--only, {path}")
    return [*only] or study.default or list(study.recipes)


def _require_recipes(study: Study, names: Sequence[str], where: str) -> None:
    if unknown := [name for name in names if name not in study.recipes]:
        raise UserError(f"{where}: no recipe is called {', '.join(unknown)}; there are {', '.join(study.recipes)}")


def _require_same_ears(stage0: DictConfig, stage1: DictConfig, where: str) -> None:
    """Raise UserError where stage 1 would begin from a connector that has learned to hear something else."""
    for key in OF_ENCODERS:
        one, other = (json.dumps(config.model[key]) for config in (stage0, stage1))
        if one != other:
            raise UserError(
                f"{where}: model.{key} = {one} in stage 0, {other} in stage 1: options do not reach stage 0, so set it "
                "in stage0_options, too"
            )


def _require_shares(recipe: Recipe, where: str) -> None:
    for key in ("frame_dropout", "stage0_frame_dropout"):
        if not 0 <= getattr(recipe, key) < 1:
            raise UserError(f"{where}: {key} = {getattr(recipe, key):g} must be at least 0 and below 1")


def recipe_config(study: Study, name: str, options: Sequence[str] = ()) -> DictConfig:
    """The complete configuration of a recipe; `options` come last. Raises UserError for what is not usable in it."""
    recipe = study.recipes[name]
    begins = [f"model.ckpt={_OF_STAGE_0}"] if recipe.stage0 else []
    config = load_config(study.config, [*study.options, *begins, *recipe.options, *options])
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


def of_parts(options: Sequence[str]) -> list[str]:
    """Those of the options for all runs that count for their stage 0, too, which has rates and batches of its own."""
    return [option for option in options if option.startswith(_OF_ALL_STAGES)]


def of_stage0(recipe: Recipe) -> dict[str, Any]:
    """What a recipe changes of stage 0 beside its options."""
    return {"layer_norm": recipe.layer_norm, "frame_dropout": recipe.stage0_frame_dropout}
