"""Judged answers: the three judges, and that no verdict is asked for twice."""

import hashlib
import signal
import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from salmonn.common.errors import UserError
from salmonn.evaluation.judge import prompts as judge_prompts
from salmonn.evaluation.judge.judging import JudgeRequest, judge_all, judge_name
from salmonn.evaluation.judge.prompts import judge_prompt, read_reply
from salmonn.evaluation.tasks import JUDGED_TASKS
from tests.fixtures.commands import json_lines
from tests.fixtures.judge_server import KEY, QUESTIONS, completion, endpoint, expect_right, settings
from tests.fixtures.paths import GOLDEN, ROOT
from tests.fixtures.waiting import HANG, n_lines, wait_until


def test_an_endpoint_is_asked_once_per_answer(judge, tmp_path):
    config = endpoint(judge)
    expect_right(judge_all(QUESTIONS, config, tmp_path))
    assert len(judge.requests) == len(QUESTIONS)
    first = judge.requests[0]
    assert (first["path"], first["model"], first["temperature"]) == ("/v1/chat/completions", "tiny-judge", 0)
    assert {headers["Authorization"] for headers in judge.headers} == {f"Bearer {KEY}"}
    lines = json_lines(tmp_path / "judge_replies.jsonl")
    assert {line["raw"] for line in lines} == {"Yes.", "no"}
    assert {line["judge"] for line in lines} == {f"tiny-judge at {judge.url}, prompt {judge_prompts.PROMPT_VERSION}"}

    expect_right(judge_all(QUESTIONS, config, tmp_path))
    assert len(judge.requests) == len(QUESTIONS)  # nothing asked again


def test_only_what_is_missing_or_changed_is_asked(judge, tmp_path):
    config, path = endpoint(judge), tmp_path / "judge_replies.jsonl"
    judge_all(QUESTIONS, config, tmp_path)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    judge.requests.clear()
    expect_right(judge_all(QUESTIONS, config, tmp_path))
    assert len(judge.requests) == 1

    changed = [replace(QUESTIONS[0], answer="good after all"), *QUESTIONS[1:]]
    assert judge_all(changed, config, tmp_path)[0].correct is True
    assert len(judge.requests) == 2
    judge_all(QUESTIONS, endpoint(judge, "model=other"), tmp_path)  # another judge, other verdicts
    assert len(judge.requests) == 2 + len(QUESTIONS)


def test_equal_answers_are_one_request_and_keep_their_ids(judge, tmp_path):
    verdicts = judge_all([QUESTIONS[1], replace(QUESTIONS[1], id="twin")], endpoint(judge), tmp_path)
    assert [(v.id, v.correct) for v in verdicts] == [("1", True), ("twin", True)]
    assert len(judge.requests) == 1


def test_a_half_written_last_line_and_damaged_ones_are_asked_for_again(judge, tmp_path, caplog):
    config, path = endpoint(judge), tmp_path / "judge_replies.jsonl"
    judge_all(QUESTIONS, config, tmp_path)
    path.write_bytes(path.read_bytes()[:-20])
    judge.requests.clear()
    expect_right(judge_all(QUESTIONS, config, tmp_path))
    assert len(judge.requests) == 1
    assert len(json_lines(path)) == len(QUESTIONS)

    path.write_bytes(b"{}\n" + path.read_bytes().replace(b'"Yes', b'"Yet', 1))
    judge.requests.clear()
    expect_right(judge_all(QUESTIONS, config, tmp_path))
    assert len(judge.requests) == 1
    assert f"judge_replies.jsonl: 2 of {len(QUESTIONS) + 1} lines are damaged" in caplog.text


