"""The runs that are kept: where, and what each was made by.

That is its recipe as written, and digests of configs, data, the model's files and of what is measured.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from experiments.samples_to_learn.criterion import Point
from experiments.samples_to_learn.recipes import (
    Recipe,
    Study,
    of_parts,
    of_stage0,
    recipe_config,
    stage0_config,
    stage0_options,
)
from salmonn.common.files import read_json
from salmonn.config.digest import BOOKKEEPING, config_digest, digest
from salmonn.config.stored import options_without_secrets
from salmonn.evaluation.provenance import file_hash

CURVE, ALIGNED = "curve.json", "stage0.json"
DIGESTS = "digests"  # runs of earlier versions have none
_FIRST_FIELDS = ("options", "tasks", "projection_scale", "llm_scale", "stage0", "stage0_options")
# of a study: that is the recipe, or its config, or which of them run
_NOT_MEASURED_BY = ("config", "options", "stage0_options", "default", "recipes")
# of a config: which seed and where, what decides on no result, and what evaluate.py goes by
_WHERE = ("run.seed", "run.output_dir", "run.exp_name", "run.overwrite")
_NOT_OF_TRAINING = (*BOOKKEEPING, *_WHERE, "evaluate.", "generate.")
_training_digest = partial(config_digest, without=_NOT_OF_TRAINING)
_FILES = ("llama_path", "whisper_path", "beats_path", "ckpt", "speech_llama_proj_model", "prompt_path")


def is_measured(name: str, seed: int, out: Path) -> bool:
    """Whether a run is there."""
    return (run_folder(out, name, seed) / CURVE).exists()


def read_curves(study: Study, out: Path) -> dict[str, dict[int, list[Point]]]:
    """The curves of all finished runs, by recipe and seed."""
    found = {name: _finished(name, out) for name in study.recipes}
    return {name: {run["seed"]: run["curve"] for run in runs} for name, runs in found.items() if runs}


def _finished(name: str, out: Path) -> list[dict[str, Any]]:
    runs = [read_json(path) for path in out.glob(f"{run_folder('', name, '*')}/{CURVE}")]
    return sorted(runs, key=lambda run: run["seed"])


def doubts(study: Study, out: Path, options: Sequence[str] = ()) -> list[str]:
    """What to say of the finished runs that may not belong beside the others: a line of those of before, and of others.

    Runs of before hold no digests; `options`: those of the command that makes the report.
    """
    before, others = [], []
    for name in study.recipes:
        runs = _finished(name, out)
        now = made_by(study, name, options) if runs else {}
        for run in runs:
            folder = str(run_folder("", name, run["seed"]))
            if DIGESTS not in run["made_by"]:
                before.append(folder)
            if other := differences(run["made_by"], now):
                others.append(f"{folder} ({', '.join(other)})")
    told = []
    if before:
        told.append(
            "Kept from an earlier version, of which it cannot be told whether they are of the same configs and data "
            f"(to make one anew, remove its folder in {out}): {', '.join(before)}."
        )
    if others:
        told.append(f"Made otherwise than this command would make them: {'; '.join(others)}.")
    return told


def run_folder(out: Path | str, name: str, seed: int | str) -> Path:
    """Where a run is kept."""
    return Path(out) / f"{name}-{seed}"


def aligned_folder(study: Study, name: str, seed: int, out: Path, options: Sequence[str] = ()) -> Path:
    """Where the stage 0 before a recipe is kept: one for all that want the same of the same annotations and models."""
    config = stage0_config(study, name, of_parts(options))
    changes = {key: value for key, value in of_stage0(study.recipes[name]).items() if value}
    made = digest([_training_digest(config), changes, annotations_digest(config), files_digest(config)])
    return out / f"stage0-{made[:8]}-{seed}"


def made_by(study: Study, name: str, options: Sequence[str] = ()) -> dict[str, Any]:
    """What a run of a recipe is told by from others, as `recipe_as_written` and `digests` say."""
    return recipe_as_written(study, name, options) | {DIGESTS: digests(study, name, options)}


def recipe_as_written(study: Study, name: str, options: Sequence[str] = ()) -> dict[str, Any]:
    """A recipe's values; of the fields that came later, those that are set."""
    recipe, plain = study.recipes[name], Recipe()
    given = [*study.options, *recipe.options, *options]
    found: dict[str, Any] = {"options": options_without_secrets(given), "tasks": recipe.tasks}
    found |= {"projection_scale": recipe.projection_scale, "llm_scale": recipe.llm_scale}
    if recipe.stage0:
        found |= {"stage0": recipe.stage0, "stage0_options": stage0_options(study, name)}
    later = {key.name: getattr(recipe, key.name) for key in fields(recipe) if key.name not in ("says", *_FIRST_FIELDS)}
    return found | {key: value for key, value in later.items() if value != getattr(plain, key)}


def digests(study: Study, name: str, options: Sequence[str] = ()) -> dict[str, str]:
    """Of the configs as their files resolve, of what is measured, and of what annotations and model's files hold."""
    plain, recipe = Study(), study.recipes[name]
    values = {key.name: getattr(study, key.name) for key in fields(study) if key.name not in _NOT_MEASURED_BY}
    found = {"what is measured": digest({key: of for key, of in values.items() if of != getattr(plain, key)})}
    config = recipe_config(study, name, options)
    # the options of the command line stand beside it as written
    found |= {"configuration": _training_digest(recipe_config(study, name)), "files of the model": files_digest(config)}
    found |= {"annotations": annotations_digest(config, study.valid_files)}
    if recipe.stage0:
        aligned = stage0_config(study, name, of_parts(options))
        found |= {"configuration of stage 0": _training_digest(stage0_config(study, name))}
        found |= {"annotations of stage 0": annotations_digest(aligned)}
    return found


def differences(kept: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In what a run that is kept was made otherwise; digests count where it has them."""
    its = kept.get(DIGESTS)
    return _unequal(kept, {**now, DIGESTS: its}) + _unequal(its or now[DIGESTS], now[DIGESTS])


def _unequal(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))


def annotations_digest(config: DictConfig, valid_files: Sequence[str] = ()) -> str:
    """Of the content of the annotation files that are there."""
    return _content_digest([config.datasets.train_ann_path, *(valid_files or [config.datasets.valid_ann_path])])


def files_digest(config: DictConfig) -> str:
    """Of the content of models, checkpoint and prompts that a run starts from, as far as they are on this disk."""
    return _content_digest([config.model[key] for key in _FILES])


def _content_digest(places: Iterable[str]) -> str:
    roots = [Path(place) for place in places if place]
    return digest([[file_hash(str(file)) for file in _content(root)] for root in roots])


def _content(root: Path) -> list[Path]:
    """A file, or those of a folder but for what the hub's client notes in hidden ones, times among it."""
    files = [root] if root.is_file() else sorted(filter(Path.is_file, root.rglob("*")))
    return [file for file in files if not any(part.startswith(".") for part in file.relative_to(root).parts)]
