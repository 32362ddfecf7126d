"""A results folder that the code before the move to packages wrote (tests/golden/before_house) is read as it is."""

import json
import re
import shutil
from pathlib import Path

import pytest

from salmonn.config.loading import load_config
from salmonn.data.annotations import Annotations
from salmonn.evaluation.answer_store import AnswerStore
from salmonn.evaluation.clips import clips_of
from salmonn.evaluation.compare import compare
from salmonn.evaluation.judge import judging
from salmonn.evaluation.judge.judging import judge_answers
from salmonn.evaluation.provenance import fingerprint
from salmonn.evaluation.report.task_report import build_report, without_statistics
from salmonn.evaluation.requests import Prediction
from salmonn.evaluation.table3 import earlier_reports, write_overview
from salmonn.evaluation.tasks import load_tasks
from tests.fixtures.commands import json_lines
from tests.fixtures.paths import GOLDEN, ROOT

BEFORE = GOLDEN / "before_house"
TASKS = load_tasks(BEFORE / "tasks.yaml")


@pytest.fixture
def table3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the results."""
    monkeypatch.chdir(ROOT)  # the fixture's paths begin there
    return Path(shutil.copytree(BEFORE / "results/table3", tmp_path / "table3"))


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_a_rerun_looks_for_the_answers_under_the_name_that_they_have(table3: Path, task):
    provenance = json.loads((table3 / task.name / "report.json").read_text())["provenance"]
    asked = [line["prompt"] for line in json_lines(table3 / task.name / "predictions.jsonl")]
    [file] = (table3 / task.name).glob("answers/answers-*.jsonl")
    provenance.pop("judge", None)  # it is known later
    assert file.name == f"answers-{fingerprint(provenance, asked)}-rank0.jsonl"


def answers_of(folder: Path, kind: str = "answers") -> tuple[dict[int, Prediction], set[str]]:
    """({position: answer}, the commits that gave them), as a rerun finds them."""
    [file] = folder.glob(f"answers/{kind}-*.jsonl")
    store = AnswerStore(file.parent, re.sub(r"-rank\d+\.jsonl$", "", file.name), "now")
    return store.read(), store.commits


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_answers_are_found_and_give_the_scores_that_they_gave(table3: Path, task, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(judging, "_ask", lambda *_: pytest.fail("the judge is asked again"))
    folder, config = table3 / task.name, load_config(BEFORE / "config.yaml")
    predictions, commits = answers_of(folder)
    assert predictions == {
        position: Prediction(line["text"], line["n_tokens"], line["finished"])
        for position, line in enumerate(json_lines(folder / "predictions.jsonl"))
    }
    assert commits == {"52af30326088+"}
    entries = Annotations(shutil.copy(task.annotation, table3))  # an index is written beside the file
    clips = clips_of([entries.as_written(i) for i in range(len(entries))], task, task.annotation)
    judgement = None
    if task.is_judged:
        judgement = judge_answers(task.judge, clips, predictions, config.evaluate.judge, folder, "cpu")
        assert json_lines(folder / "judge_replies.jsonl") == json_lines(BEFORE / "results/table3/sqqa/verdicts.jsonl")
    shuffled, _ = answers_of(folder, "shuffled")
    now = without_statistics(build_report(task, clips, predictions, shuffled, config.model.whisper_path, judgement))
    before = json.loads((folder / "report.json").read_text())
    assert set(now.pop("notes")) <= set(before["notes"])  # a run adds who has judged
    # since then the control has intervals, too
    now["intervals"] = {name: edges for name, edges in now["intervals"].items() if not name.endswith("_shuffled")}
    assert {key: before[key] for key in now} == now


def test_a_result_from_before_is_comparable(table3: Path):
    page = compare(table3, table3)
    assert "| asr " in page
    assert "| sqqa " in page
    assert page.endswith("## What differs\n\nNothing of what the results are known to depend on.")


def test_a_result_from_before_stays_on_the_page(table3: Path, tmp_path: Path):
    reports = earlier_reports(table3, TASKS)
    write_overview(tmp_path / "page", TASKS, reports)
    assert (tmp_path / "page/report.json").read_bytes() == (table3 / "report.json").read_bytes()
