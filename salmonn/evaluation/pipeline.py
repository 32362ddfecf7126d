"""Evaluations from a configuration to their results: one set, or many with one loading of the model."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from salmonn import SALMONN
from salmonn.common import distributed
from salmonn.common.device import device_of
from salmonn.common.errors import UserError
from salmonn.common.files import write_text
from salmonn.common.logging import setup_logging
from salmonn.config.loading import generate_config
from salmonn.data.annotations import Annotations
from salmonn.data.dataset import SALMONNDataset
from salmonn.evaluation.answer_store import AnswerStore
from salmonn.evaluation.answering import answer_all, generate_batch
from salmonn.evaluation.clips import EvalExample, clips_of
from salmonn.evaluation.judge.judging import Judgement, judge_answers
from salmonn.evaluation.provenance import build_provenance, earlier_commits, fingerprint
from salmonn.evaluation.report.task_report import build_report, prediction_lines, summary, write_report
from salmonn.evaluation.requests import Prediction, Request, plan_requests, shuffle_audio
from salmonn.evaluation.submission import submission_csv
from salmonn.evaluation.table3 import earlier_reports, write_overview
from salmonn.evaluation.tasks import (
    EvalTask,
    annotation_key,
    check_names,
    is_plain_name,
    present_tasks,
    task_of_mode,
)
from salmonn.model.prompts import load_test_prompts
from salmonn.preflight import find_problems, refuse


class NothingHeardError(UserError):
    """No clip of a set can be read."""


@dataclass
class EvalSet:
    """A task's clips and what is asked of each."""

    task: EvalTask
    dataset: SALMONNDataset
    clips: list[EvalExample]
    requests: list[Request]


@dataclass
class Answered:
    """A set with the model's answers: all that a report is made of."""

    set: EvalSet
    outputs: dict[int, Prediction]
    shuffled: dict[int, Prediction] | None  # to the same prompts with other clips' audio
    config: DictConfig  # with the task's generation settings
    provenance: dict[str, Any]
    folder: Path
    report: dict[str, Any]  # complete on rank 0


def evaluate(config: DictConfig, mode: str) -> None:
    """Answer and score the set of one of the hackathon's modes, or write its submission.

    Raises UserError for whatever is missing or contradictory, before the model is loaded.
    """
    with session(config, [annotation_key(mode, config.datasets)]):
        sets = open_sets([task_of_mode(mode, config.datasets)], config)
        folder = results_folder(config, mode)
        answer_set(load_model(config, folder), sets[0], config, folder)


def generate_answers(config: DictConfig, annotation: str) -> None:
    """Write down the model's answer to every entry of an annotation file, each asked its own task's prompt."""
    task = EvalTask("generate", "answers without scores", annotation)
    with session(config):
        sets = open_sets([task], config)
        folder = results_folder(config, f"generate_{Path(annotation).stem}")
        answer_set(load_model(config, folder), sets[0], config, folder)


def evaluate_tasks(
    config: DictConfig, tasks: Sequence[EvalTask], folder: Path, others: Sequence[EvalTask] = ()
) -> dict[str, dict[str, Any]]:
    """Answer and score every task whose set is there, with one model; one page beside the paper's figures.

    What an earlier command has written of `others` in the same folder stays on the page.

    Returns {name: report}, empty on other ranks than the first. Raises UserError if no set is there; if no clip of
    one can be read or a judge fails, after all that goes without it has been written.
    """
    for task in tasks:
        check_names(task, f"task {task.name}")
    there = present_tasks(tasks)
    with session(config):
        sets = open_sets(there, config)
        answered, problems = answer_sets(load_model(config, folder), sets, config, folder)
        is_main = distributed.is_main()
    if not is_main:
        return {}
    if not answered:
        raise UserError("\n".join(problems))
    problems += judge_sets(answered)
    reports = {one.set.task.name: one.report for one in answered}
    earlier = earlier_reports(folder, [task for task in others if task not in tasks])
    page = [*tasks, *(task for task in others if task.name in earlier)]
    print(write_overview(folder, page, earlier | reports), flush=True)
    if problems:
        raise UserError("\n".join(problems))
    return reports


def results_folder(config: DictConfig, mode: str) -> Path:
    """Where the results of a mode go. Raises UserError for a name that leads elsewhere."""
    name = config.evaluate.name
    if name and not is_plain_name(name):
        raise UserError(
            f"evaluate.name = {name!r}: a folder's plain name, without / (evaluate.results_dir is the place)"
        )
    return Path(config.evaluate.results_dir) / (name or mode)


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


def open_sets(tasks: Sequence[EvalTask], config: DictConfig) -> list[EvalSet]:
    """Read the annotation files of tasks. Raises UserError for what cannot be evaluated."""
    if not config.model.test_prompt_path:
        raise UserError("model.test_prompt_path is not set: evaluation asks each task's test prompt")
    prompts = load_test_prompts(config.model.test_prompt_path, config.model.prompt_template)
    return [_open_set(task, config, prompts) for task in tasks]


def _open_set(task: EvalTask, config: DictConfig, prompts: dict[str, str]) -> EvalSet:
    annotations = Annotations(task.annotation, need_text=task.is_scored)
    dataset = SALMONNDataset.from_config(annotations, config.datasets, replace_unreadable=False)
    # as written, without the default task: here the task knows better
    clips = clips_of([annotations.as_written(i) for i in range(len(annotations))], task, task.annotation)
    requests = plan_requests(clips, prompts, config.model.test_prompt_path)
    if config.evaluate.shuffled_control and task.is_scored:
        shuffle_audio(requests)  # a set that is too small is told before the model is loaded
    return EvalSet(task, dataset, clips, requests)


