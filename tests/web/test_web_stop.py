"""What goes on for long on the web page, and how it is ended: waiting, answering, hearing a long clip, the server."""

import dataclasses
import gc
import signal
import socket
import sys
import threading
from itertools import islice
from typing import Any

import gradio as gr
import pytest
from omegaconf import OmegaConf

from salmonn.inference.engine import InferenceEngine
from salmonn.web import __main__ as web
from salmonn.web import layout
from salmonn.web import page as page_module
from salmonn.web.conversation import Conversation
from salmonn.web.page import Page
from tests.fixtures.paths import ROOT
from tests.fixtures.waiting import HANG, wait_until
from tests.fixtures.web_rows import SEARCH, ask_very_long, asked, heard, shown

pytest_plugins = ["tests.fixtures.web"]


# ---- answers


def test_a_question_that_is_stopped_while_it_waits_is_not_answered(page: Page, clip, request, written):
    conversation, _ = heard(page, clip)
    busy = request.getfixturevalue("busy")
    rows = page.ask(conversation, "What is said?", *SEARCH, None)
    before = shown([next(rows), next(rows)])
    assert [message["content"] for message in before[0]] == ["What is said?", "…"]
    assert "Waiting" in before[2]
    conversation.stop()
    chat, _, note, error = shown(rows, before)
    assert [message["content"] for message in chat] == ["What is said?", "(stopped)"]
    assert "Stopped." in note
    assert error == ""
    busy.set()
    page.queue.run(int)
    assert written == []


def test_a_chat_that_is_emptied_stays_empty(page: Page, clip, written):
    conversation, _ = heard(page, clip)
    asked(page, conversation, "Who?")
    rows = ask_very_long(page, conversation)
    assert len(conversation.messages) == 4
    assert page.clear(conversation) == ([], "")
    chat, _, note, error = shown(rows, (conversation.messages, "", "", ""))
    assert (chat, conversation.messages, note, error) == ([], [], "", "")
    page.queue.run(int)
    assert len(written) == 1
    assert conversation.encoding.heard  # the clip stays
    page.engine = page.queue.engine
    assert len(asked(page, conversation, "Who?")[0]) == 2


def test_another_clip_ends_the_answers_about_the_one_before(page: Page, clip, written):
    conversation, _ = heard(page, clip)
    rows = ask_very_long(page, conversation)
    others = page.listen(conversation, clip, False)
    assert next(others)[1] == []
    assert shown(rows, (conversation.messages, "", "", ""))[0] == []
    shown(others)
    page.queue.run(int)
    assert written == []
    page.engine = page.queue.engine
    assert len(asked(page, conversation, "Who?")[0]) == 2


# ---- hearing


def test_hearing_that_is_stopped_keeps_what_was_heard(page: Page, long_clip):
    conversation = Conversation()
    rows = page.listen(conversation, long_clip, True)
    before = shown([next(rows), next(rows)])
    assert "Heard 0:0" in before[3]
    assert " of 0:07.4" in before[3]
    conversation.stop()
    _, _, picture, note, _, error = shown(rows, before)
    assert picture.startswith("<img")
    assert "heard until it was stopped in 2 windows" in note
    assert error == ""
    assert len(conversation.encoding.heard.embeds) == len(conversation.encoding.heard.spans) == 2
    assert asked(page, conversation, "", task="asr")[3] == ""


@pytest.mark.usefixtures("busy")
def test_hearing_that_is_stopped_before_its_turn_hears_nothing(page: Page, clip):
    conversation = Conversation()
    rows = page.listen(conversation, clip, False)
    before = shown([next(rows)])
    assert "Listening" in before[3]
    conversation.stop()
    assert "Stopped before anything was heard." in shown(rows, before)[3]
    assert "No clip yet" in asked(page, conversation, "What?")[3]


def test_of_two_clips_the_one_chosen_last_is_heard(page: Page, clip, long_clip):
    conversation = Conversation()
    first = page.listen(conversation, long_clip, True)
    shown([next(first), next(first)])
    page_shows = shown(page.listen(conversation, clip, False))
    assert list(first) == []  # nothing of it may reach the page any more
    assert len(conversation.encoding.heard.embeds) == 1
    assert page_shows[3] == ""


def test_a_question_waits_until_its_clip_is_heard(page: Page, clip, monkeypatch):
    monkeypatch.setattr(page_module, "_EVERY", 0.01)
    conversation = Conversation()
    hearing = page.listen(conversation, clip, False)
    next(hearing)
    rows = page.ask(conversation, "What is said?", *SEARCH, None)
    before = shown([next(rows), next(rows)])
    assert "Waiting until the clip is heard." in before[2]
    list(hearing)
    chat, _, note, error = shown(rows, before)
    assert chat[1]["content"] not in ("", "…")
    assert "Waiting" not in note
    assert error == ""