@pytest.mark.parametrize("torn", [False, True])
def test_replies_under_their_old_name_are_not_asked_for_again(judge, tmp_path, torn):
    config, new = endpoint(judge), tmp_path / "judge_replies.jsonl"
    judge_all(QUESTIONS, config, tmp_path)
    kept = new.read_bytes()
    new.unlink()
    (tmp_path / "verdicts.jsonl").write_bytes(kept + b'{"key": "a' * torn)
    judge.requests.clear()
    expect_right(judge_all(QUESTIONS, config, tmp_path))
    assert judge.requests == []
    assert [path.name for path in tmp_path.iterdir()] == ["judge_replies.jsonl"]
    (tmp_path / "verdicts.jsonl").write_text("of something else")  # beside the new file it counts for nothing
    expect_right(judge_all(QUESTIONS, config, tmp_path))
    assert judge.requests == []


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, ".")
from tests.fixtures.judge_server import QUESTIONS, settings
from salmonn.evaluation.judge.judging import judge_all
judge_all(QUESTIONS, settings(*sys.argv[2:]), Path(sys.argv[1]))
"""


def test_after_kill_9_the_rest_is_asked(judge, tmp_path):
    stuck = threading.Event()
    judge.rule = lambda number, _: None if number <= 3 else stuck.set() or threading.Event().wait(HANG)
    options = ["kind=openai", f"base_url={judge.url}", "model=tiny-judge", "concurrency=1"]
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path), *options], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    assert stuck.wait(HANG)
    # a thread keeps replies while another asks on
    wait_until(lambda: n_lines(tmp_path / "judge_replies.jsonl") == 3, child)
    child.send_signal(signal.SIGKILL)
    child.wait()
    judge.requests.clear()
    judge.rule = lambda *_: None
    expect_right(judge_all(QUESTIONS, settings(*options), tmp_path))
    assert len(judge.requests) == len(QUESTIONS) - 3


def test_a_reply_that_is_no_verdict_is_counted_and_told(judge, tmp_path, caplog):
    judge.rule = lambda number, _: (
        (200, completion([None, "Perhaps.", "yes or no", "ja"][number])) if number < 4 else None
    )
    verdicts = judge_all(QUESTIONS, endpoint(judge, "concurrency=1"), tmp_path)
    assert [v.correct for v in verdicts].count(None) == 3
    assert len(verdicts) == len(QUESTIONS)
    assert [v.raw for v in verdicts[:3]] == ["Perhaps.", "yes or no", "ja"]
    assert "3 of 8 verdicts are neither yes nor no" in caplog.text


@pytest.mark.parametrize(
    ("raw", "correct"),
    [
        ("yes", True),
        (" Yes, it does.", True),
        ("**No.**", False),
        ("_no_", False),
        ("<think>no, yes, no</think>\n\nyes", True),
        ("<think>yes it", None),
        ("yesterday", None),
        ("notable", None),
        ("yes/no", None),
        ("Yes or no: yes", None),
        ("The answer is yes", None),
        ("", None),
    ],
)
def test_only_the_first_word_is_a_verdict(raw, correct):
    assert read_reply(raw) is correct


def test_prompts_change_only_with_their_version():
    texts = [judge_prompt(task, "a question", ("one", " ", "two"), "an answer") for task in JUDGED_TASKS]
    digest = hashlib.sha256("".join(texts).encode()).hexdigest()[:16]
    # not equal: give judge_prompts.PROMPT_VERSION a new value, or old verdicts pass for new ones
    assert (judge_prompts.PROMPT_VERSION, digest) == ("2026-11-1", "2655bfc764d95daf")
    with pytest.raises(UserError, match="'asr' has no judge prompt"):
        judge_prompt("asr", "", (), "")


@pytest.mark.parametrize(
    ("references", "answer", "correct"),
    [
        (("New York",), "It is in new  york, I think.", True),
        (("York",), "Yorkshire", False),
        (("seven o'clock", "7"), "At 7.", True),
        (("new york",), "york new", False),
        (("", "..."), "anything", None),
        ((), "anything", None),
        (("Paris",), "", False),
    ],
)
def test_containment_wants_the_whole_words(tmp_path, references, answer, correct):
    config = settings()  # the default
    [verdict] = judge_all([JudgeRequest("a", "SQQA", "?", references, answer)], config, tmp_path)
    assert verdict.correct is correct
    assert verdict.judge == judge_name(config)
    assert "containment matching" in verdict.judge


@pytest.mark.parametrize("template", [False, True])
def test_a_local_model_judges(tmp_path, template, caplog):
    """Random weights say random words: no verdict, but the whole way there. A second run does not load the model."""
    path = GOLDEN / "base/llama"
    if template:
        path = tmp_path / "with_template"
        path.mkdir()
        for file in (GOLDEN / "base/llama").iterdir():
            (path / file.name).symlink_to(file)
        chat = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}[me] "
        (path / "chat_template.jinja").write_text(chat)
    config = settings("kind=local", f"local_path={path}", "concurrency=3", "max_tokens=4")
    verdicts = judge_all(QUESTIONS, config, tmp_path)
    assert [v.id for v in verdicts] == [q.id for q in QUESTIONS]
    assert {v.correct for v in verdicts} == {None}
    assert any(v.raw for v in verdicts)
    assert judge_name(config).startswith(f"{path} (local model)")
    assert ("no chat template" in caplog.text) is not template
    alone = judge_all(
        QUESTIONS, settings("kind=local", f"local_path={path}", "concurrency=1", "max_tokens=4"), tmp_path / "b"
    )
    assert [v.raw for v in alone] == [v.raw for v in verdicts]  # whatever its batch

    caplog.clear()
    assert judge_all(QUESTIONS, config, tmp_path) == verdicts
    assert "no chat template" not in caplog.text


def test_a_local_model_that_is_absent_is_named(tmp_path):
    with pytest.raises(UserError, match=r"evaluate\.judge\.local_path = .*nowhere"):
        judge_all(QUESTIONS, settings("kind=local", f"local_path={tmp_path}/nowhere"), tmp_path)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["kind=human"], "evaluate.judge.kind = 'human': choose one of containment, openai, local"),
        (["kind=openai"], "evaluate.judge.model is empty"),
        (["kind=local"], "evaluate.judge.local_path is empty"),
        (["base_url=api.example.com"], "base_url: must start with http"),
        (["base_url=https://me:secret@example.com"], "base_url: the plain address"),
        (["base_url=https://example.com/v1/chat/completions"], "base_url: the plain address"),
        (["key_variable=sk-secret"], "key_variable: the name of an environment variable"),
        (["timeout_s=0"], "timeout_s = 0.0"),
        (["max_tries=0", "concurrency=0", "max_tokens=0"], "max_tries = 0"),
    ],
)
def test_a_wrong_judge_section_is_told(options, says):
    with pytest.raises(UserError) as caught:
        settings(*options)
    assert says in str(caught.value)
    assert "secret" not in str(caught.value)
