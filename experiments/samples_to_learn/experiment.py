"""One run of a recipe: stage 1 by the real Runner, validated often, ended when all is known."""

import contextlib
import math
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import editdistance
import torch
from omegaconf import DictConfig
from torch import nn
from tqdm import tqdm

from experiments.samples_to_learn.changes import distil, drop_frames, easier, normalise_audio_tokens
from experiments.samples_to_learn.criterion import Point, says_enough
from experiments.samples_to_learn.kept import (
    ALIGNED,
    CURVE,
    aligned_folder,
    differences,
    is_measured,
    made_by,
    run_folder,
)
from experiments.samples_to_learn.recipes import (
    OF_ENCODERS,
    Recipe,
    Study,
    of_parts,
    of_stage0,
    recipe_config,
    stage0_config,
)
from salmonn.common.device import autocast
from salmonn.common.errors import UserError
from salmonn.common.files import make_folder, read_json, write_json
from salmonn.common.samples import Samples
from salmonn.config.loading import BEST
from salmonn.data.annotation_format import write_annotations
from salmonn.data.annotations import Annotations
from salmonn.data.dataset import SALMONNDataset
from salmonn.data.loader import eval_loader, open_datasets
from salmonn.evaluation.normalisers import words as normalise
from salmonn.model.alignment import build_model
from salmonn.model.encoder_cache import open_cache
from salmonn.model.meta_model import heard_seconds
from salmonn.training.readiness import require_all_ready
from salmonn.training.runner import Runner
from salmonn.training.validation import fixed_prompts

ENOUGH = "the end of the experiment"
GREEDY = {"num_beams": 1, "max_new_tokens": 60}


def measure(study: Study, name: str, seed: int, out: Path, options: Sequence[str] = ()) -> None:
    """Make one run and write its curve to its folder; a run that is there already is kept.

    Raises UserError where the run that is there was made in another way.
    """
    folder, recipe, made = run_folder(out, name, seed), study.recipes[name], made_by(study, name, options)
    if is_measured(name, seed, out):
        if other := differences(read_json(folder / CURVE)["made_by"], made):
            raise UserError(
                f"{folder} holds a run that was made otherwise: {', '.join(other)} differ. Remove it, or choose "
                "another --out"
            )
        return
    before, started_from = {}, []
    if recipe.stage0:
        aligned = aligned_folder(study, name, seed, out, options)
        before = _align(study, name, aligned, seed, options)
        started_from = [f"model.ckpt={aligned / BEST}"]
    config = recipe_config(study, name, [*options, *started_from, *_where(folder, seed)])
    _take_subsets(config.datasets, study, recipe.tasks, folder)
    curve = _run(config, study, recipe)
    for point in curve:
        point["cpu_seconds"] += before.get("cpu_seconds", 0.0)
    write_json(folder / CURVE, {"made_by": made, "seed": seed, "stage0": before, "curve": curve})


def _where(folder: Path, seed: int) -> list[str]:
    return [f"run.seed={seed}", f"run.output_dir={folder.parent}", "run.overwrite=True", f"run.exp_name={folder.name}"]


