"""Tasks that a language model judges, through the whole evaluation; the judge is a small server on this machine."""

import json
from pathlib import Path

import pytest

from salmonn.common import distributed
from salmonn.common.errors import UserError
from salmonn.evaluation import pipeline
from salmonn.evaluation.pipeline import evaluate_tasks
from salmonn.evaluation.tasks import EvalTask
from tests.fixtures.commands import json_lines
from tests.fixtures.stub_model import StubModel, config_for, entry

ENTRIES = [  # the stub answers "red dog", "blue dog" and "green dog"
    entry(1, text="red", task="SQQA", spoken="which colour has the dog"),
    entry(2, text="red", task="SQQA", spoken="blue dog"),
    entry(3, text="green", task="SQQA", spoken="which colour has the dog"),
    entry("broken", text="red", task="SQQA", spoken="which colour has the dog"),
]


def run(world: Path, *options: str) -> tuple[dict, list[dict]]:
    config = config_for(world, ENTRIES, *options)
    task = EvalTask(
        "sqqa", "questions", f"{world}/ann.json", ["SQQA"], "asr", "english", ["judged", "following"], "SQQA"
    )
    other = EvalTask("asr", "words", f"{world}/ann.json", ["SQQA"], "asr", "english", ["wer"])
    folder = world / "results"
    try:
        evaluate_tasks(config, [task, other], folder)
    finally:
        report = json.loads((folder / "sqqa/report.json").read_text())
        lines = json_lines(folder / "sqqa/predictions.jsonl")
        assert "wer" in json.loads((folder / "asr/report.json").read_text())["scores"]  # whatever the judge does
    return report, lines


def to(judge) -> list[str]:
    return ["evaluate.judge.kind=openai", "evaluate.judge.model=m", f"evaluate.judge.base_url={judge.url}"]


def test_verdicts_of_a_judge_become_an_accuracy_and_are_kept(stub_world: Path, stub_model: StubModel, judge):
    judge.rule = lambda _, prompt: (200, reply("No." if "green dog" in prompt else "Yes"))
    report, lines = run(stub_world, *to(judge))
    assert report["scores"]["judged"] == pytest.approx(2 / 3)
    assert report["scores"]["following"] == pytest.approx(2 / 3)  # one only repeats what is spoken
    assert report["details"]["judged"] | {"note": ""} == {"correct": 2, "wrong": 1, "unclear": 0, "note": ""}
    assert [line.get("verdict") for line in lines] == [
        {"correct": True, "raw": "Yes"},
        {"correct": True, "raw": "Yes"},
        {"correct": False, "raw": "No."},
        None,
    ]
    assert report["provenance"]["judge"].startswith(f"m at {judge.url}")
    assert len(judge.requests) == 3
    asked = json.dumps(judge.requests)
    assert "which colour has the dog" in asked
    page = (stub_world / "results/report.md").read_text()
    assert "66.67 %" in page
    heard = len(stub_model.heard)
    run(stub_world, *to(judge))
    assert (len(judge.requests), len(stub_model.heard)) == (3, heard)  # nothing is asked twice


@pytest.mark.usefixtures("stub_model")
def test_an_unclear_verdict_counts_as_wrong_and_is_counted(stub_world: Path, judge):
    judge.rule = lambda _, prompt: (200, reply("Who knows?" if "green dog" in prompt else "yes"))
    report, _ = run(stub_world, *to(judge))
    assert report["scores"]["judged"] == pytest.approx(2 / 3)
    assert report["details"]["judged"]["unclear"] == 1


def test_a_judge_that_cannot_be_reached_is_one_message_and_no_answer_is_lost(
    stub_world: Path, stub_model: StubModel, judge, capsys: pytest.CaptureFixture
):
    judge.stop()
    with pytest.raises(UserError, match=r"results/sqqa: the judge at .* cannot be reached") as error:
        run(stub_world, *to(judge))
    assert str(error.value).count("cannot be reached") == 1
    report = json.loads((stub_world / "results/sqqa/report.json").read_text())
    assert report["scores"]["judged"] is None
    assert "cannot be reached" in report["unavailable"]["judged"]
    assert report["scores"]["following"] == pytest.approx(2 / 3)
    assert "no score" in capsys.readouterr().out
    heard = len(stub_model.heard)
    run(stub_world)
    assert len(stub_model.heard) == heard


@pytest.mark.usefixtures("stub_model")
def test_without_a_judge_containment_is_told_under_its_own_name(stub_world: Path):
    report, lines = run(stub_world)
    assert report["scores"]["judged"] is None
    assert "evaluate.judge.kind" in report["unavailable"]["judged"]
    assert report["scores"]["contained"] == pytest.approx(2 / 3)
    assert lines[1]["verdict"] == {"correct": False, "raw": "no"}


@pytest.mark.usefixtures("stub_model")
def test_every_set_is_scored_and_written_once_and_judged_ones_when_the_other_ranks_may_go(
    stub_world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    events = []
    write, leave = pipeline.write_report, distributed.shutdown
    monkeypatch.setattr(
        pipeline, "write_report", lambda folder, *rest: (events.append(folder.name), write(folder, *rest))
    )
    monkeypatch.setattr(distributed, "shutdown", lambda: (events.append("process group left"), leave()))
    run(stub_world)
    assert events == ["asr", "process group left", "sqqa"]
    assert capsys.readouterr().out.count("sqqa: questions") == 1


def reply(text: str) -> str:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})
