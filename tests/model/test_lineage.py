"""A checkpoint says what its model was trained on, whichever way it came here."""

import json

import pytest
import torch

from salmonn.model.lineage import LINEAGE, Training, known_tasks, lineage_before, lineage_of, read_lineage, written

RUNS = [
    Training("stage1", "stage1_train.json", ("asr", "audiocaption"), 300),
    Training("stage2", "stage2_train.json", ("asr", "QA"), 900),
]


def test_what_is_written_is_read_back_from_a_checkpoint_and_from_a_folder(tmp_path):
    torch.save({"model": {}, LINEAGE: written(RUNS)}, tmp_path / "a.pth")
    assert read_lineage(tmp_path / "a.pth") == RUNS
    content = {"model_type": "salmonn", "model": {}, "training": {LINEAGE: written(RUNS)}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert read_lineage(tmp_path / "model.safetensors") == RUNS
    assert read_lineage("") == []


@pytest.mark.parametrize(
    "saved",
    [None, 3, "stage1", {}, [1], [{}], [[]], [{**written(RUNS)[0], "tasks": "asr"}],
     [{**written(RUNS)[0], "tasks": [1]}], [{**written(RUNS)[0], "step": "3"}], [written(RUNS)[0], {"run": "x"}]],
)  # fmt: skip
def test_what_others_wrote_in_its_place_tells_nothing(saved):
    assert lineage_of({LINEAGE: saved}) == []


def test_more_that_a_later_version_writes_is_no_harm():
    assert lineage_of({LINEAGE: [{**one, "hours": 3.5} for one in written(RUNS)]}) == RUNS


def test_tasks_are_known_where_each_run_before_is(tmp_path):
    assert known_tasks(RUNS) == {"asr", "audiocaption", "QA"}
    assert known_tasks([]) is None
    torch.save({"model": {}}, tmp_path / "published.pth")
    before = lineage_before(tmp_path / "published.pth")
    assert before == [Training("published.pth")]
    assert known_tasks([*before, *RUNS]) is None
    assert lineage_before("") == []


def test_a_folder_of_something_else_tells_nothing(tmp_path):
    for content in ("{}", '{"model_type": "bert"}', "["):
        (tmp_path / "config.json").write_text(content)
        assert read_lineage(tmp_path / "model.safetensors") == []
    assert read_lineage(tmp_path / "none/model.safetensors") == []
