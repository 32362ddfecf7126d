"""What a run writes down as it trains: means of the steps since the last line, and lines that outlive it."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from salmonn.training import run_log
from salmonn.training.run_log import Meter, RunLog, shown_duration, shown_values
from salmonn.training.step import StepResult
from tests.fixtures.commands import json_lines

STEPS = [
    StepResult(loss=30.0, tokens=10, samples=2, cut=1, grad_norm=3.0),
    StepResult(loss=10.0, tokens=30, samples=2, cut=0, grad_norm=5.0),
]
OVERFLOWS = [StepResult(loss=20.0, tokens=20, samples=2, cut=2, grad_norm=norm) for norm in (math.inf, math.nan)]


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """A clock of the test's own."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(run_log, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def read(*steps: StepResult) -> dict:
    meter = Meter(torch.device("cpu"))
    for step in steps:
        meter.add(step)
    return meter.read()


# ---- means


def test_the_loss_is_a_mean_over_tokens_and_not_over_steps():
    assert read(*STEPS)["loss"] == 1.0  # 40 of 40 tokens; the mean of the steps' means is 1.67


def test_steps_that_overflowed_are_counted_and_stay_out_of_the_mean_norm():
    values = read(STEPS[0], *OVERFLOWS, STEPS[1])
    assert values["grad_norm"] == 4.0
    assert values["overflow_steps"] == 2
    assert values["loss"] == 1.0  # their loss is one like the others
    assert values["cut_targets"] == 5
    assert read(*OVERFLOWS)["grad_norm"] is None


def test_what_is_no_training_is_not_in_the_speed(clock):
    meter = Meter(torch.device("cpu"))
    meter.add(STEPS[0])
    clock.now += 1.0
    with meter.paused():
        clock.now += 100.0
    clock.now += 1.0
    assert meter.read()["samples_per_second"] == 1.0


def test_the_speed_is_that_since_the_last_reading(clock):
    meter = Meter(torch.device("cpu"))
    for seconds, speed in ((2.0, 2.0), (8.0, 0.5)):
        for step in STEPS:
            meter.add(step)
        assert meter.n_steps == 2
        clock.now += seconds
        assert meter.read()["samples_per_second"] == speed
        assert meter.n_steps == 0


def test_a_reading_takes_nothing_along_into_the_next():
    meter = Meter(torch.device("cpu"))
    meter.add(OVERFLOWS[0])
    meter.read()
    meter.add(STEPS[1])
    values = meter.read()
    assert (values["overflow_steps"], values["cut_targets"]) == (0, 0)
    assert (values["loss"], values["grad_norm"]) == (pytest.approx(1 / 3), 5.0)


def test_means_are_those_of_all_ranks(monkeypatch):
    monkeypatch.setattr(run_log.distributed, "sum_numbers", lambda *values: [2.0 * value for value in values])
    values = read(*STEPS)
    assert (values["loss"], values["cut_targets"]) == (1.0, 2)


def test_a_reading_is_shown_in_a_line_without_a_norm_too():
    values = {"loss": 1.25, "lr": 3e-5, "grad_norm": None, "samples_per_second": 12.34, "memory_gb": 0.5}
    assert shown_values(values) == "loss 1.250, lr 3.0e-05, grad norm nan, 12.3 samples/s, memory 0.5 GB"


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0 s"), (59, "59 s"), (60, "1.0 min"), (3599, "60.0 min"), (5400, "1.5 h")]
)
def test_durations_are_in_the_unit_that_fits(seconds: float, shown: str):
    assert shown_duration(seconds) == shown


# ---- lines


def log(folder: Path, *steps: int, go_on: int = 0) -> list[int]:
    """Write a line about each step; returns the steps that the whole log is about then."""
    lines = RunLog(folder, go_on)
    for step in steps:
        lines.write("train", step, loss=1.0 / step)
    lines.close()
    return [line["step"] for line in json_lines(folder / "log.jsonl")]


def test_a_line_holds_all_values_under_its_kind_and_step(tmp_path: Path):
    lines = RunLog(tmp_path)
    lines.write("valid", 3, loss=1.5, grad_norm=None, tasks={"asr": {"loss": 2.0}})
    written = json_lines(tmp_path / "log.jsonl")  # at once, not when the run ends
    lines.close()
    assert written == [{"kind": "valid", "step": 3, "loss": 1.5, "grad_norm": None, "tasks": {"asr": {"loss": 2.0}}}]


def test_a_run_that_goes_on_drops_the_lines_of_later_steps_and_writes_them_anew(tmp_path: Path):
    assert log(tmp_path, 1, 2, 3, 4) == [1, 2, 3, 4]
    assert log(tmp_path, 3, 4, 5, go_on=2) == [1, 2, 3, 4, 5]
    assert log(tmp_path, 1) == [1]  # a run from the start keeps none


@pytest.mark.parametrize(("is_validated", "kept"), [(True, ["train", "valid"]), (False, ["train"])])
def test_a_validation_that_is_made_again_does_not_stand_there_twice(
    tmp_path: Path, is_validated: bool, kept: list[str]
):
    """Its line was written, and the checkpoint that would know of it was not."""
    lines = RunLog(tmp_path)
    for kind, step in (("train", 1), ("valid", 1), ("train", 2), ("valid", 2), ("train", 3)):
        lines.write(kind, step)
    lines.close()
    RunLog(tmp_path, 2, is_validated).close()
    found = json_lines(tmp_path / "log.jsonl")
    assert [line["kind"] for line in found if line["step"] == 2] == kept
    assert [line["kind"] for line in found if line["step"] != 2] == ["train", "valid"]


def test_a_torn_last_line_goes_even_where_its_step_would_stay(tmp_path: Path):
    log(tmp_path, 1, 2)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 2}')  # whole, but for its end
    assert log(tmp_path, 6, go_on=5) == [1, 2, 6]


def test_only_the_first_rank_writes(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(run_log.distributed, "is_main", lambda: False)
    lines = RunLog(tmp_path)
    lines.write("train", 1, loss=1.0)
    lines.close()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_once_for_each_file(tmp_path: Path, caplog):
    lines = RunLog(tmp_path)
    kept, lines._lines = lines._lines, Path("/dev/full").open("a", encoding="utf-8")  # noqa: SIM115
    for step in range(1, 5):
        lines.write("train", step, loss=1.0)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert told[0].startswith(f"a line of {tmp_path / 'log.jsonl'} could not be written: ")
    assert told[0].endswith("; training goes on")
    lines.close()
    kept.close()