def fill_cache(study: Study, names: Sequence[str], options: Sequence[str] = ()) -> None:
    """Encode every clip once in each way, so that no run pays for what others find; nothing to do without a cache."""
    configs = [recipe_config(study, name, options) for name in names]
    configs += [stage0_config(study, name, of_parts(options)) for name in names if study.recipes[name].stage0]
    filled = set()
    for config in configs:
        run = config.run
        kept = (run.encoder_cache, config.model.only_filled_windows or run.objective == "ctc")
        kept += (run.amp and run.amp_dtype, *(config.model[key] for key in OF_ENCODERS))
        if not run.encoder_cache or kept in filled:
            continue
        filled.add(kept)
        config.model.ckpt = ""  # of stage 0, which is still to be run: what encoders say does not go by it
        model = build_model(config.model, run, torch.device(run.device)).eval()
        datasets = open_datasets(config, heard_seconds(config.model))
        model.encoder_cache = open_cache(config, model, sum(map(len, datasets.values())))
        for dataset in datasets.values():
            batches = eval_loader(dataset, run.batch_size_eval, run.num_workers, 0, 1)
            for samples in tqdm(batches, "filling the encoder cache", -(-len(dataset) // run.batch_size_eval)):
                with torch.no_grad(), autocast(run, model.device):
                    model.encode_clips(samples["raw_wav"], samples["padding_mask"])


def _run(config: DictConfig, study: Study, recipe: Recipe) -> list[Point]:
    require_all_ready([config])
    runner = ObservedRunner(config, study, recipe)
    if not runner.run() and runner.stop_request.name != ENOUGH:
        raise KeyboardInterrupt
    return runner.curve


def _align(study: Study, name: str, folder: Path, seed: int, options: Sequence[str]) -> dict[str, float]:
    """Stage 0, once: samples and CPU seconds of its training, and its word error rate by greedy CTC."""
    if (folder / ALIGNED).exists():
        return read_json(folder / ALIGNED)
    config = stage0_config(study, name, [*of_parts(options), *_where(folder, seed)])
    require_all_ready([config])
    runner = TimedRunner(config, **of_stage0(study.recipes[name]))
    if not runner.run():
        raise KeyboardInterrupt
    best = runner.progress.best
    found = {
        "samples": runner.progress.samples,
        "cpu_seconds": runner.trained_seconds(),
        "word_error_rate": best["word_error_rate"],
        "word_error_rate_shuffled": best["word_error_rate_shuffled"],
    }
    write_json(folder / ALIGNED, found)
    return found


class TimedRunner(Runner):
    """A run that counts the CPU seconds of its training, without validations.

    Decoding of clips counts, unless workers do it (`run.num_workers`) or `keep_clips` has it done before.
    """

    def __init__(self, config: DictConfig, layer_norm: bool = False, frame_dropout: float = 0.0) -> None:
        super().__init__(config)
        self.layer_norm, self.frame_dropout = layer_norm, frame_dropout
        self._ended: float | None = None

    def prepare(self) -> None:
        """As usual, with what a recipe changes of the connector."""
        super().prepare()
        if self.layer_norm:
            normalise_audio_tokens(self.model)
        if self.frame_dropout:
            drop_frames(self.model, self.frame_dropout)
        self._began, self._aside = time.process_time(), 0.0

    def train(self) -> bool:
        """As usual; what a run does once it is trained, such as drawing its curves, does not count."""
        is_done = super().train()
        self._ended = time.process_time()
        return is_done

    def trained_seconds(self) -> float:
        """CPU seconds of training until now, of all threads of this process."""
        return (self._ended or time.process_time()) - self._began - self._aside

    def validate(self, dataset: SALMONNDataset, epoch: int, step: int) -> dict[str, Any] | None:
        """As usual; its time does not count."""
        began = time.process_time()
        result = super().validate(dataset, epoch, step)
        self._aside += time.process_time() - began
        return result


class ObservedRunner(TimedRunner):
    """A run that remembers its validations and ends soon after the plateau is left."""

    def __init__(self, config: DictConfig, study: Study, recipe: Recipe) -> None:
        super().__init__(config, recipe.layer_norm, recipe.frame_dropout)
        self.study, self.recipe = study, recipe
        self.curve: list[Point] = []

    def prepare(self) -> None:
        """As usual, with the scales and the loss that the recipe wants."""
        super().prepare()
        if self.recipe.distillation:
            distil(self.model, self.recipe.distillation)
        scale_(self.model.speech_llama_proj.parameters(), self.recipe.projection_scale)
        scale_(residual_writers(self.model.llama_model), self.recipe.llm_scale)

    def validate(self, dataset: SALMONNDataset, epoch: int, step: int) -> dict[str, Any] | None:
        """As usual; asks the run to end when enough is known."""
        result = super().validate(dataset, epoch, step)
        if result is not None:
            samples, study = self.progress.samples, self.study
            seconds = self.trained_seconds()
            point = {"samples": samples, "cpu_seconds": seconds, "samples_per_cpu_second": samples / seconds, **result}
            if study.word_errors_every and samples % study.word_errors_every == 0:
                point["word_error_rate"] = self._word_error_rate(dataset)
            self.curve.append(point)
            is_enough = samples >= study.min_samples and says_enough(self.curve, study.half_way_accuracy)
            if is_enough or samples >= study.max_samples:
                self.stop_request.name = ENOUGH
        return result

    def _training_batches(self, dataset: SALMONNDataset) -> Generator[Samples]:
        """As usual, but first those of the recipe's curriculum."""
        if self.recipe.curriculum:
            n_batches = self.recipe.curriculum_samples // self.run_config.batch_size_train
            with contextlib.closing(super()._training_batches(easier(dataset, self.recipe.curriculum))) as first:
                yield from islice(first, n_batches)
        yield from super()._training_batches(dataset)

    def _word_error_rate(self, dataset: SALMONNDataset) -> float:
        """Of greedy transcripts of the validation clips; not in the training's time."""
        began, errors, words = time.process_time(), 0, 0
        loader = eval_loader(dataset, self.run_config.batch_size_eval, self.run_config.num_workers, 0, 1)
        self.model.eval()
        for samples in loader:
            speech = [i for i, task in enumerate(samples["task"]) if task == "asr"]
            if not speech:
                continue
            picked: Samples = {"raw_wav": samples["raw_wav"][speech], "padding_mask": samples["padding_mask"][speech]}
            asked = fixed_prompts(self.model, samples)
            chosen = None if asked is None else [asked[i] for i in speech]
            with self.autocast():
                said = self.model.generate(picked, GREEDY, prompts=chosen)
            for i, text in zip(speech, said, strict=True):
                expected = normalise(samples["text"][i]).split()
                errors, words = errors + editdistance.eval(normalise(text).split(), expected), words + len(expected)
        self._aside += time.process_time() - began
        return errors / words if words else math.nan


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
    """Multiply in place; by 1 also what an LLM in 8 bits has, which cannot be multiplied."""
    if factor != 1:
        for parameter in parameters:
            parameter.mul_(factor)


def _take_subsets(datasets: DictConfig, study: Study, tasks: Sequence[str], folder: Path) -> None:
    """Put smaller annotation files in place: some validation clips of every task, training clips of some tasks."""
    make_folder(folder)
    valid = [entry for path in study.valid_files or [datasets.valid_ann_path] for entry in _entries(path)]
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
    write_annotations(path, entries)
    return str(path)
