"""Whether answers are right, where no string comparison can say it: judged, cached, resumable.

Every reply is a line of `judge_replies.jsonl` as soon as it is known. A rerun asks only what is missing:
a verdict belongs to a judge, a prompt version, and the texts that were judged. Call it on one rank.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from tqdm import tqdm

from salmonn.common.errors import UserError
from salmonn.common.files import appending, read_json_lines
from salmonn.config.schema import JudgeConfig
from salmonn.evaluation.clips import EvalExample
from salmonn.evaluation.judge.endpoint import ask_endpoint
from salmonn.evaluation.judge.prompts import PROMPT_VERSION, judge_prompt, read_verdict
from salmonn.evaluation.requests import Prediction

logger = logging.getLogger(__name__)

REPLIES = "judge_replies.jsonl"
OLD_REPLIES = "verdicts.jsonl"  # as they were called once; the integrity check has a list of that name
CONTAINMENT_VERSION = "containment-1"


@dataclass(frozen=True)
class Question:
    """An answer to be judged, with what was asked and what would be right."""

    id: str
    task: str  # one of judge_prompts.JUDGED_TASKS
    question: str
    references: tuple[str, ...]  # one of them is enough
    answer: str


@dataclass(frozen=True)
class JudgeReply:
    """What a judge says; `correct` is None where its reply is neither yes nor no."""

    id: str
    correct: bool | None
    raw: str
    judge: str
    prompt_version: str


@dataclass(frozen=True)
class Judgement:
    """The verdicts on a set's answers by position, as which metric they count, and what they cannot tell."""

    verdicts: Mapping[int, JudgeReply] = field(default_factory=dict)
    judge: str = ""
    metric: str = "judged"  # contained: no language model has judged, and this is another score
    problem: str = ""  # why there is no judged accuracy


def judge_answers(
    kind: str,
    clips: Sequence[EvalExample],
    outputs: Mapping[int, Prediction],
    config: DictConfig,
    folder: Path,
    device: str,
) -> Judgement:
    """Judge {position: output}; `kind` is one of JUDGED_TASKS, the other arguments are those of `judge_all`.

    Unreadable clips are not judged. Raises UserError as `judge_all`.
    """
    positions = [position for position, output in outputs.items() if not output.unreadable]
    questions = [
        Question(
            id=clips[position].id,
            task=kind,
            question="\n".join(text for text in (clips[position].spoken, clips[position].question) if text),
            references=clips[position].references,
            answer=outputs[position].text,
        )
        for position in positions
    ]
    verdicts = dict(zip(positions, judge_all(questions, config, folder, device), strict=True))
    judge = judge_name(config)
    if config.kind == "containment":
        remedy = "no language model judges: set evaluate.judge.kind=openai or local"
        return Judgement(verdicts, judge, "contained", f"{remedy}; containment is another score, under its own name")
    return Judgement(verdicts, judge)


def judge_name(config: DictConfig | JudgeConfig) -> str:
    """The judge as a report names it."""
    if config.kind == "openai":
        return f"{config.model} at {config.base_url.rstrip('/')}, prompt {PROMPT_VERSION}"
    if config.kind == "local":
        return f"{config.local_path} (local model), prompt {PROMPT_VERSION}"
    return "containment matching (the reference's words in the answer; no judge)"


def judge_all(questions: Sequence[Question], config: DictConfig, folder: Path, device: str = "cpu") -> list[JudgeReply]:
    """The verdict on each question, in order; `config` is evaluate.judge, `device` is for a local judge.

    Raises UserError if the judge cannot be used; the verdicts until then are kept in `folder`.
    """
    settings = JudgeConfig(**config)
    path = folder / REPLIES
    _rename_old_replies(folder)
    known = read_replies(path)
    keys = [_key(question, settings) for question in questions]
    missing = {key: question for key, question in zip(keys, questions, strict=True) if key not in known}
    if missing:
        try:
            _ask_missing(missing, settings, path, known, device)
        except UserError as error:
            done = sum(key in known for key in keys)
            if not done:
                raise
            raise UserError(
                f"{error}.\n{done} of {len(keys)} verdicts are in {path}: the same command asks for the rest only."
            ) from error
    name, version = judge_name(settings), _version(settings)
    verdicts = [
        JudgeReply(question.id, known[key]["correct"], known[key]["raw"], name, version)
        for key, question in zip(keys, questions, strict=True)
    ]
    if unclear := tally(verdicts)["unclear"]:
        logger.warning("%d of %d verdicts are neither yes nor no; their replies are in %s", unclear, len(keys), path)
    return verdicts