def test_a_question_that_is_forgotten_does_not_wait_for_its_clip(page: Page, clip, monkeypatch):
    monkeypatch.setattr(page_module, "_EVERY", 0.01)
    conversation = Conversation()
    hearing = page.listen(conversation, clip, False)
    next(hearing)
    rows = page.ask(conversation, "What is said?", *SEARCH, None)
    before = shown([next(rows), next(rows)])
    page.clear(conversation)
    chat, _, note, error = shown([*islice(rows, 2)], before)
    assert next(rows, "over") == "over"
    assert (chat, note, error) == ([], "", "")
    assert conversation.encoding.over.is_set() is False


def test_what_was_typed_stays_where_nothing_was_heard(page: Page, tmp_path):
    (tmp_path / "broken.wav").write_text("this is not audio")
    conversation, _ = heard(page, str(tmp_path / "broken.wav"))
    [(chat, typed, _, error)] = page.ask(conversation, "What is said?", *SEARCH, None)
    assert (chat, typed) == ([], gr.skip())
    assert "No clip yet" in error


def test_hearing_is_over_for_whoever_leaves_at_once(page: Page, clip):
    conversation = Conversation()
    rows = page.listen(conversation, clip, False)
    next(rows)
    rows.close()
    assert conversation.encoding.over.is_set()


def test_others_have_their_turn_between_the_windows_of_a_long_clip(page: Page, long_clip, monkeypatch):
    model, order = page.engine.model, []

    def interrupted(name: str) -> None:
        work = getattr(model, name)

        def watch(*args, **library):
            order.append(name)
            if order.count(name) == 1:
                threading.Thread(target=page.queue.run, args=[lambda: order.append("other")]).start()
                wait_until(lambda: len(page.queue._jobs) == 2)  # this one, and the other that waits
            return work(*args, **library)

        monkeypatch.setattr(model, name, watch)

    interrupted("encode_and_spell")
    interrupted("answer_embeds")
    conversation, _ = heard(page, long_clip, in_windows=True)
    asked(page, conversation, "", task="asr")
    assert order == ["encode_and_spell", "other", "encode_and_spell", "answer_embeds", "other", "answer_embeds"]


@pytest.mark.parametrize(("seconds", "length"), [(12.0, "0.2"), (0.0, "more than 0.1")])  # 0: the header does not tell
def test_a_clip_of_hours_is_refused_with_the_limit(page: Page, long_clip, monkeypatch, seconds, length):
    inspect = page_module.inspect_header
    monkeypatch.setattr(
        page_module, "inspect_header", lambda path: dataclasses.replace(inspect(path), frames=int(seconds * 16_000))
    )
    page.max_minutes = 0.1
    conversation, (_, picture, _, error) = heard(page, long_clip, in_windows=True)
    assert f"long.wav: {length} minutes long; in windows, up to 0.1 minutes are heard here. Choose a part" in error
    assert "--max-minutes" in error
    assert conversation.encoding.heard is None
    assert picture == ""
    assert heard(page, long_clip)[1][3] == ""  # its first 5 s can be heard


# ---- the server


@pytest.mark.parametrize("doing", ["answering", "hearing"])
def test_ctrl_c_ends_the_server_whatever_it_does(engine: InferenceEngine, clip, long_clip, doing, written, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = OmegaConf.merge(engine.config, {"run": {"batch_size_eval": 1}})
    monkeypatch.setattr(InferenceEngine, "load", lambda *_: InferenceEngine(engine.model, settings))
    monkeypatch.setattr(web, "require_files", lambda *_: None)  # the engine is there already
    monkeypatch.setattr(sys, "argv", ["web", "--port", str(port), "--cfg-path", f"{ROOT}/configs/mini/decode.yaml"])
    main_thread, left = threading.main_thread().ident, []

    def visit(page: Page) -> None:
        conversation = Conversation()
        if doing == "answering":
            shown(page.listen(conversation, clip, False))
            rows, before = ask_very_long(page, conversation), ("",) * 4
        else:
            rows = page.listen(conversation, long_clip, True)
            before = shown([next(rows), next(rows)])
        signal.pthread_kill(main_thread, signal.SIGINT)
        wait_until(page.queue.closed.is_set)  # whenever the main thread hears it
        left.append((shown(rows, before), conversation))

    visitors = []

    def serve(*args: Any) -> str:
        visitors[0].start()
        return address(*args)

    address, build = layout.serve, layout.build
    monkeypatch.setattr(layout, "serve", serve)
    monkeypatch.setattr(
        layout, "build", lambda page: visitors.append(threading.Thread(target=visit, args=[page])) or build(page)
    )
    web.main()
    gc.unfreeze()  # this process goes on
    visitors[0].join(HANG)
    [((*_, note, error), conversation)] = left
    assert error == ""
    if doing == "answering":
        assert written == []
        assert "Stopped." in note
    else:
        assert len(conversation.encoding.heard.spans) == 1
