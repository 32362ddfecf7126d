"""One model for several people: requests take turns on one thread, and nobody's settings outlast a request."""

import math
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, TypeVar

from omegaconf import DictConfig
from transformers import StoppingCriteria, StoppingCriteriaList, TextStreamer

from salmonn import SALMONN
from salmonn.session import Answer, Heard, Listener, Question

_EVERY = 0.1  # s, between two looks at what is written
_PATIENCE = 20.0  # s without such a look: the reader is gone, though nobody closed the answer

Result = TypeVar("Result")


class Turns:
    """A listener that serves one request after the other."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._closed = threading.Event()

    def run(self, job: Callable[[], Result]) -> Result:
        """Do something with the model when it is free, and wait for it."""
        return self._thread.submit(job).result()

    def answer(
        self,
        heard: Heard,
        question: Question,
        settings: DictConfig,
        scaling: float | None = None,
        stop: threading.Event | None = None,
    ) -> Generator[Answer, None, None]:
        """Answer a question about one clip: what is written so far, several times a second; last the whole answer.

        With one beam and one window the text grows, else it comes at the end. `scaling`: of the LoRA adapters,
        for this answer alone. Whoever stops reading (`close` of the iterator) stops the model at its next token;
        so does `stop`, which raises CancelledError here.
        """
        left = threading.Event()
        leaving = _Leaving(left, stop or left, self._closed)
        stopping = StoppingCriteriaList([leaving])
        written = _Written(self.listener.model.tokenizer, skip_prompt=True, skip_special_tokens=True)
        streamer = written if settings.num_beams == 1 and len(heard.embeds) == 1 else None

        def write() -> list[Answer]:
            with lora_scaling(self.listener.model, scaling):
                return self.listener.ask(heard, question, settings, streamer, stopping_criteria=stopping)

        writing = self._thread.submit(write)
        try:
            while not wait([writing], _EVERY).done:
                leaving.last_look = time.monotonic()
                yield Answer(written.text.strip(), finished=False)
            yield writing.result()[0]
        finally:
            left.set()
            writing.cancel()  # if its turn has not come

    def close(self) -> None:
        """End: the answer under way stops at its next token, those that wait do not begin."""
        self._closed.set()
        self._thread.shutdown(cancel_futures=True)


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