def tally(verdicts: Sequence[JudgeReply]) -> dict[str, int]:
    """How many answers are correct, wrong, or without a clear verdict."""
    given = [verdict.correct for verdict in verdicts]
    return {"correct": given.count(True), "wrong": given.count(False), "unclear": given.count(None)}


def _rename_old_replies(folder: Path) -> None:
    """Give the replies that an earlier version of the code has kept in a results folder their present name."""
    old, new = folder / OLD_REPLIES, folder / REPLIES
    if old.is_file() and not new.exists():
        old.rename(new)
        logger.info("%s is called %s now", old, new.name)


def read_replies(path: Path) -> dict[str, dict[str, Any]]:
    """{key: line} of a file of judge's replies, {} where there is none. Raises UserError for a damaged line."""
    return dict(read_json_lines(path, "a judge's reply", _checked)) if path.exists() else {}


def _checked(line: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    if line["correct"] not in (True, False, None) or not isinstance(line["raw"], str):
        raise ValueError(f"correct = {line['correct']!r}, raw = {line['raw']!r}")
    return line["key"], line


def _ask_missing(
    missing: dict[str, Question], config: JudgeConfig, path: Path, known: dict[str, dict[str, Any]], device: str
) -> None:
    """Ask, and add each verdict to the file and to `known` as it comes."""
    pairs = list(missing.items())
    replies = _replies([question for _, question in pairs], config, device)
    judge = {"judge": judge_name(config), "prompt_version": _version(config)}
    try:
        file = appending(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error}") from error
    with file, tqdm(total=len(pairs), desc="judge", unit="answer") as progress:
        for index, raw in replies:
            key, question = pairs[index]
            known[key] = {"key": key, **asdict(question), "correct": read_verdict(raw), "raw": raw, **judge}
            file.write(json.dumps(known[key], ensure_ascii=False).encode() + b"\n")
            file.flush()
            progress.update()


def _replies(questions: Sequence[Question], config: JudgeConfig, device: str) -> Iterator[tuple[int, str]]:
    """(index, reply) of each question, in whatever order the judge gives them."""
    if config.kind == "containment":
        return enumerate(map(_containment, questions))
    prompts = [judge_prompt(q.task, q.question, q.references, q.answer) for q in questions]
    if config.kind == "openai":
        return ask_endpoint(prompts, config)
    from salmonn.evaluation.judge.local import ask_local

    return ask_local(prompts, config, device)


def _containment(question: Question) -> str:
    """A verdict without a judge: yes if all words of a reference stand in the answer, together and in order."""
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    normalise = BasicTextNormalizer()
    wanted = [words for words in (normalise(reference).strip() for reference in question.references) if words]
    if not wanted:
        return "unclear: no reference to look for"
    answer = f" {normalise(question.answer).strip()} "
    return "yes" if any(f" {words} " in answer for words in wanted) else "no"


def _version(config: JudgeConfig) -> str:
    return CONTAINMENT_VERSION if config.kind == "containment" else PROMPT_VERSION


def _key(question: Question, config: JudgeConfig) -> str:
    """What a verdict belongs to: all that decides on it."""
    judge = [judge_name(config), _version(config), config.max_tokens]
    texts = [question.task, question.question, list(question.references), question.answer]
    return hashlib.sha256(json.dumps([judge, texts]).encode()).hexdigest()[:32]
