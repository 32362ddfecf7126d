"""The environment in which jobs of several parts run their commands."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from util import jobs
from util.jobs import ROOT

LIBRARIES = ("libtbbmalloc.so.2", "libtbbmalloc_proxy.so.2")


def test_onetbbs_malloc_is_loaded_where_all_of_it_is_installed(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert jobs.allocator() == {}
    (tmp_path / "lib").mkdir()
    for name in LIBRARIES:
        assert jobs.allocator() == {}  # half of it would keep every command from starting
        (tmp_path / "lib" / name).touch()
    assert jobs.allocator() == {"LD_PRELOAD": ":".join(f"{tmp_path}/lib/{name}" for name in LIBRARIES)}


@pytest.mark.parametrize("own", ["", "libmine.so"])
def test_a_command_has_it_unless_the_user_has_chosen_another(monkeypatch, own):
    seen = []
    monkeypatch.setattr(jobs, "allocator", lambda: {"LD_PRELOAD": "libtheirs.so"})
    done = SimpleNamespace(wait=lambda: 0)
    monkeypatch.setattr(subprocess, "Popen", lambda _, env, **_others: seen.append(env) or done)
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    if own:
        monkeypatch.setenv("LD_PRELOAD", own)
    jobs.run_command("a part", ["train.py"])
    jobs.run_at_once("scores", [["evaluate.py"]])  # whose answers take longer with it
    assert [environment.get("LD_PRELOAD", "") for environment in seen] == [own or "libtheirs.so", own]


@pytest.mark.skipif(not Path(sys.prefix, "lib", LIBRARIES[1]).exists(), reason="tbb is not installed")
def test_a_process_has_it_in_the_place_of_its_own(capfd):
    script = "print(sum('tbbmalloc_proxy' in line for line in open('/proc/self/maps')) > 0)"
    assert jobs.run_command("a part", ["-c", script])[1] == 0
    assert capfd.readouterr().out.endswith("True\n")


def test_commands_at_once_run_beside_each_other_and_their_outputs_do_not_mix(capfd, tmp_path):
    meet = (
        "import pathlib, sys, time\n"
        "here, there = map(pathlib.Path, sys.argv[1:])\n"
        "here.touch()\n"
        "while not there.exists(): time.sleep(0.01)\n"
        "print(here.name, 'met', there.name)"
    )
    one, other = f"{tmp_path}/one", f"{tmp_path}/other"
    assert jobs.run_at_once("scores", [["-c", meet, one, other], ["-c", meet, other, one]])[1] == 0
    assert capfd.readouterr().out.endswith("one met other\nother met one\n")


@pytest.mark.parametrize("codes", [(0, 3), (3, 0)])
def test_of_commands_at_once_the_code_of_the_one_that_failed_is_told(codes, monkeypatch):
    monkeypatch.setattr(jobs, "time", SimpleNamespace(monotonic=iter([10.0, 12.34]).__next__))
    assert jobs.run_at_once("scores", [["-c", f"raise SystemExit({code})"] for code in codes]) == (2.3, 3)


_ENDS_WELL = """
import signal, sys, time
def end(number, frame):
    print("asked by", signal.Signals(number).name, flush=True)
    time.sleep(0.5)
    print("ended well", flush=True)
    sys.exit(1)
signal.signal(signal.SIGINT, end)
signal.signal(signal.SIGTERM, end)
print("at work", flush=True)
while True: time.sleep(0.01)
"""


@pytest.mark.parametrize("way", ["SIGINT", "SIGTERM", "ctrl-c"])
def test_a_job_that_is_stopped_stops_its_command_once_and_waits_for_it(way):
    job = f"from util import jobs\njobs.run_command('a part', ['-c', {_ENDS_WELL!r}])"
    process = subprocess.Popen(
        [sys.executable, "-c", job], cwd=ROOT, stdout=subprocess.PIPE, text=True, process_group=0
    )
    while (line := process.stdout.readline()) != "at work\n":
        assert line  # it has not ended before
    if way == "ctrl-c":  # a terminal asks the whole group
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.Signals[way])
    name = "SIGINT" if way == "ctrl-c" else way
    assert process.stdout.read() == f"asked by {name}\nended well\n"
    assert process.wait() != 0
