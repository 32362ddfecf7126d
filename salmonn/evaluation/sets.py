"""Evaluation sets: a task's clips, and what is asked of each."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from omegaconf import DictConfig

from salmonn.common.errors import UserError, examples
from salmonn.data.annotations import Annotations
from salmonn.data.dataset import SALMONNDataset
from salmonn.evaluation.clips import EvalExample, clips_of
from salmonn.evaluation.requests import Request, plan_requests, shuffle_audio
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

    def open_clips(self, datasets: DictConfig, max_seconds: float) -> SALMONNDataset:
        """The clips by their entries' numbers, as far as a model hears them; an unreadable one says so."""
        return SALMONNDataset.from_config(self.annotations, datasets, replace_unreadable=False, max_seconds=max_seconds)


def open_sets(tasks: Sequence[EvalTask], config: DictConfig) -> list[EvalSet]:
    """Read the annotation files of tasks. Raises UserError for what cannot be evaluated."""
    if not config.model.test_prompt_path:
        raise UserError("model.test_prompt_path is not set: evaluation asks each task's test prompt")
    prompts = load_test_prompts(config.model.test_prompt_path, config.model.prompt_template)
    return [_open_set(task, config, prompts) for task in tasks]


def _open_set(task: EvalTask, config: DictConfig, prompts: Mapping[str, str]) -> EvalSet:
    annotations = Annotations(task.annotation, need_text=task.is_scored, end_sym=config.model.end_sym)
    # as written, without the default task: here the task knows better
    clips = clips_of([annotations.as_written(i) for i in range(len(annotations))], task, task.annotation)
    _tell_missing_questions(clips, prompts, task.annotation)
    requests = plan_requests(clips, prompts, config.model.test_prompt_path)
    if config.evaluate.shuffled_control and task.is_scored:
        shuffle_audio(requests)  # a set that is too small is told before the model is loaded
    return EvalSet(task, annotations, clips, requests, prompts)


def _tell_missing_questions(clips: Sequence[EvalExample], prompts: Mapping[str, str], source: str) -> None:
    """Warn where a clip's prompt asks its question, and it has none."""
    asking = {task for task, prompt in prompts.items() if asks_question(prompt)}
    if silent := [clip for clip in clips if clip.task in asking and not clip.question.strip()]:
        named = examples([f"entry {clip.index} ({clip.task})" for clip in silent])
        logger.warning("%s: %d entries have no 'Q', which their task's prompt asks: %s", source, len(silent), named)
