"""One run of a recipe: stage 1 by the real Runner, validated often, ended when all is known."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from experiments.samples_to_learn.criterion import Point, says_enough
from experiments.samples_to_learn.recipes import Recipe, Study, recipe_config
from salmonn.common.errors import UserError
from salmonn.common.files import write_json
from salmonn.config.stored import options_without_secrets
from salmonn.data.annotations import Annotations
from salmonn.data.dataset import SALMONNDataset
from salmonn.training.readiness import require_all_ready
from salmonn.training.runner import Runner

CURVE = "curve.json"
ENOUGH = "the end of the experiment"


def measure(study: Study, name: str, seed: int, out: Path, options: Sequence[str] = ()) -> None:
    """Make one run and write its curve to its folder; a run that is there already is kept.

    Raises UserError where the run that is there was made in another way.
    """
    folder, recipe = run_folder(out, name, seed), study.recipes[name]
    given = [*study.options, *recipe.options, *options]
    made_by = {"options": options_without_secrets(given), "tasks": recipe.tasks}
    made_by |= {"projection_scale": recipe.projection_scale, "llm_scale": recipe.llm_scale}
    if (folder / CURVE).exists():
        if _read(folder / CURVE)["made_by"] != made_by:
            raise UserError(f"{folder} holds a run of another recipe: remove it, or choose another --out")
        return
    where = [f"run.seed={seed}", f"run.output_dir={out}", f"run.exp_name={folder.name}", "run.overwrite=True"]
    config = recipe_config(study, name, [*options, *where])
    _take_subsets(config.datasets, study, recipe.tasks, folder)
    curve = _run(config, study.max_samples, recipe)
    write_json(folder / CURVE, {"made_by": made_by, "seed": seed, "curve": curve})


def read_curves(study: Study, out: Path) -> dict[str, dict[int, list[Point]]]:
    """The curves of all finished runs, by recipe and seed."""
    found = {}
    for name in study.recipes:
        runs = [_read(path) for path in out.glob(f"{run_folder('', name, '*')}/{CURVE}")]
        if runs:
            found[name] = {run["seed"]: run["curve"] for run in sorted(runs, key=lambda run: run["seed"])}
    return found


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def run_folder(out: Path | str, name: str, seed: int | str) -> Path:
    """Where a run is kept."""
    return Path(out) / f"{name}-{seed}"


def _run(config: DictConfig, max_samples: int, recipe: Recipe) -> list[Point]:
    require_all_ready([config])
    runner = ObservedRunner(config, max_samples, recipe)
    if not runner.run() and runner.stop_request.name != ENOUGH:
        raise KeyboardInterrupt
    return runner.curve


class ObservedRunner(Runner):
    """A run that remembers its validations and ends soon after the plateau is left."""

    def __init__(self, config: DictConfig, max_samples: int, recipe: Recipe) -> None:
        super().__init__(config)
        self.max_samples, self.recipe = max_samples, recipe
        self.curve: list[Point] = []

    def prepare(self) -> None:
        """As usual, and the scales that the recipe wants."""
        super().prepare()
        scale_(self.model.speech_llama_proj.parameters(), self.recipe.projection_scale)
        scale_(residual_writers(self.model.llama_model), self.recipe.llm_scale)

    def validate(self, dataset: SALMONNDataset, epoch: int, step: int) -> dict[str, Any] | None:
        """As usual; asks the run to end when enough is known."""
        result = super().validate(dataset, epoch, step)
        if result is not None:
            self.curve.append({"samples": self.progress.samples, **result})
            is_late = self.progress.samples >= self.max_samples
            if is_late or says_enough(self.curve):
                self.stop_request.name = ENOUGH
        return result


def residual_writers(llm: nn.Module) -> Iterator[nn.Parameter]:
    """Weights of a LLaMA whose outputs are added up in its residual stream.

    Only RMSNorm reads that stream, so one factor on all of them changes no logit. The vocabulary's own
    matrix must not be among them: models with tied embeddings are not for this.
    """
    yield llm.get_input_embeddings().weight
    for layer in llm.get_decoder().layers:
        yield layer.self_attn.o_proj.weight
        yield layer.mlp.down_proj.weight


@torch.no_grad()
def scale_(parameters: Iterable[nn.Parameter], factor: float) -> None:
    """Multiply in place."""
    for parameter in parameters:
        parameter.mul_(factor)


def _take_subsets(datasets: DictConfig, study: Study, tasks: Sequence[str], folder: Path) -> None:
    """Put smaller annotation files in place: some validation clips of every task, training clips of some tasks."""
    folder.mkdir(parents=True, exist_ok=True)
    valid = _entries(datasets.valid_ann_path)
    step = max(1, len(valid) // study.valid_clips)
    datasets.valid_ann_path = _write(valid[::step], folder / "valid.json")
    if tasks:
        train = [entry for entry in _entries(datasets.train_ann_path) if entry["task"] in tasks]
        if not train:
            raise UserError(f"{datasets.train_ann_path} has no entry of the tasks {', '.join(tasks)}")
        datasets.train_ann_path = _write(train, folder / "train.json")


def _entries(path: str) -> list[dict[str, Any]]:
    annotations = Annotations(path)
    return [annotations[i] for i in range(len(annotations))]


def _write(entries: list[dict[str, Any]], path: Path) -> str:
    write_json(path, {"annotation": entries})
    return str(path)
