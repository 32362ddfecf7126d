"""Evaluation sets: a task's clips, and what is asked of each."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from omegaconf import DictConfig

from salmonn.common import distributed
from salmonn.common.errors import UserError, examples
from salmonn.common.processes import in_processes
from salmonn.data.annotations import Annotations
from salmonn.data.dataset import SALMONNDataset, why_silent
from salmonn.evaluation.clips import EvalExample, clips_of
from salmonn.evaluation.requests import Request, plan_requests
from salmonn.evaluation.tasks import EvalTask
from salmonn.model.prompts import asks_question, load_test_prompts

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvalSet:
    """A task's clips and what is asked of each."""

    task: EvalTask
    annotations: Annotations
    clips: list[EvalExample]
    requests: list[Request]
    prompts: Mapping[str, str]  # by task, before a question is filled in

    def nothing_heard(self, reason: str, datasets: DictConfig) -> str:
        """What is said where no clip can be read, the first one for this reason."""
        return (
            f"{self.task.annotation}: none of the {len(self.clips)} clips can be read, e.g. {self.clips[0].path}: "
            f"{reason}; is datasets.prefix = {datasets.prefix!r} right?"
        )

    def open_clips(self, datasets: DictConfig, max_seconds: float) -> SALMONNDataset:
        """The clips by their entries' numbers, as far as a model hears them; an unreadable one says so."""
        return SALMONNDataset.from_config(self.annotations, datasets, replace_unreadable=False, max_seconds=max_seconds)


def open_sets(tasks: Sequence[EvalTask], config: DictConfig) -> list[EvalSet]:
    """Read the annotation files of tasks. Raises UserError for what cannot be evaluated.

    Of several sets one without a readable clip is told, and keeps no other from being evaluated.
    """
    if not config.model.test_prompt_path:
        raise UserError("model.test_prompt_path is not set: evaluation asks each task's test prompt")
    prompts = load_test_prompts(config.model.test_prompt_path, config.model.prompt_template)
    sets = [_open_set(task, config, prompts) for task in tasks]
    problems = distributed.from_main(_silent_sets(sets, config) if distributed.is_main() else [])
    if len(problems) == len(sets):
        raise UserError("\n".join(problems))
    for problem in problems:
        logger.warning("%s", problem)
    return sets


def _silent_sets(sets: Sequence[EvalSet], config: DictConfig) -> list[str]:
    """What is wrong with the sets of which no clip can be read: mostly one look at the first clip of each."""
    heard = [
        (one.open_clips(config.datasets, config.model.max_seconds), [request.audio_index for request in one.requests])
        for one in sets
    ]
    look, numbers = partial(why_silent, heard), [(number,) for number in range(len(sets))]
    if config.run.num_workers:  # apart from this process, which a clip may take down with it
        reasons = {number: reason for (number,), reason in in_processes(look, numbers, jobs=1)}
    else:
        reasons = {number: look(number) for (number,) in numbers}
    return [one.nothing_heard(reason, config.datasets) for i, one in enumerate(sets) if (reason := reasons[i])]


def _open_set(task: EvalTask, config: DictConfig, prompts: Mapping[str, str]) -> EvalSet:
    annotations = Annotations(task.annotation, need_text=task.is_scored, end_sym=config.model.end_sym)
    # as written, without the default task: here the task knows better
    clips = clips_of([annotations.as_written(i) for i in range(len(annotations))], task, task.annotation)
    _require_questions(clips, prompts, task.annotation, config.model.test_prompt_path)
    requests = plan_requests(clips, prompts, config.model.test_prompt_path)
    return EvalSet(task, annotations, clips, requests, prompts)


def _require_questions(clips: Sequence[EvalExample], prompts: Mapping[str, str], source: str, prompt_path: str) -> None:
    """Raise UserError where a clip's prompt asks its question, and it has none."""
    asking = {task for task, prompt in prompts.items() if asks_question(prompt)}
    if silent := [clip for clip in clips if clip.task in asking and not clip.question.strip()]:
        named = examples([f"entry {clip.index} ({clip.task})" for clip in silent])
        raise UserError(
            f"annotation file {source}: {len(silent)} entries have no 'Q', which their task's prompt in {prompt_path} "
            f"asks: {named}; give each its question, or that task a prompt without {{}}"
        )
