"""Evaluations from a configuration to their results: one set, or many with one loading of the model."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from salmonn import SALMONN, distributed
from salmonn.annotations import Annotations
from salmonn.config import generate_config
from salmonn.dataset import SALMONNDataset
from salmonn.errors import UserError
from salmonn.evaluation.answers import AnswerStore
from salmonn.evaluation.generation import generate_outputs
from salmonn.evaluation.jobs import Job, plan_jobs, swap_audio
from salmonn.evaluation.provenance import fingerprint, provenance
from salmonn.evaluation.report import build_report, prediction_lines, summary, write_report, write_text
from salmonn.evaluation.submission import submission_csv
from salmonn.evaluation.table3 import write_overview
from salmonn.evaluation.tasks import Clip, EvalTask, annotation_key, clips_of, load_tasks, task_of_mode
from salmonn.preflight import find_problems, refuse
from salmonn.prompts import load_test_prompts
from salmonn.run_log import setup_logging


@dataclass
class EvalSet:
    """A task's clips and what is asked of each."""

    task: EvalTask
    dataset: SALMONNDataset
    clips: list[Clip]
    jobs: list[Job]


def evaluate(config: DictConfig, mode: str, names: Sequence[str] = ()) -> None:
    """Answer and score the set of a mode, or with table3 those of the tasks file (or those named).

    Raises UserError for whatever is missing or contradictory, before the model is loaded.
    """
    folder = Path(config.evaluate.results_dir) / (config.evaluate.name or mode)
    if mode == "table3":
        tasks = load_tasks(config.evaluate.tasks_file, names)
        there = [task for task in tasks if Path(task.annotation).is_file()]
        if not there or (names and len(there) < len(tasks)):
            absent = "".join(f"\n  {task.name}: {task.annotation}" for task in tasks if task not in there)
            raise UserError(f"these sets are not here; util/prepare_eval_sets.py makes them:{absent}")
        with session(config):
            reports = evaluate_sets(config, there, folder, {task.name: folder / task.name for task in there})
            if distributed.is_main():
                print(write_overview(folder, tasks, reports), flush=True)
        return
    with session(config, [annotation_key(mode, config.datasets)]):
        task = task_of_mode(mode, config.datasets)
        evaluate_sets(config, [task], folder, {task.name: folder})


@contextmanager
def session(config: DictConfig, annotations: Sequence[str] = ()) -> Iterator[None]:
    """Check what the config names, join the other processes; leave them at the end.

    `annotations`: keys of the datasets section that have to name a file.
    """
    if not config.run.use_distributed and int(os.environ.get("RANK", 0)) > 0:
        raise SystemExit(0)  # the first process evaluates alone
    setup_logging()
    if distributed.is_local_main():  # one process looks; the others wait for it where all join
        refuse(find_problems(config, annotations, training=False))
    distributed.init(config)
    try:
        yield
    finally:
        distributed.shutdown()


def evaluate_sets(
    config: DictConfig, tasks: Sequence[EvalTask], folder: Path, folders: dict[str, Path]
) -> dict[str, dict[str, Any]]:
    """Answer and score each task with one model; returns the reports by task name, complete on rank 0."""
    if not config.model.test_prompt_path:
        raise UserError("model.test_prompt_path is not set: evaluation asks each task's test prompt")
    prompts = load_test_prompts(config.model.test_prompt_path, config.model.prompt_template)
    sets = [open_set(task, config, prompts) for task in tasks]
    try:
        folder.mkdir(parents=True, exist_ok=True)  # one that cannot be written is known at once
    except OSError as error:
        raise UserError(f"evaluate.results_dir = {config.evaluate.results_dir}: {error}") from error
    torch.manual_seed(config.run.seed)
    model = SALMONN.from_config(config.model, device=distributed.device_of(config)).eval()
    return {one.task.name: evaluate_set(model, one, config, folders[one.task.name]) for one in sets}


def open_set(task: EvalTask, config: DictConfig, prompts: dict[str, str]) -> EvalSet:
    """Read a task's annotation file. Raises UserError for what cannot be evaluated."""
    annotations = Annotations(task.annotation, need_text=not task.is_submission)
    dataset = SALMONNDataset.from_config(annotations, config.datasets, replace_broken=False)
    # as written, without the default task: here the task knows better
    clips = clips_of([annotations.as_written(i) for i in range(len(annotations))], task, task.annotation)
    jobs = plan_jobs(clips, prompts, config.model.test_prompt_path)
    if config.evaluate.shuffled_control and not task.is_submission:
        swap_audio(jobs)  # a set that is too small is told before the model is loaded
    return EvalSet(task, dataset, clips, jobs)


def evaluate_set(model: SALMONN, one: EvalSet, config: DictConfig, folder: Path) -> dict[str, Any]:
    """Answer a set, score it or write its submission, and say so; what was answered before is not asked again."""
    task, clips, jobs = one.task, one.clips, one.jobs
    one.dataset.max_seconds = model.max_seconds
    config = OmegaConf.merge(config, {"generate": generate_config({**config.generate, **task.generate})})
    card = provenance(config, task.annotation, model.lora_scaling)
    name = f"answers-{fingerprint(card, [job.prompt for job in jobs])}"
    store = AnswerStore(folder / "answers", name)
    outputs = generate_outputs(model, one.dataset, jobs, config, task.name, store)
    heard = [job for job in jobs if not outputs[job.position].unreadable]
    if not heard:
        raise UserError(
            f"{task.annotation}: none of the {len(clips)} clips can be read, e.g. {clips[0].path}: "
            f"{outputs[0].unreadable}; is datasets.prefix = {config.datasets.prefix!r} right?"
        )
    swapped = None
    if config.evaluate.shuffled_control and not task.is_submission:
        control = AnswerStore(folder / "answers", f"shuffled-{name}")
        swapped = generate_outputs(
            model, one.dataset, swap_audio(heard), config, f"{task.name}, shuffled audio", control
        )
    if not distributed.is_main():
        return {}
    report = build_report(task, clips, outputs, swapped, config.model.whisper_path)
    if not config.model.ckpt:
        report["notes"].insert(0, "NO CHECKPOINT (model.ckpt is empty): connector and LoRA are untrained.")
    report |= {"annotation": task.annotation, "entries": len(one.dataset), "provenance": card}
    if task.is_submission:
        _write_submission(folder, config, clips, outputs, report)
    write_report(folder, report, prediction_lines(clips, jobs, outputs, swapped))
    print(f"\n{task.name}: {task.title}\n\n{summary(report)}\n\nResults: {folder}/", flush=True)
    return report


def _write_submission(
    folder: Path, config: DictConfig, clips: Sequence[Clip], outputs: dict[int, Any], report: dict[str, Any]
) -> None:
    texts = [outputs[position].text for position in range(len(clips))]
    write_text(folder / "submission.csv", submission_csv([clip.id for clip in clips], texts))
    report["notes"].append(f"Submission: {folder / 'submission.csv'}, {len(clips)} rows.")
    if config.evaluate.shuffled_control:
        report["notes"].append("evaluate.shuffled_control was not run: a submission has no scores to compare.")
