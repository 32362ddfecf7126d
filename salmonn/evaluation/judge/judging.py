"""A judge's replies on a set's answers: whether they are right, where no string comparison can say it.

Every reply is a line of `judge_replies.jsonl` as soon as it is known. A rerun asks only what is missing:
a reply belongs to a judge, a prompt version, and the texts that were judged. Call it on one rank.
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
from salmonn.common.files import appending, read_json_lines, sealed
from salmonn.config.schema import JudgeConfig
from salmonn.evaluation.clips import EvalExample
from salmonn.evaluation.judge.endpoint import ask_endpoint
from salmonn.evaluation.judge.prompts import PROMPT_VERSION, judge_prompt, read_reply
from salmonn.evaluation.requests import Prediction

logger = logging.getLogger(__name__)

REPLIES = "judge_replies.jsonl"
OLD_REPLIES = "verdicts.jsonl"  # as they were called once; the integrity check has a list of that name
CONTAINMENT_VERSION = "containment-1"


@dataclass(frozen=True)
class JudgeRequest:
    """An answer to be judged, with what was asked and what would be right."""

    id: str
    task: str  # one of JUDGED_TASKS
    question: str
    references: tuple[str, ...]  # one of them is enough
    answer: str


@dataclass(frozen=True)
class JudgeReply:
    """What a judge says; its verdict `correct` is None where that is neither yes nor no."""

    id: str  # of the request
    correct: bool | None
    raw: str
    judge: str


@dataclass(frozen=True)
class Judgement:
    """The replies on a set's answers by position, as which metric they count, and what they cannot tell."""

    replies: Mapping[int, JudgeReply] = field(default_factory=dict)
    judge: str = ""
    metric: str = "judged"  # contained: no language model has judged, and this is another score
    problem: str = ""  # why there is no judged accuracy


def judge_answers(
    kind: str,
    clips: Sequence[EvalExample],
    predictions: Mapping[int, Prediction],
    config: DictConfig,
    folder: Path,
    device: str,
) -> Judgement:
    """Judge {position: prediction}; `kind` is one of JUDGED_TASKS, the other arguments are those of `judge_all`.

    Unreadable clips are not judged. Raises UserError as `judge_all`.
    """
    positions = [position for position, prediction in predictions.items() if not prediction.unreadable]
    requests = [
        JudgeRequest(
            id=clips[position].id,
            task=kind,
            question="\n".join(text for text in (clips[position].spoken, clips[position].question) if text),
            references=clips[position].references,
            answer=predictions[position].text,
        )
        for position in positions
    ]
    replies = dict(zip(positions, judge_all(requests, config, folder, device), strict=True))
    judge = judge_name(config)
    if config.kind == "containment":
        remedy = "no language model judges: set evaluate.judge.kind=openai or local"
        return Judgement(replies, judge, "contained", f"{remedy}; containment is another score, under its own name")
    return Judgement(replies, judge)


def judge_name(config: DictConfig | JudgeConfig) -> str:
    """The judge as a report names it."""
    if config.kind == "openai":
        return f"{config.model} at {config.base_url.rstrip('/')}, prompt {PROMPT_VERSION}"
    if config.kind == "local":
        return f"{config.local_path} (local model), prompt {PROMPT_VERSION}"
    return "containment matching (the reference's words in the answer; no judge)"


def judge_all(
    requests: Sequence[JudgeRequest], config: DictConfig, folder: Path, device: str = "cpu"
) -> list[JudgeReply]:
    """The reply to each request, in order; `config` is evaluate.judge, `device` is for a local judge.

    Raises UserError if the judge cannot be used; the replies until then are kept in `folder`.
    """
    settings = JudgeConfig(**config)
    path = folder / REPLIES
    _rename_old_replies(folder)
    known = read_replies(path)
    keys = [_key(request, settings) for request in requests]
    missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in known}
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
    name = judge_name(settings)
    replies = [
        JudgeReply(request.id, known[key]["correct"], known[key]["raw"], name)
        for key, request in zip(keys, requests, strict=True)
    ]
    if unclear := sum(reply.correct is None for reply in replies):
        logger.warning("%d of %d verdicts are neither yes nor no; their replies are in %s", unclear, len(keys), path)
    return replies


def _rename_old_replies(folder: Path) -> None:
    """Give the replies that an earlier version of the code has kept in a results folder their present name."""
    old, new = folder / OLD_REPLIES, folder / REPLIES
    if old.is_file() and not new.exists():
        old.rename(new)
        logger.info("%s is called %s now", old, new.name)


def read_replies(path: Path) -> dict[str, dict[str, Any]]:
    """{key: line} of a file of judge's replies, {} where there is none; damaged lines do not count."""
    return dict(read_json_lines(path, "a judge's reply", _checked)) if path.exists() else {}


def _checked(text: bytes) -> tuple[str, dict[str, Any]]:
    line = json.loads(text)
    if line["correct"] not in (True, False, None) or not isinstance(line["raw"], str):
        raise ValueError(f"correct = {line['correct']!r}, raw = {line['raw']!r}")
    return line["key"], line


def _ask_missing(
    missing: dict[str, JudgeRequest], config: JudgeConfig, path: Path, known: dict[str, dict[str, Any]], device: str
) -> None:
    """Ask, and add each reply to the file and to `known` as it comes."""
    pairs = list(missing.items())
    replies = _ask([request for _, request in pairs], config, device)
    judge = {"judge": judge_name(config), "prompt_version": _version(config)}
    try:
        file = appending(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error}") from error
    with file, tqdm(total=len(pairs), desc="judge", unit="answer") as progress:
        for index, raw in replies:
            key, request = pairs[index]
            known[key] = {"key": key, **asdict(request), "correct": read_reply(raw), "raw": raw, **judge}
            file.write(sealed(json.dumps(known[key], ensure_ascii=False).encode()))
            file.flush()
            progress.update()


def _ask(requests: Sequence[JudgeRequest], config: JudgeConfig, device: str) -> Iterator[tuple[int, str]]:
    """(index, raw reply) of each request, in whatever order the judge gives them."""
    if config.kind == "containment":
        return enumerate(map(_containment, requests))
    prompts = [judge_prompt(one.task, one.question, one.references, one.answer) for one in requests]
    if config.kind == "openai":
        return ask_endpoint(prompts, config)
    from salmonn.evaluation.judge.local import ask_local

    return ask_local(prompts, config, device)


def _containment(request: JudgeRequest) -> str:
    """A verdict without a judge: yes if all words of a reference stand in the answer, together and in order."""
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    normalise = BasicTextNormalizer()
    wanted = [words for words in (normalise(reference).strip() for reference in request.references) if words]
    if not wanted:
        return "unclear: no reference to look for"
    answer = f" {normalise(request.answer).strip()} "
    return "yes" if any(f" {words} " in answer for words in wanted) else "no"


def _version(config: JudgeConfig) -> str:
    return CONTAINMENT_VERSION if config.kind == "containment" else PROMPT_VERSION


def _key(request: JudgeRequest, config: JudgeConfig) -> str:
    """What a reply belongs to: all that decides on it."""
    judge = [judge_name(config), _version(config), config.max_tokens]
    texts = [request.task, request.question, list(request.references), request.answer]
    return hashlib.sha256(json.dumps([judge, texts]).encode()).hexdigest()[:32]
