"""A judge behind an endpoint that is slow, broken, gone or not to be trusted: one clear message, nothing lost."""

import threading
from types import SimpleNamespace

import pytest

from salmonn.common.errors import UserError
from salmonn.evaluation.judge import endpoint as judge_endpoint
from salmonn.evaluation.judge.judging import judge_all
from tests.fixtures.judge_server import KEY, QUESTIONS, Judge, completion, endpoint, expect_right, settings
from tests.fixtures.waiting import HANG


@pytest.mark.parametrize(
    "trouble",
    [
        (500, "out of memory"),
        (429, "slow down", {"Retry-After": "0"}),
        (200, "<html>no JSON</html>"),
        (200, '{"choices": []}'),
    ],
)
def test_what_may_pass_is_tried_again(judge, tmp_path, trouble):
    judge.rule = lambda number, _: trouble if number <= 2 else None
    expect_right(judge_all(QUESTIONS, endpoint(judge, "concurrency=1"), tmp_path))
    assert len(judge.requests) == len(QUESTIONS) + 2


def test_waits_grow_and_heed_the_server(judge):
    waits = []

    class Stop(threading.Event):
        def wait(self, seconds):
            waits.append(seconds)

    replies = iter(
        [(503, ""), (503, ""), (503, ""), (429, "", {"Retry-After": "7"}), (429, "", {"Retry-After": "999"})]
    )
    judge.rule = lambda *_: next(replies)
    with pytest.raises(UserError, match=r"HTTP 429, 5 times"):
        judge_endpoint._ask("prompt", endpoint(judge), KEY, Stop())
    assert waits == [0.01, 0.02, 0.04, 7]


@pytest.mark.parametrize(
    ("reply", "tries", "says"),
    [
        ((401, f"Incorrect API key {KEY}"), 1, r"HTTP 401; key: environment variable OPENAI_API_KEY, set.*export"),
        ((403, f"{KEY} may not use it"), 1, r"HTTP 403: \*\*\* may not use it.*export OPENAI_API_KEY="),
        ((404, "no model tiny-judge"), 1, r"HTTP 404: no model tiny-judge.*base_url"),
        ((400, "temperature not supported"), 1, r"HTTP 400: temperature not supported"),
        ((302, "", {"Location": "http://127.0.0.1:1/"}), 1, r"HTTP 302.*final address"),
        ((500, f"boom {KEY}"), 2, r"HTTP 500: boom \*\*\*, 2 times"),
        ((200, "[" * 5000 + "]" * 5000), 2, r"no chat completion \('\[\[\[.*'\), 2 times"),
        ((200, f"garbage {KEY}"), 2, r"no chat completion \('garbage \*\*\*'\), 2 times"),
    ],
)
def test_a_refusal_is_one_clear_message(judge, tmp_path, reply, tries, says):
    judge.rule = lambda *_: reply
    with pytest.raises(UserError, match=says) as caught:
        judge_all(QUESTIONS[:1], endpoint(judge, "max_tries=2"), tmp_path)
    assert f"{judge.url}/chat/completions" in str(caught.value)
    assert KEY not in str(caught.value)
    assert len(judge.requests) == tries


def test_a_missing_key_is_named_where_one_is_needed(judge, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    expect_right(judge_all(QUESTIONS, endpoint(judge), tmp_path))  # an endpoint that needs none
    assert not any("Authorization" in headers for headers in judge.headers)
    judge.rule = lambda *_: (401, "")
    with pytest.raises(UserError, match="OPENAI_API_KEY, NOT set"):
        judge_all(QUESTIONS, endpoint(judge, "model=other"), tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\nmore")
    with pytest.raises(UserError, match="OPENAI_API_KEY holds characters that no key has") as caught:
        judge_all(QUESTIONS, endpoint(judge, "model=other"), tmp_path)
    assert KEY not in str(caught.value)


def test_a_slow_judge_times_out(judge, tmp_path):
    judge.rule = lambda *_: threading.Event().wait(HANG)
    with pytest.raises(UserError, match=r"gave no answer within 0.1 s, 2 times.*timeout_s"):
        judge_all(QUESTIONS[:1], endpoint(judge, "timeout_s=0.1", "max_tries=2"), tmp_path)


def test_an_unreachable_judge_is_told_at_once(judge, tmp_path):
    judge.stop()
    with pytest.raises(UserError, match=r"cannot be reached: .*refused.*environment variable OPENAI_API_KEY"):
        judge_all(QUESTIONS, endpoint(judge), tmp_path)
    with pytest.raises(UserError, match=r"http://no-such-host.invalid/v1/chat/completions cannot be reached"):
        judge_all(QUESTIONS, settings("kind=openai", "base_url=http://no-such-host.invalid/v1", "model=m"), tmp_path)


def test_a_judge_that_dies_leaves_its_verdicts(judge, tmp_path):
    config = endpoint(judge, "concurrency=1")
    judge.rule = lambda number, _: judge.stop() if number == 4 else None  # this one is still answered
    with pytest.raises(UserError, match=r"cannot be reached(?s:.*)4 of 8 verdicts are in .*judge_replies\.jsonl"):
        judge_all(QUESTIONS, config, tmp_path)
    again = Judge(judge.port)
    expect_right(judge_all(QUESTIONS, config, tmp_path))
    again.stop()
    assert len(again.requests) == 4


def test_answers_under_way_are_kept_when_another_fails(judge, tmp_path, monkeypatch):
    stop = threading.Event()  # what a refusal sets
    monkeypatch.setattr(judge_endpoint, "threading", SimpleNamespace(Event=lambda: stop))
    judge.rule = lambda number, _: (401, "") if number == 4 else stop.wait(HANG) and None
    with pytest.raises(UserError, match="3 of 8 verdicts are in"):
        judge_all(QUESTIONS, endpoint(judge, "concurrency=4"), tmp_path)
    assert len(judge.requests) == 4  # four at once, and none after the refusal


def test_the_key_is_written_nowhere(judge, tmp_path, caplog, capfd):
    judge.rule = lambda *_: (200, completion(f"your key is {KEY}"))
    verdicts = judge_all(QUESTIONS, endpoint(judge), tmp_path)
    assert verdicts[0].raw == "your key is ***"
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()).decode()
    assert written
    assert KEY not in written + caplog.text + "".join(capfd.readouterr()) + repr(endpoint(judge))
