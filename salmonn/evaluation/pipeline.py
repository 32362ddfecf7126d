"""Evaluation from a config to its results: answer, judge, score, report, each once.

All ranks answer. The first one scores and reports a set as soon as it is answered, or where a judge is
asked about the answers, once all sets are answered and the process group is left.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from salmonn.common import distributed
from salmonn.common.errors import UserError
from salmonn.common.files import UNFINISHED, clear_unfinished, make_folder, write_text
from salmonn.common.logging import setup_logging
from salmonn.evaluation.answering import AnsweredSet, NothingHeardError, answer_set
from salmonn.evaluation.judge.judging import Judgement, judge_answers
from salmonn.evaluation.report.pages import tell
from salmonn.evaluation.report.task_report import build_report, prediction_lines, summary, write_report
from salmonn.evaluation.sets import EvalSet, open_sets
from salmonn.evaluation.submission import check_submission, submission_csv, submission_notes
from salmonn.evaluation.table3 import earlier_reports, write_overview
from salmonn.evaluation.task_confusion import confused_answers, confusion_notes
from salmonn.evaluation.tasks import (
    MODES,
    EvalTask,
    annotation_key,
    check_names,
    is_plain_name,
    present_tasks,
    task_of_mode,
)
from salmonn.model.encoder_cache import open_cache, require_room
from salmonn.model.salmonn import SALMONN, load_for_inference
from salmonn.preflight import MINI_EVALUATES, find_problems, problem_of, refuse


def evaluate(config: DictConfig, mode: str) -> None:
    """Answer and score the set of one of the hackathon's modes, or write its submission.

    Raises UserError for whatever is missing or contradictory, before the model is loaded.
    """
    _evaluate_alone(config, task_of_mode(mode, config.datasets), mode, [annotation_key(mode, config.datasets)])


def generate_answers(config: DictConfig, annotation: str) -> None:
    """Write down the model's answer to every entry of an annotation file, each asked its own task's prompt."""
    task = EvalTask("generate", "answers without scores", annotation)
    _evaluate_alone(config, task, f"generate_{Path(annotation).stem}")


def _evaluate_alone(config: DictConfig, task: EvalTask, name: str, annotations: Sequence[str] = ()) -> None:
    """Evaluate one task that no judge is asked about, with its results in a folder of this name."""
    with session(config, annotations):
        [one] = open_sets([task], config)
        folder = results_folder(config, name)
        answered = answer_set(load_model(config, folder, [one]), one, config, folder)
        if distributed.is_main():
            report_set(answered)


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
        answered, problems = answer_sets(load_model(config, folder, sets), sets, config, folder)
        is_main = distributed.is_main()
    if not is_main:
        return {}
    if not answered:
        raise UserError("\n".join(problems))
    problems += judge_sets(answered)
    reports = {one.set.task.name: one.report for one in answered}
    earlier = earlier_reports(folder, [task for task in others if task not in tasks])
    page = [*tasks, *(task for task in others if task.name in earlier)]
    tell(write_overview(folder, page, earlier | reports), folder)
    if problems:
        raise UserError("\n".join(problems))
    return reports


def answer_sets(
    model: SALMONN, sets: Sequence[EvalSet], config: DictConfig, folder: Path
) -> tuple[list[AnsweredSet], list[str]]:
    """Answer each set, with its results in a folder of its name; what kept others from it.

    Those that wait for no judge are reported at once: a run of many sets takes days.
    """
    answered, problems = [], []
    for one in sets:
        try:
            answered.append(answer_set(model, one, config, folder / one.task.name))
        except NothingHeardError as error:  # raised on all ranks alike
            problems.append(f"{one.task.name}: {error}")
            continue
        if distributed.is_main() and not one.task.is_judged:
            report_set(answered[-1])
    return answered, problems


def judge_sets(answered: Sequence[AnsweredSet]) -> list[str]:
    """Ask the judge about the sets that wait for one and report them; returns why it gave no verdicts.

    After all answers, on one rank: a local judge needs the memory that the model had, and an
    endpoint may take longer than ranks wait for each other.
    """
    problems = []
    for one in answered:
        if not one.set.task.is_judged:
            continue
        settings, device = one.config.evaluate.judge, one.config.run.device
        try:
            judgement = judge_answers(one.set.task.judge, one.set.clips, one.predictions, settings, one.folder, device)
        except UserError as error:
            judgement = Judgement(problem=str(error))
            problems.append(f"{one.folder}: {error}")
        report_set(one, judgement)
    return problems


def report_set(answered: AnsweredSet, judgement: Judgement | None = None) -> None:
    """Score a set once, write its report, predictions and submission, and print the summary."""
    task, clips, folder = answered.set.task, answered.set.clips, answered.folder
    answered.report = report = score_set(answered, judgement)
    if task.name in MODES:
        ids, texts = _submitted(answered)
        content = submission_csv(ids, texts)
        if task.submission:  # a set of one's own may go without ids
            check_submission(content, ids, "the submission")
        write_text(folder / "submission.csv", content)
    lines = prediction_lines(
        clips, answered.set.requests, answered.predictions, answered.shuffled, judgement, answered.choices
    )
    write_report(folder, report, lines)
    tell(f"{task.name}: {task.title}\n\n{summary(report)}", folder)


def score_set(answered: AnsweredSet, judgement: Judgement | None) -> dict[str, Any]:
    """The complete report of a set: scores, counts, notes, and what they depend on."""
    task, clips, config, provenance = answered.set.task, answered.set.clips, answered.config, answered.provenance
    whisper_path = config.model.whisper_path
    choices = answered.choices
    report = build_report(task, clips, answered.predictions, answered.shuffled, whisper_path, judgement, choices)
    notes = report["notes"]
    confused = confused_answers(clips, answered.set.requests, answered.predictions)
    notes += confusion_notes(confused, clips, answered.predictions, report["statistics"])
    report["other_forms"] = {clips[position].id: form for position, form in confused.items()}
    if not config.model.ckpt:
        notes.insert(0, "NO CHECKPOINT (model.ckpt is empty): connector and LoRA are untrained.")
    if judgement and judgement.replies:
        provenance = {**provenance, "judge": judgement.judge}
        notes.append(f"Judged by {judgement.judge}; raw verdicts in predictions.jsonl.")
    if task.name in MODES:
        notes.append(f"Submission: {answered.folder / 'submission.csv'}, {len(clips)} rows.")
        notes += submission_notes(*_submitted(answered))
    if config.evaluate.shuffled_control and answered.shuffled is None:
        alone = "a single clip that can be heard has no other to exchange audio with"
        why = alone if task.is_scored else "without scores there is nothing to compare"
        notes.append(f"evaluate.shuffled_control was not run: {why}.")
    return {**report, "annotation": task.annotation, "entries": len(answered.set.annotations), "provenance": provenance}


def _submitted(answered: AnsweredSet) -> tuple[list[str], list[str]]:
    """Ids and answers in the order of the set."""
    texts = [answered.predictions[position].text for position in range(len(answered.set.clips))]
    if answered.config.evaluate.submission_lower_case:
        texts = [text.lower() for text in texts]
    return [clip.id for clip in answered.set.clips], texts


def results_folder(config: DictConfig, mode: str) -> Path:
    """Where the results of a mode go. Raises UserError for a name that leads elsewhere."""
    name = config.evaluate.name
    if name and not is_plain_name(name):
        plain = re.sub(r"[^\w.+-]+", "_", name).strip("_.+-")
        raise UserError(
            f"evaluate.name = {name!r}: must be a folder's plain name: letters, digits and _ . + - without spaces, "
            f"{f'as {plain}' if plain else 'a letter or digit first'} (evaluate.results_dir says where it lies)"
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
        problems = [*find_problems(config, annotations, training=False), *problem_of(require_room, config.run)]
        refuse(problems, "this evaluation", MINI_EVALUATES)
    distributed.init(config)
    try:
        yield
    finally:
        distributed.shutdown()


def load_model(config: DictConfig, folder: Path, sets: Sequence[EvalSet] = ()) -> SALMONN:
    """The model on this rank's device; what it hears of the sets' clips is kept where `run.encoder_cache` says.

    Raises UserError where `folder` for the results cannot be made.
    """
    try:
        make_folder(folder)  # one that cannot be written is known at once
        if distributed.is_main():
            clear_unfinished(folder.rglob(UNFINISHED))
    except OSError as error:
        raise UserError(f"evaluate.results_dir = {config.evaluate.results_dir}: {error}") from error
    model = load_for_inference(config)
    if sets:
        model.encoder_cache = open_cache(config, model, sum(len(one.clips) for one in sets))
    model.hold_encoders_rounded(config.run)
    return model
