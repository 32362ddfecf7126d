"""Requests of several clients: those that wait for the model and search alike are answered in one batch."""

import re
import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from salmonn.inference.engine import InferenceEngine, Question
from salmonn.model.generation import answer
from salmonn.web.request_queue import RequestQueue

_BYTE = re.compile("<0x[0-9A-F]{2}>")  # a token that is part of a letter


@dataclass(frozen=True)
class Answered:
    """What came of a request."""

    prompt_tokens: int  # text and audio
    details: list[dict[str, Any]]  # of each answer, as of `SALMONN.generate`


@dataclass(eq=False)
class Asked:
    """A question about a clip that waits for its answers, or has them."""

    wav: np.ndarray  # [N] float32 at 16 kHz
    question: Question
    settings: DictConfig  # a `generate` section
    n: int = 1  # answers
    is_told: bool = False  # while it is written, which needs one beam
    written: list[str] = field(init=False)  # so far, of each answer
    left: threading.Event = field(default_factory=threading.Event)  # nobody waits for it any more
    answers: "Future[Answered]" = field(default_factory=Future)

    def __post_init__(self) -> None:
        self.written = [""] * self.n


class Batches:
    """Answers what is asked, as much at a time as `run.batch_size_eval` allows; the oldest request is always in it."""

    def __init__(self, queue: RequestQueue) -> None:
        self.queue, self.engine = queue, queue.engine
        self._waiting: list[Asked] = []
        self._changing = threading.Lock()

    def ask(self, asked: Asked) -> None:
        """Let a request wait for its turn; `asked.answers` is cancelled where none will come."""
        with self._changing:
            self._waiting.append(asked)
        try:
            self.queue.submit(self._answer_some)
        except CancelledError:
            asked.answers.cancel()

    def refuse_waiting(self) -> None:
        """Cancel the requests whose turn has not come."""
        with self._changing:
            for asked in self._waiting:
                asked.answers.cancel()
            self._waiting = []

    def _answer_some(self) -> None:
        """Answer the oldest request and those like it. There is such a job for each: some find nothing left to do."""
        if not (batch := self._take()):
            return
        try:
            for asked, answered in zip(batch, self._answer(batch), strict=True):
                asked.answers.set_result(answered)
        except Exception as error:  # told to whoever waits, on a thread that can do something about it
            for asked in batch:
                asked.answers.set_exception(error)

    def _take(self) -> list[Asked]:
        most: int = self.engine.config.run.batch_size_eval
        batch: list[Asked] = []
        with self._changing:
            here = [asked for asked in self._waiting if not asked.left.is_set()]
            for asked in here:
                rows = sum(other.n for other in batch) + asked.n
                if not batch or (asked.settings == batch[0].settings and rows <= most):
                    batch.append(asked)
            self._waiting = [asked for asked in here if asked not in batch]
        return [asked for asked in batch if asked.answers.set_running_or_notify_cancel()]

    def _answer(self, batch: Sequence[Asked]) -> list[Answered]:
        heard = self.engine.hear([asked.wav for asked in batch])
        rows = [(asked, i) for asked in batch for i in range(asked.n)]
        clips = [i for i, asked in enumerate(batch) for _ in range(asked.n)]
        settings = batch[0].settings
        watching = _Watching(self.engine, rows, settings.num_beams == 1, self.queue.closed)
        details = iter(
            self.engine.answer_rows(
                [heard.embeds[i] for i in clips],
                [asked.question for asked, _ in rows],
                settings,
                [heard.spelling[i] for i in clips if heard.spelling],
                stopping_criteria=StoppingCriteriaList([watching]),
            )
        )
        return [
            Answered(self.engine.count_prompt_tokens(clip, asked.question), [next(details) for _ in range(asked.n)])
            for asked, clip in zip(batch, heard.embeds, strict=True)
        ]


class _Watching(StoppingCriteria):
    """Tells what is written so far, and ends the answers of those who have left; all of them when the queue closes."""

    def __init__(
        self, engine: InferenceEngine, rows: Sequence[tuple[Asked, int]], one_beam: bool, closed: threading.Event
    ) -> None:
        self.engine, self.rows, self.one_beam, self.closed = engine, rows, one_beam, closed

    def __call__(self, input_ids: Tensor, _scores: Tensor, **_: Any) -> Tensor:
        if self.closed.is_set() or all(asked.left.is_set() for asked, _ in self.rows):
            raise CancelledError
        is_over = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        if self.one_beam:  # else a row is no answer but one of several attempts at it
            model = self.engine.model
            for row, ((asked, i), ids) in enumerate(zip(self.rows, input_ids.tolist(), strict=True)):
                if asked.is_told:
                    asked.written[i] = answer(sure_ids(ids, model.tokenizer), model.tokenizer, model.end_id)["text"]
                is_over[row] = asked.left.is_set()
        return is_over


def sure_ids(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids without the bytes at their end: only with those that follow is it known whether they are letters."""
    tokens = tokenizer.convert_ids_to_tokens(ids)
    while tokens and (_BYTE.fullmatch(tokens[-1]) or tokens[-1] in tokenizer.all_special_tokens):
        tokens.pop()
    return ids[: len(tokens)]
