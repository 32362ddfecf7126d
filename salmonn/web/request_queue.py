"""One model for several people: requests take turns on one thread, and nobody's settings outlast a request."""

import math
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, TypeVar

from omegaconf import DictConfig
from transformers import StoppingCriteria, StoppingCriteriaList, TextStreamer

from salmonn.common.errors import UserError
from salmonn.inference.engine import Answer, EncodedAudio, InferenceEngine, Question
from salmonn.model.salmonn import SALMONN

HEARTBEAT = 2.0  # s, between two yields to a reader for whom there is nothing new

_EVERY = 0.1  # s, between two looks at what the model does
_PATIENCE = 20.0  # s in which a reader takes none of them: it is gone, though nobody closed the answer
_MOST_WAITING = 32  # jobs; gradio has 40 threads for those who read

Result = TypeVar("Result")


class RequestQueue:
    """An engine that serves one request after the other."""

    def __init__(self, engine: InferenceEngine) -> None:
        self.engine = engine
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._jobs: set[Future] = set()  # the one under way, and those that wait
        self.closed = threading.Event()

    def require_room(self) -> None:
        """Raises UserError while too many wait for the model."""
        if len(self._jobs) > _MOST_WAITING:
            raise UserError(f"{_MOST_WAITING} requests are waiting already: try again in a minute.")

    def run(self, job: Callable[[], Result]) -> Result:
        """Do something with the model when it is free, and wait for it."""
        return self.submit(job).result()

    def take(self, job: Callable[[], Result], stop: threading.Event) -> Generator[None, None, Result]:
        """As `run`, but yields every `HEARTBEAT`, and `stop` raises CancelledError without waiting for the model."""
        taken, last = self.submit(job), time.monotonic()
        for now in _looks(taken, stop):
            if now - last > HEARTBEAT:
                last = now
                yield
        return taken.result()

    def answer(
        self,
        heard: EncodedAudio,
        question: Question,
        settings: DictConfig,
        scaling: float | None = None,
        stop: threading.Event | None = None,
    ) -> Generator[Answer | None, None, None]:
        """Answer a question about one clip: None until its turn has come, then what is written so far; last the whole.

        Yields what is new, or the same every `HEARTBEAT`. With one beam and one window the text grows word by word;
        of a long clip it grows by some windows at a time, and others have a turn in between; else it comes at the end.
        `scaling`: of the LoRA adapters, for this answer alone. Whoever stops reading (`close` of the iterator) stops
        the model at its next token; so does `stop`, which raises CancelledError here.
        """
        left, begun = threading.Event(), threading.Event()
        leaving = _Leaving(left, self.closed)
        stopping = StoppingCriteriaList([leaving])
        written = _Written(self.engine.model.tokenizer, skip_prompt=True, skip_special_tokens=True)
        streamer = written if settings.num_beams == 1 and len(heard.embeds) == 1 else None
        windows = self.engine.ask_windows(heard, question, settings, streamer, stopping_criteria=stopping)

        def write() -> Answer:
            begun.set()
            with lora_scaling(self.engine.model, scaling):
                return next(windows)[0]

        so_far: Answer | None = None
        told, last = so_far, -math.inf
        try:
            while so_far is None or len(so_far.parts) not in (0, len(heard.spans)):
                writing = self.submit(write)
                for now in _looks(writing, stop or left):
                    leaving.last_look = now
                    if begun.is_set() and (streamer or so_far is None):
                        so_far = Answer(written.text.strip(), finished=False)
                    if so_far != told or now - last > HEARTBEAT:
                        told, last = so_far, now
                        yield so_far
                so_far = told = writing.result()
                yield so_far
        finally:
            left.set()

    def close(self) -> None:
        """End: the answer under way stops at its next token, those that wait do not begin."""
        self.closed.set()
        self._thread.shutdown(cancel_futures=True)

    def submit(self, job: Callable[[], Result]) -> "Future[Result]":
        """Do something with the model when it is free. Raises CancelledError once the queue is closed."""
        try:
            future = self._thread.submit(job)
        except RuntimeError as error:
            if self.closed.is_set():
                raise CancelledError from error
            raise
        self._jobs.add(future)
        future.add_done_callback(self._jobs.discard)
        return future


def _looks(job: Future, stop: threading.Event) -> Iterator[float]:
    """The time, several times a second until a job is done; whoever stops does not wait for it."""
    try:
        while not stop.is_set():
            if wait([job], _EVERY).done or job.cancelled():  # `wait` does not see what `close` cancels
                return
            yield time.monotonic()
        raise CancelledError
    finally:
        job.cancel()


@contextmanager
def lora_scaling(model: SALMONN, scaling: float | None) -> Iterator[None]:
    """Another weight of the adapters for a while; None leaves it."""
    before = model.lora_scaling
    if scaling in (None, before):  # a model without LoRA has nothing to set
        yield
        return
    model.lora_scaling = scaling
    try:
        yield
    finally:
        model.lora_scaling = before


class _Written(TextStreamer):
    """Keeps the text instead of printing it."""

    text = ""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:  # noqa: ARG002
        self.text += text


class _Leaving(StoppingCriteria):
    """Ends a search from within when one of the events is set, or nobody looks at the answer any more."""

    def __init__(self, *events: threading.Event) -> None:
        self.events = events
        self.last_look = math.inf  # before the first look nobody can have gone

    def __call__(self, *_: Any, **__: Any) -> bool:
        if any(event.is_set() for event in self.events) or time.monotonic() - self.last_look > _PATIENCE:
            raise CancelledError
        return False