def load_model(config: DictConfig, folder: Path) -> SALMONN:
    """The model on this rank's device. Raises UserError where `folder` for the results cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)  # one that cannot be written is known at once
    except OSError as error:
        raise UserError(f"evaluate.results_dir = {config.evaluate.results_dir}: {error}") from error
    torch.manual_seed(config.run.seed)
    return SALMONN.from_config(config.model, device=device_of(config)).eval()


def answer_sets(
    model: SALMONN, sets: Sequence[EvalSet], config: DictConfig, folder: Path
) -> tuple[list[Answered], list[str]]:
    """Answer each set, with its results in a folder of its name; what kept others from it. No judge is asked."""
    answered, problems = [], []
    for one in sets:
        try:
            answered.append(answer_set(model, one, config, folder / one.task.name))
        except NothingHeardError as error:  # raised on all ranks alike
            problems.append(f"{one.task.name}: {error}")
    return answered, problems


def answer_set(model: SALMONN, one: EvalSet, config: DictConfig, folder: Path) -> Answered:
    """Answer a set and write its results; what was answered before under the same provenance is not asked again."""
    task, clips, requests = one.task, one.clips, one.requests
    one.dataset.max_seconds = model.max_seconds
    config = OmegaConf.merge(config, {"generate": generate_config({**config.generate, **task.generate})})
    provenance = build_provenance(config, task.annotation, model.lora_scaling)
    name = f"answers-{fingerprint(provenance, [request.prompt for request in requests])}"
    store = AnswerStore(folder / "answers", name, provenance["commit"])
    ask = partial(generate_batch, model, config)
    outputs = answer_all(ask, one.dataset, requests, config, task.name, store)
    heard = [request for request in requests if not outputs[request.position].unreadable]
    if not heard:
        raise NothingHeardError(
            f"{task.annotation}: none of the {len(clips)} clips can be read, e.g. {clips[0].path}: "
            f"{outputs[0].unreadable}; is datasets.prefix = {config.datasets.prefix!r} right?"
        )
    shuffled, commits = None, store.commits
    if config.evaluate.shuffled_control and task.is_scored:
        exchanged = shuffle_audio(heard)  # who hears whom depends on which clips can be read
        pairs = [f"{request.audio_index} {request.prompt}" for request in exchanged]
        control = AnswerStore(folder / "answers", f"shuffled-{fingerprint(provenance, pairs)}", provenance["commit"])
        shuffled = answer_all(ask, one.dataset, exchanged, config, f"{task.name}, shuffled audio", control)
        commits = commits | control.commits
    provenance |= earlier_commits(provenance, commits)
    answered = Answered(one, outputs, shuffled, config, provenance, folder, {})
    if distributed.is_main():
        write_results(answered, Judgement(problem="comes last: the judge is asked when all sets are answered"))
        print(f"\n{task.name}: {task.title}\n\n{summary(answered.report)}\n\nResults: {folder}/", flush=True)
    return answered


def judge_sets(answered: Sequence[Answered]) -> list[str]:
    """Ask the judge about the sets that need one and write their results again; returns why it gave no verdicts.

    After all answers, on one rank: a local judge needs the memory that the model had, and an
    endpoint may take longer than ranks wait for each other.
    """
    problems = []
    for one in answered:
        task, config = one.set.task, one.config
        if "judged" not in task.metrics:
            continue
        try:
            settings, device = config.evaluate.judge, config.run.device
            judgement = judge_answers(task.judge, one.set.clips, one.outputs, settings, one.folder, device)
        except UserError as error:
            judgement = Judgement(problem=str(error))
            problems.append(f"{one.folder}: {error}")
        write_results(one, judgement)
    return problems


def write_results(answered: Answered, judgement: Judgement) -> None:
    """Score a set, fill in its report, and write report, predictions and submission."""
    one, config, outputs = answered.set, answered.config, answered.outputs
    task, clips = one.task, one.clips
    report = build_report(task, clips, outputs, answered.shuffled, config.model.whisper_path, judgement)
    if not config.model.ckpt:
        report["notes"].insert(0, "NO CHECKPOINT (model.ckpt is empty): connector and LoRA are untrained.")
    provenance = answered.provenance
    if judgement.verdicts:
        provenance = {**provenance, "judge": judgement.judge}
        report["notes"].append(f"Judged by {judgement.judge}; raw verdicts in predictions.jsonl.")
    report |= {"annotation": task.annotation, "entries": len(one.dataset), "provenance": provenance}
    if task.submission:
        texts = [outputs[position].text for position in range(len(clips))]
        write_text(answered.folder / "submission.csv", submission_csv([clip.id for clip in clips], texts))
        report["notes"].append(f"Submission: {answered.folder / 'submission.csv'}, {len(clips)} rows.")
    if config.evaluate.shuffled_control and not task.is_scored:
        report["notes"].append("evaluate.shuffled_control was not run: without scores there is nothing to compare.")
    lines = prediction_lines(clips, one.requests, outputs, answered.shuffled, judgement)
    write_report(answered.folder, report, lines)
    answered.report = report
