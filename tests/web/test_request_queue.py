"""One model for several people: who waits, who stops, and what of one request another one has."""

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from salmonn.common.errors import UserError
from salmonn.inference.engine import Answer, EncodedAudio, InferenceEngine, Question
from salmonn.web import request_queue as queue_module
from salmonn.web.request_queue import RequestQueue
from tests.fixtures.waiting import wait_until
from tests.fixtures.web_rows import VERY_LONG

pytest_plugins = ["tests.fixtures.web"]


def test_text_is_told_while_it_is_written_and_nothing_twice(monkeypatch):
    looks = []
    wait = queue_module.wait
    monkeypatch.setattr(queue_module, "_EVERY", 0.001)
    monkeypatch.setattr(queue_module, "wait", lambda *args: looks.append(args) or wait(*args))

    def until_looked_at() -> None:
        n_before = len(looks)
        while len(looks) < n_before + 5:
            pass

    def ask(_heard, _question, _settings, streamer, **_) -> Iterator[list[Answer]]:
        until_looked_at()
        for text in ("a red ", "dog"):
            streamer.on_finalized_text(text)
            until_looked_at()
        yield [Answer("a red dog", finished=True)]

    model = SimpleNamespace(lora_scaling=4.0, tokenizer=None)
    queue = RequestQueue(SimpleNamespace(model=model, ask_windows=ask))
    heard = EncodedAudio(torch.zeros(1, 1, 1), torch.zeros(1).numpy())
    told = list(queue.answer(heard, Question("?"), SimpleNamespace(num_beams=1)))
    queue.close()
    assert [answer.text for answer in told if answer] == ["", "a red", "a red dog", "a red dog"]
    assert [answer.finished for answer in told if answer] == [False, False, False, True]


@pytest.mark.parametrize("beams", [1, 2])
def test_the_last_answer_is_that_of_the_listener(queue: RequestQueue, engine: InferenceEngine, clip, beams):
    heard, question = engine.hear([clip]), engine.question("What is said?")
    settings = OmegaConf.merge(engine.config.generate, {"num_beams": beams})
    expected = engine.ask(heard, question, settings)
    *_, last = queue.answer(heard, question, settings)
    assert [last] == expected
    assert last.text


def test_of_a_long_clip_some_windows_are_told_at_a_time(queue: RequestQueue, engine: InferenceEngine, long_clip):
    heard, question = engine.hear_long(long_clip), engine.task_question("asr")
    told = [answer for answer in queue.answer(heard, question, engine.config.generate) if answer and answer.parts]
    assert [len(answer.parts) for answer in told] == [2, 3]
    assert [told[-1]] == engine.ask(heard, question)


@pytest.mark.parametrize("beams", [1, 2])
def test_the_model_stops_for_whoever_leaves(queue: RequestQueue, engine: InferenceEngine, clip, beams, written):
    settings = OmegaConf.merge(engine.config.generate, VERY_LONG, {"num_beams": beams})
    answers = queue.answer(engine.hear([clip]), engine.question("What is said?"), settings)
    while not next(answers):
        pass
    answers.close()
    queue.run(int)  # the thread is free again
    assert written == []


def test_the_model_stops_when_nobody_looks_any_more(
    queue: RequestQueue, engine: InferenceEngine, clip, monkeypatch, written
):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(queue_module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    settings = OmegaConf.merge(engine.config.generate, VERY_LONG)
    answers = queue.answer(engine.hear([clip]), engine.question("What is said?"), settings)
    while not next(answers):
        pass
    clock.now += queue_module._PATIENCE + 1
    queue.run(int)  # and the reader is gone, without a word
    assert written == []


def test_who_looks_on_is_waited_for_though_nothing_is_new(
    queue: RequestQueue, engine: InferenceEngine, clip, monkeypatch
):
    looks, wait, answer = [], queue_module.wait, engine.model.answer_embeds
    now = lambda: len(looks) * queue_module._PATIENCE / 3  # noqa: E731 a clock that goes on by each look at the model
    monkeypatch.setattr(queue_module, "time", SimpleNamespace(monotonic=now))
    monkeypatch.setattr(queue_module, "_EVERY", 0.001)
    monkeypatch.setattr(queue_module, "wait", lambda *args: looks.append(args) or wait(*args))

    def answer_late(*args, **library):
        wait_until(lambda: len(looks) > 10)
        return answer(*args, **library)

    monkeypatch.setattr(engine.model, "answer_embeds", answer_late)
    settings = OmegaConf.merge(engine.config.generate, {"num_beams": 2})
    *_, last = queue.answer(engine.hear([clip]), engine.question("What is said?"), settings)
    assert last.text


def test_who_stops_before_his_turn_is_not_answered(queue: RequestQueue, engine: InferenceEngine, clip, busy, written):
    stop = threading.Event()
    question = engine.question("What is said?")
    answers = queue.answer(engine.hear([clip]), question, engine.config.generate, stop=stop)
    assert next(answers) is None
    stop.set()
    with pytest.raises(CancelledError):
        next(answers)
    busy.set()
    queue.run(int)
    assert written == []


def test_nobody_has_the_scaling_of_another(queue: RequestQueue, engine: InferenceEngine, clip, monkeypatch):
    seen = []
    answer = engine.model.answer_embeds

    def watch(*args, **library):
        seen.append(engine.model.lora_scaling)
        if len(seen) == 2:
            raise UserError("no")
        return answer(*args, **library)

    monkeypatch.setattr(engine.model, "answer_embeds", watch)
    ask = engine.hear([clip]), engine.question("What is said?"), engine.config.generate
    first, second, third = queue.answer(*ask, scaling=1.5), queue.answer(*ask, scaling=0.0), queue.answer(*ask)
    list(first)
    with pytest.raises(UserError):
        list(second)
    list(third)
    assert seen == [1.5, 0.0, 4.0]


def test_of_too_many_that_wait_the_next_is_told_to_come_again(queue: RequestQueue, monkeypatch):
    monkeypatch.setattr(queue_module, "HEARTBEAT", 0.0)
    release = threading.Event()
    queue.require_room()
    taking = queue.take(release.wait, threading.Event())
    next(taking)
    monkeypatch.setattr(queue_module, "_MOST_WAITING", 0)
    with pytest.raises(UserError, match="waiting already: try again"):
        queue.require_room()
    release.set()
    assert list(taking) == []
    queue.require_room()


def test_what_waits_when_the_page_ends_does_not_begin(
    queue: RequestQueue, engine: InferenceEngine, clip, busy, written
):
    answers = queue.answer(engine.hear([clip]), engine.question("What is said?"), engine.config.generate)
    assert next(answers) is None
    threading.Thread(target=lambda: queue.closed.wait() and busy.set()).start()
    queue.close()
    with pytest.raises(CancelledError):
        list(answers)
    with pytest.raises(CancelledError):
        queue.run(int)
    assert written == []
