"""One model for several people: who waits, who stops, and what of one request another one has."""

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from salmonn.common.errors import UserError
from salmonn.inference.engine import Answer, Heard, Listener, Question
from salmonn.web import request_queue as turns_module
from salmonn.web.request_queue import Turns
from tests.fixtures.web_rows import VERY_LONG

pytest_plugins = ["tests.fixtures.web"]


def test_text_is_told_while_it_is_written_and_nothing_twice(monkeypatch):
    looks = []
    wait = turns_module.wait
    monkeypatch.setattr(turns_module, "_EVERY", 0.001)
    monkeypatch.setattr(turns_module, "wait", lambda *args: looks.append(args) or wait(*args))

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
    turns = Turns(SimpleNamespace(model=model, ask_windows=ask))
    heard = Heard(torch.zeros(1, 1, 1), torch.zeros(1).numpy())
    told = list(turns.answer(heard, Question("?"), SimpleNamespace(num_beams=1)))
    turns.close()
    assert [answer.text for answer in told if answer] == ["", "a red", "a red dog", "a red dog"]
    assert [answer.finished for answer in told if answer] == [False, False, False, True]


@pytest.mark.parametrize("beams", [1, 2])
def test_the_last_answer_is_that_of_the_listener(turns: Turns, listener: Listener, clip, beams):
    heard, question = listener.hear([clip]), listener.question("What is said?")
    settings = OmegaConf.merge(listener.config.generate, {"num_beams": beams})
    expected = listener.ask(heard, question, settings)
    *_, last = turns.answer(heard, question, settings)
    assert [last] == expected
    assert last.text


def test_of_a_long_clip_some_windows_are_told_at_a_time(turns: Turns, listener: Listener, long_clip):
    heard, question = listener.hear_long(long_clip), listener.task_question("asr")
    told = [answer for answer in turns.answer(heard, question, listener.config.generate) if answer and answer.parts]
    assert [len(answer.parts) for answer in told] == [2, 3]
    assert [told[-1]] == listener.ask(heard, question)


@pytest.mark.parametrize("beams", [1, 2])
def test_the_model_stops_for_whoever_leaves(turns: Turns, listener: Listener, clip, beams, written):
    settings = OmegaConf.merge(listener.config.generate, VERY_LONG, {"num_beams": beams})
    answers = turns.answer(listener.hear([clip]), listener.question("What is said?"), settings)
    while not next(answers):
        pass
    answers.close()
    turns.run(int)  # the thread is free again
    assert written == []


def test_the_model_stops_when_nobody_looks_any_more(turns: Turns, listener: Listener, clip, monkeypatch, written):
    monkeypatch.setattr(turns_module, "_PATIENCE", 0.2)
    settings = OmegaConf.merge(listener.config.generate, VERY_LONG)
    answers = turns.answer(listener.hear([clip]), listener.question("What is said?"), settings)
    while not next(answers):
        pass
    turns.run(int)  # and the reader is gone, without a word
    assert written == []


def test_who_looks_on_is_waited_for_though_nothing_is_new(turns: Turns, listener: Listener, clip, monkeypatch):
    monkeypatch.setattr(turns_module, "_PATIENCE", 0.5)
    monkeypatch.setattr(turns_module, "HEARTBEAT", 0.1)
    settings = OmegaConf.merge(listener.config.generate, {"max_new_tokens": 300, "min_length": 300, "num_beams": 2})
    *_, last = turns.answer(listener.hear([clip]), listener.question("What is said?"), settings)
    assert last.text


def test_who_stops_before_his_turn_is_not_answered(turns: Turns, listener: Listener, clip, busy, written):
    stop = threading.Event()
    question = listener.question("What is said?")
    answers = turns.answer(listener.hear([clip]), question, listener.config.generate, stop=stop)
    assert next(answers) is None
    stop.set()
    with pytest.raises(CancelledError):
        next(answers)
    busy.set()
    turns.run(int)
    assert written == []


def test_nobody_has_the_scaling_of_another(turns: Turns, listener: Listener, clip, monkeypatch):
    seen = []
    answer = listener.model.answer_embeds

    def watch(*args, **library):
        seen.append(listener.model.lora_scaling)
        if len(seen) == 2:
            raise UserError("no")
        return answer(*args, **library)

    monkeypatch.setattr(listener.model, "answer_embeds", watch)
    ask = listener.hear([clip]), listener.question("What is said?"), listener.config.generate
    first, second, third = turns.answer(*ask, scaling=1.5), turns.answer(*ask, scaling=0.0), turns.answer(*ask)
    list(first)
    with pytest.raises(UserError):
        list(second)
    list(third)
    assert seen == [1.5, 0.0, 4.0]


def test_of_too_many_that_wait_the_next_is_told_to_come_again(turns: Turns, monkeypatch):
    monkeypatch.setattr(turns_module, "HEARTBEAT", 0.0)
    release = threading.Event()
    turns.require_room()
    taking = turns.take(release.wait, threading.Event())
    next(taking)
    monkeypatch.setattr(turns_module, "_MOST_WAITING", 0)
    with pytest.raises(UserError, match="waiting already: try again"):
        turns.require_room()
    release.set()
    assert list(taking) == []
    turns.require_room()


def test_what_waits_when_the_page_ends_does_not_begin(turns: Turns, listener: Listener, clip, busy, written):
    answers = turns.answer(listener.hear([clip]), listener.question("What is said?"), listener.config.generate)
    assert next(answers) is None
    threading.Timer(0.2, busy.set).start()
    turns.close()
    with pytest.raises(CancelledError):
        list(answers)
    with pytest.raises(CancelledError):
        turns.run(int)
    assert written == []
