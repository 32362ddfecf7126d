"""Curves of several training runs in one picture: each value of each run at its step, whatever state the log is in."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from salmonn.common.charts import distinct_colours
from salmonn.common.errors import UserError
from salmonn.training import curves as training_curves
from salmonn.training.curves import plot_curves, plot_runs, read_log
from salmonn.training.run_log import RunLog
from util import plot_runs as command


def train(step: int, loss: float) -> dict:
    return {"kind": "train", "step": step, "loss": loss, "lr": 1e-3, "grad_norm": 2.0, "samples_per_second": 9.0}


def valid(step: int, loss: float) -> dict:
    shuffled = {"loss_shuffled": 2 * loss, "accuracy_shuffled": 0.1}
    return {"kind": "valid", "step": step, "loss": loss, "accuracy": 0.5, **shuffled, "tasks": {}}


def write_run(folder: Path, lines: list[dict], end: str = "") -> Path:
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + end, encoding="utf-8")
    return folder


@pytest.fixture
def figures(monkeypatch) -> list:
    """The figures that were drawn, in place of files."""
    drawn = []
    monkeypatch.setattr(training_curves, "write_png", lambda figure, _: drawn.append(figure))
    return drawn


def points(line) -> list[tuple[float, float]]:
    return list(zip(*map(np.ndarray.tolist, map(np.asarray, line.get_data())), strict=True))


def test_each_run_has_a_colour_and_its_control_is_dashed(figures, tmp_path):
    plot_runs({"a": [train(5, 3.0), train(10, 2.0), valid(10, 1.5)], "b": [train(5, 4.0), valid(5, 2.5)]}, tmp_path)
    [figure] = figures
    figure.draw_without_rendering()
    loss, valid_loss, accuracy, rate, norm, speed = figure.axes
    assert [points(line) for line in loss.lines] == [[(5, 3.0), (10, 2.0)], [(5, 4.0)]]
    found = [(points(line), line.get_linestyle()) for line in valid_loss.lines]
    assert found == [([(10, 1.5)], "-"), ([(10, 3.0)], "--"), ([(5, 2.5)], "-"), ([(5, 5.0)], "--")]
    assert [points(line)[0][1] for line in accuracy.lines] == [0.5, 0.1, 0.5, 0.1]
    assert [points(panel.lines[0])[0] for panel in (rate, norm, speed)] == [(5, 1e-3), (5, 2.0), (5, 9.0)]
    first, second = distinct_colours(2)
    colours = [line.get_color() for line in (*loss.lines, *valid_loss.lines)]
    assert colours == [first, second, first, first, second, second]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "audio shuffled"]
    assert all(panel.get_xlabel() and panel.get_ylabel() for panel in figure.axes)


def test_a_panel_without_a_value_says_so(figures, tmp_path):
    plot_runs({"a": [train(5, 3.0) | {"grad_norm": None}], "b": [train(5, 4.0) | {"grad_norm": None}]}, tmp_path)
    told = [[text.get_text() for text in panel.texts] for panel in figures[0].axes]
    assert told == [[], ["nothing logged yet"], ["nothing logged yet"], [], ["nothing logged yet"], []]


def test_a_run_without_a_validation_has_no_empty_panels(figures, tmp_path):
    loss, rate, norm, speed = "loss per target token", "learning rate", "norm of the gradients", "samples/s"
    for lines, labels in (
        ([train(5, 3.0), train(10, 2.0)], [loss, rate, norm, speed]),
        ([train(5, 3.0) | {"grad_norm": None}], [loss, rate, speed]),
        ([valid(5, 3.0)], [loss, "token accuracy"]),
        ([], []),
    ):
        plot_curves(lines, tmp_path, "a run")
        figures[-1].draw_without_rendering()
        assert [panel.get_ylabel() for panel in figures[-1].axes] == labels
        assert all(len(line.get_xdata()) for panel in figures[-1].axes for line in panel.lines)
    assert figures[-1].get_suptitle() == "a run: nothing logged yet"
    assert [text.get_text() for text in figures[0].axes[0].get_legend().get_texts()] == ["training"]


def test_the_line_that_a_run_is_writing_is_left_out(tmp_path):
    folder = write_run(tmp_path / "run", [train(5, 3.0), train(10, 2.0)], end='{"kind": "train", "st')
    assert [line["step"] for line in read_log(folder / "log.jsonl")] == [5, 10]


def test_a_run_that_went_on_after_a_kill_has_every_step_once(tmp_path):
    folder = write_run(tmp_path / "run", [train(5, 3.0), train(10, 2.0), train(15, 1.0)], end='{"kind": "tr')
    log = RunLog(folder, step=10)  # the checkpoint that it goes on from
    log.write("train", 15, loss=0.5)
    log.close()
    assert [(line["step"], line["loss"]) for line in read_log(folder / "log.jsonl")] == [(5, 3.0), (10, 2.0), (15, 0.5)]


def test_runs_of_the_same_name_are_told_apart_and_one_given_twice_is_drawn_once(tmp_path):
    first = write_run(tmp_path / "mini/stage1", [train(5, 3.0)])
    second = write_run(tmp_path / "real/stage1", [train(5, 4.0)])
    runs = command.read_runs([first, second / "log.jsonl", second, tmp_path / "mini/../mini/stage1"])
    assert {name: lines[0]["loss"] for name, lines in runs.items()} == {"mini": 3.0, "real": 4.0}


def test_every_run_that_cannot_be_drawn_is_named(tmp_path):
    empty = write_run(tmp_path / "empty", [], end='{"kind"')
    broken = write_run(tmp_path / "broken", [], end="not json\n")
    with pytest.raises(UserError) as refused:
        command.read_runs([empty, broken, tmp_path / "nowhere", write_run(tmp_path / "good", [train(5, 3.0)])])
    first, second, third = str(refused.value).splitlines()
    assert first == f"training log {empty}/log.jsonl is empty: the run has logged nothing yet"
    assert f"{broken}/log.jsonl cannot be read" in second
    assert f"{tmp_path}/nowhere/log.jsonl does not exist" in third


def test_a_file_that_is_no_log_is_not_taken_for_one(tmp_path):
    clip = write_run(tmp_path / "run", [train(5, 3.0)]) / "clip.wav"  # beside a log that could be drawn
    clip.touch()
    with pytest.raises(UserError, match=r"clip\.wav is no run: name the folder of a run, or the log\.jsonl in it$"):
        command.read_runs([clip])


@pytest.mark.parametrize("line", ['{"a": 1}', "[]"])
def test_a_file_of_other_lines_is_no_log(tmp_path, line):
    write_run(tmp_path / "run", [train(5, 3.0)], end=line + "\n")
    with pytest.raises(UserError, match='cannot be read: there is a line without "kind" and "step"'):
        command.read_runs([tmp_path / "run"])


def test_equal_curves_of_two_runs_are_both_seen(figures, tmp_path):
    plot_runs({name: [train(5, 3.0), train(10, 2.0), valid(10, 1.5)] for name in "abc"}, tmp_path)
    loss, valid_loss, *_ = figures[0].axes
    assert [line.get_linewidth() for line in loss.lines] == pytest.approx([2.8, 2.0, 1.2])
    assert [line.get_markersize() for line in valid_loss.lines] == [7, 7, 5.5, 5.5, 4, 4]


@pytest.mark.parametrize("out", ["runs.pdf", "runs", "folder.png"])
def test_a_picture_that_is_no_png_is_refused_before_any_work(tmp_path, monkeypatch, capsys, out):
    (tmp_path / "folder.png").mkdir()
    monkeypatch.setattr(sys, "argv", ["plot_runs.py", "nowhere", "--out", str(tmp_path / out)])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2
    assert "name a file that ends in .png" in capsys.readouterr().err


def test_a_picture_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"runs\.png could not be written: "):
        plot_runs({"a": [train(5, 3.0)], "b": [train(5, 3.0)]}, tmp_path / "file/runs.png")


@pytest.mark.parametrize("n", [1, 2])
def test_the_command_writes_a_picture_of_one_run_or_several(n, tmp_path, monkeypatch, capsys):
    runs = [str(write_run(tmp_path / f"run{i}", [train(5, 3.0), valid(5, 2.0)])) for i in range(n)]
    monkeypatch.setattr(sys, "argv", ["plot_runs.py", *runs, "--out", str(tmp_path / "new/runs.png")])
    command.main()
    assert (tmp_path / "new/runs.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == f"{tmp_path}/new/runs.png\n"


def test_twenty_things_have_twenty_colours():
    assert len(set(distinct_colours(20))) == 20
    assert distinct_colours(21)[20] == distinct_colours(21)[0]
