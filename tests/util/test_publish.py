"""util/publish.py: a checkpoint with its card, looked at first or sent to a hub on this machine."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from salmonn import SALMONN
from salmonn.common.errors import UserError
from salmonn.evaluation.provenance import file_hash
from salmonn.model import checkpoint
from salmonn.model.lineage import LINEAGE, Training, read_lineage, written
from tests.fixtures.golden import golden_config
from tests.fixtures.hub import Hub
from util import publish

pytest_plugins = ["tests.fixtures.hub"]

RUNS = [Training("stage1", "one.json", ("asr",), 7)]
PROVENANCE = {"commit": "abc+", "checkpoint_sha256": "f" * 64, "annotation": "/home/kim/private.json", "seed": 42}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """The checkpoint of a run."""
    config = golden_config("base")
    path = tmp_path_factory.mktemp("run") / "checkpoint_best.pth"
    parameters = checkpoint.own_values(SALMONN.from_config(config))
    saved = {"model": dict(config), "datasets": {"prefix": "/home/kim/corpora"}}
    torch.save({"model": parameters, "config": saved, LINEAGE: written(RUNS), "epoch": 1, "step": 7}, path)
    return path


def report(name: str = "asr", **more) -> dict:
    scores = {"wer": 0.0825, "wer_shuffled": 1.2084}
    return {
        "name": name, "n": 167, "scores": scores, "intervals": {"wer": [0.06, 0.1]}, "provenance": PROVENANCE, **more,
    }  # fmt: skip


def run(monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["publish.py", *map(str, arguments)])
    publish.main()


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (report(), ["| asr  | WER    | 167   | 8.25 % | 6.00 % to 10.00 % | 120.84 %       |"]),
        ({"asr": report(), "gone": None, "b": report("b", scores={"wer": None}, intervals={})}, ["| b ", "no score"]),
    ],
)
def test_a_folder_to_look_at_first_has_the_scores_with_their_controls(
    source, tmp_path, monkeypatch, capsys, content, rows
):
    checkpoint_sha256 = file_hash(str(source))
    (tmp_path / "results").mkdir()
    (tmp_path / "results/report.json").write_text(json.dumps(content).replace("f" * 64, checkpoint_sha256))
    out = tmp_path / "new/folder"
    run(monkeypatch, source, "kim/ears", "--results", tmp_path / "results", "--out", out, "--license", "mit")
    assert "nothing was published" in capsys.readouterr().out
    card = (out / "README.md").read_text()
    assert all(row in card for row in rows)
    assert "| asr " in card
    assert "Shuffled audio:" in card
    assert checkpoint_sha256 in card
    assert "`stage1`: 7 iterations on `one.json` (asr)" in card
    assert "/home/kim" not in card + (out / "config.json").read_text()
    assert read_lineage(out / "model.safetensors") == RUNS


def test_scores_of_another_checkpoint_are_refused_and_all_that_they_depend_on_is_told(source, tmp_path):
    def write(name: str, **provenance: object) -> Path:
        (tmp_path / name).mkdir()
        content = report(name, provenance=PROVENANCE | provenance)
        (tmp_path / name / "report.json").write_text(json.dumps(content))
        return tmp_path / name

    this, other, older = write("this"), write("other", checkpoint_sha256="0" * 64), write("older", commit="123")
    with pytest.raises(UserError, match=r"this is of another checkpoint than .*checkpoint_best\.pth"):
        publish.shown_scores([this], source)
    with pytest.raises(UserError, match="other is of another checkpoint than this"):
        publish.shown_scores([this, other], tmp_path)
    assert "abc+; 123" in publish.shown_scores([this, older], tmp_path)


def test_what_only_spells_is_not_published_and_stage_0_is_no_model(source, tmp_path, monkeypatch):
    content = torch.load(source, weights_only=True)
    parameters = content["model"]
    content["model"] = parameters | {"ctc_blank": torch.zeros(48), "ctc_log_scale": torch.tensor(1.4)}
    torch.save(content, tmp_path / "spelling.pth")
    run(monkeypatch, tmp_path / "spelling.pth", "kim/ears", "--out", tmp_path / "out")
    assert load_file(tmp_path / "out/model.safetensors").keys() == parameters.keys()
    content["model"] = {name: value for name, value in content["model"].items() if "lora_" not in name}
    torch.save(content, tmp_path / "stage0.pth")
    with pytest.raises(UserError, match=r"stage0\.pth is of stage 0"):
        run(monkeypatch, tmp_path / "stage0.pth", "kim/ears", "--out", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_it_is_published_for_nobody_or_everybody(source, hub: Hub, monkeypatch, capsys):
    run(monkeypatch, source, "kim/ears")
    run(monkeypatch, source, "kim/open", "--public")
    assert hub.private == {"kim/ears": True, "kim/open": False}
    assert f"published: {hub.url}/kim/ears" in capsys.readouterr().out
    assert b"None came with this card." in hub.models["kim/ears"]["README.md"]


@pytest.mark.parametrize(
    "damage", [{"scores": {"wer": {}}}, {"intervals": {"wer": 3}}, {"intervals": {"wer": ["x", 1]}}]
)
def test_a_damaged_report_is_told(tmp_path, monkeypatch, damage):
    (tmp_path / "report.json").write_text(json.dumps(report(**damage)))
    with pytest.raises(UserError, match=r"--results: a report of .* was damaged"):
        run(monkeypatch, "nowhere.pth", "kim/ears", "--results", tmp_path, "--out", tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "told"),
    [("{}", "none of evaluate.py"), ("[1]", "none of evaluate.py"), ('{"asr": {"n": 1}}', "none of evaluate.py"),
     ("{", "is not valid JSON"), (None, "report.json")],
)  # fmt: skip
def test_results_that_are_none_are_refused_before_the_weights_are_read(tmp_path, monkeypatch, content, told):
    (tmp_path / "results").mkdir()
    if content is not None:
        (tmp_path / "results/report.json").write_text(content)
    with pytest.raises(UserError, match=told):
        run(monkeypatch, "nowhere.pth", "kim/ears", "--results", tmp_path / "results", "--out", tmp_path / "out")


def test_what_cannot_be_published_is_told(source, tmp_path, monkeypatch):
    for arguments, told in (
        ([source, "ears"], "is called USER/NAME"),
        ([tmp_path / "nowhere.pth", "kim/ears", "--out", tmp_path / "out"], "does not exist"),
        ([source, "kim/ears", "--out", tmp_path], "exists already"),
        ([source, "kim/ears", "--out", "/proc/folder"], "cannot be written"),
    ):
        with pytest.raises(UserError, match=told):
            run(monkeypatch, *arguments)
