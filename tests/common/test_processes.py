"""Processes of their own: which calls are lost when they die, how they end, what they hear, where none can begin."""

import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from salmonn.common.errors import UserError
from salmonn.common.files import OpenFile
from salmonn.common.processes import DiedError, Parcel, Worker, in_processes
from tests.fixtures.calls import appended, die_of_three, doubled, read
from tests.fixtures.kill_runs import workers_of
from tests.fixtures.paths import ROOT
from tests.fixtures.waiting import HANG, wait_until


def test_nothing_in_the_code_forks():
    """A fork copies the locks that other threads hold, and whoever needs one then stands still for ever."""
    files = [path for folder in ("salmonn", "util", "experiments", "dev") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 100
    for path in files:
        code = path.read_text(encoding="utf-8")
        assert not re.search(r"\bDataLoader\(|[\"']fork|os\.fork|multiprocessing\.(Pool|Process)\b", code), path
        for pool in re.findall(r"ProcessPoolExecutor\(.*", code):
            assert 'get_context("spawn")' in pool, path


def test_only_the_call_of_which_a_process_died_is_lost():
    results = dict(in_processes(die_of_three, [(i,) for i in range(20)], jobs=3))
    assert results == {(i,): None if i == 3 else i for i in range(20)}
    assert workers_of(os.getpid()) == []


def test_what_the_function_holds_stays_from_call_to_call():
    results = [result for _, result in in_processes(partial(appended, []), [(1,), (2,), (3,)], jobs=1)]
    assert results[-1] == [1, 2, 3]


def test_what_a_call_raises_is_raised_and_ends_all_processes():
    with pytest.raises(ValueError, match="invalid literal") as error:
        list(in_processes(int, [("1",), ("x",), ("2",)], jobs=2))
    assert "in a process of its own" in error.value.__notes__[0]
    assert workers_of(os.getpid()) == []


def test_left_early_no_further_call_is_made():
    calls = in_processes(pow, ((i, 2) for i in iter(int, 1)), jobs=2)  # without end
    assert next(calls) == ((0, 2), 0)
    calls.close()
    assert workers_of(os.getpid()) == []


def test_arrays_of_any_size_come_and_go():
    arrays = [np.arange(n, dtype=np.float32) for n in (0, 1, 3_000_000)]
    for sent, (_, got) in zip(arrays, in_processes(doubled, [(array,) for array in arrays], jobs=1), strict=True):
        np.testing.assert_array_equal(got, 2 * sent)


def test_an_open_file_stays_the_same_one_when_another_takes_its_name(tmp_path: Path):
    path = tmp_path / "a"
    path.write_text("first")
    file = OpenFile.at(path)
    path.unlink()
    path.write_text("other")
    assert [result for _, result in in_processes(partial(read, file), [(5,)], jobs=1)] == [b"first"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_that_reach_every_process_are_left_to_the_first_one_also_at_the_start(number: signal.Signals):
    worker = Worker(Parcel(pow))
    for _ in range(50):  # while Python starts, and afterwards
        os.kill(worker.pid, number)
        time.sleep(0.01)
    worker.send(3, 2)
    assert worker.receive() == 9
    worker.finish()


@pytest.mark.parametrize(
    ("function", "argument", "says"),
    [(os._exit, 7, "ended with exit code 7"), (signal.raise_signal, 9, "was killed by signal SIGKILL")],
)
def test_how_a_process_died_is_said(function, argument: int, says: str):
    worker = Worker(Parcel(function))
    worker.send(argument)
    with pytest.raises(DiedError, match=says):
        worker.receive()


@pytest.mark.parametrize("python", ["/nowhere/python", "/bin/false"])
def test_where_no_process_can_begin_that_is_an_error_and_no_call_counts_as_fatal(monkeypatch, python: str):
    monkeypatch.setattr(sys, "executable", python)
    with pytest.raises(UserError, match=r"no process can be started|could not begin its work"):
        list(in_processes(pow, [(1, 2)], jobs=2))


def test_a_process_ends_with_the_one_that_asks_in_the_middle_of_a_call():
    asking = """
import os, signal, time
from salmonn.common.processes import Parcel, Worker
worker = Worker(Parcel(time.sleep))
worker.send(0)
worker.receive()
worker.send(3600)
print(worker.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    result = subprocess.run([sys.executable, "-c", asking], cwd=ROOT, capture_output=True, text=True, timeout=HANG)
    wait_until(lambda: not Path(f"/proc/{int(result.stdout)}").exists())
