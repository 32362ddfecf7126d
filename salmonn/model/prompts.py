"""Prompt pools and templates. No torch here: only strings.

Order as published: keep the prompts that hold `<SpeechHere>`, apply the template, choose one at
random, then fill `{}` with the entry's question.
"""

import logging
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from salmonn.common.errors import UserError
from salmonn.common.files import read_json
from salmonn.config.installed import here_or_installed

SPEECH_MARKER = "<SpeechHere>"  # replaced by the audio tokens
TRANSCRIPT = "asr"  # the task whose answer is what is said

logger = logging.getLogger(__name__)


def load_train_prompts(path: str | Path, template: str) -> dict[str, list[str]]:
    """Read {task: [prompt, ...]} and apply the template to each prompt."""
    return {task: _templated(path, task, prompts, template) for task, prompts in _read_tasks(path).items()}


def load_test_prompts(path: str | Path, template: str) -> dict[str, str]:
    """Read {task: prompt} and apply the template; of a list the first prompt counts."""
    return {task: _templated(path, task, prompts, template)[0] for task, prompts in _read_tasks(path).items()}


def asks_question(prompt: str) -> bool:
    """Whether the entry's question is to be put into a prompt."""
    return "{}" in prompt


def fill_question(prompt: str, question: str) -> str:
    """Put the entry's question where the prompt has `{}`; prompts without it stay as they are."""
    return prompt.replace("{}", question)


def task_prompt(known: Mapping[str, str], task: str, question: str) -> str:
    """A task's test prompt, with `question` where it has `{}`. Raises UserError where they do not fit."""
    if task not in known:
        raise UserError(f"no test prompt for the task {task!r} (known: {', '.join(known) or 'none'})")
    takes_question = asks_question(known[task])
    if takes_question and not question.strip():
        raise UserError(f"the task {task} needs a question, which its prompt leaves open: {known[task]!r}")
    if question.strip() and not takes_question:
        raise UserError(f"the task {task} takes no question; its prompt is {known[task]!r}")
    return fill_question(known[task], question.strip())


def choose_prompts(
    pool: dict[str, list[str]],
    tasks: Sequence[str],
    questions: Sequence[str],
    rng: random.Random | None = None,
    multi_prompt: bool = True,
    source: str = "model.prompt_path",
) -> list[str]:
    """One prompt per sample, chosen at random from its task's pool.

    Without `multi_prompt` all samples of a single-task batch share one choice, as published (a
    batch of several tasks, or of questions, chooses per sample all the same). Raises UserError for a
    task without prompt, naming `source`.
    """
    chooser = random if rng is None else rng
    for task in tasks:
        if task not in pool:
            raise UserError(f"no prompt for task {task!r}: add it to {source} (known: {', '.join(pool)})")
    if multi_prompt or len(set(tasks)) > 1 or "QA" in tasks:
        chosen = [chooser.choice(pool[task]) for task in tasks]
    else:
        chosen = [chooser.choice(pool[tasks[0]])] * len(tasks)
    return [fill_question(prompt, question) for prompt, question in zip(chosen, questions, strict=True)]


def split_prompt(prompt: str) -> tuple[str, str]:
    """The text before and after the audio. Raises UserError unless the marker occurs exactly once."""
    before, marker, after = prompt.partition(SPEECH_MARKER)
    if not marker or SPEECH_MARKER in after:
        raise UserError(f"a prompt must hold {SPEECH_MARKER} exactly once: {prompt!r}")
    return before, after


def _read_tasks(path: str | Path) -> dict[str, list[str]]:
    tasks = read_json(here_or_installed(path), "prompt file ")
    if not isinstance(tasks, dict) or not tasks:
        raise UserError(f"prompt file {path}: expected {{task: prompt or [prompt, ...]}}")
    pools = {task: [prompts] if isinstance(prompts, str) else prompts for task, prompts in tasks.items()}
    for task, prompts in pools.items():
        if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
            raise UserError(f"prompt file {path}: task {task!r} must hold a string or a list of strings")
    return pools


def _templated(path: str | Path, task: str, prompts: list[str], template: str) -> list[str]:
    usable = [prompt for prompt in prompts if prompt.count(SPEECH_MARKER) == 1]
    if not usable:
        raise UserError(f"prompt file {path}: task {task!r} has no prompt that holds {SPEECH_MARKER} exactly once")
    if len(usable) < len(prompts):
        logger.warning(
            "%s: task %r: %d prompts without %s left out", path, task, len(prompts) - len(usable), SPEECH_MARKER
        )
    return [template.replace("{}", prompt, 1) for prompt in usable]
