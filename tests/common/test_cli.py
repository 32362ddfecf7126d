"""How a command ends: its exit code, and what it says on which stream."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from argparse import ArgumentTypeError

import pytest

from salmonn.common import cli
from salmonn.common.cli import above_zero, at_least_one, run_cli, seed_number
from salmonn.common.errors import UserError, examples, reason
from tests.fixtures.paths import ROOT
from tests.fixtures.waiting import HANG


def raising(error: BaseException):
    def main() -> None:
        raise error

    return main


@pytest.fixture(autouse=True)
def _alone(monkeypatch) -> None:
    """Not one of several ranks."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "SLURM_PROCID", "TORCHELASTIC_ERROR_FILE"):
        monkeypatch.delenv(name, raising=False)


def test_a_command_that_comes_to_its_end_does_not_exit_itself():
    assert run_cli(lambda: None) is None


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (UserError("a.yaml: no such key"), 2, "error: a.yaml: no such key\n"),
        (KeyboardInterrupt(), 1, "interrupted\n"),
    ],
)
def test_bad_input_and_ctrl_c_are_a_line_and_a_code(error, code, says, capsys):
    with pytest.raises(SystemExit) as ended:
        run_cli(raising(error))
    assert ended.value.code == code
    assert capsys.readouterr() == ("", says)


@pytest.mark.parametrize("rank", [None, "0"])
def test_a_full_disk_is_one_message_and_no_traceback(monkeypatch, capsys, rank):
    if rank:
        monkeypatch.setenv("RANK", rank)
    for full in (OSError(errno.ENOSPC, "No space left on device", "out/report.json"), OSError(errno.EDQUOT, "Quota")):
        with pytest.raises(SystemExit) as ended:
            run_cli(raising(full))
        assert ended.value.code == 2
        assert (
            capsys.readouterr().err
            == f"error: the disk is full ({full}): make room; what was finished until then is kept\n"
        )
    with pytest.raises(SystemExit if rank else PermissionError):
        run_cli(raising(PermissionError(errno.EACCES, "denied", "x")))


@pytest.mark.parametrize("printed", ["'x\\n' * 10**6", "'x'"])
def test_a_reader_that_ends_before_us_is_a_line_and_no_traceback(printed):
    """As in `python train.py --keys | head`; what is short fails only when it is flushed."""
    code = f"import sys; from salmonn.common.cli import run_cli; sys.stdin.read(); run_cli(lambda: print({printed}))"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as one:
        one.stdout.close()
        one.stdin.close()
        assert one.stderr.read() == "ended: nothing reads the output any more\n"
    assert one.returncode == 1


def test_an_error_of_ours_is_raised_as_it_is():
    with pytest.raises(ZeroDivisionError):
        run_cli(raising(ZeroDivisionError()))


def test_a_rank_shows_its_traceback_and_the_others_wait_until_the_first_has_spoken(monkeypatch, capsys):
    waits: list[float] = []
    monkeypatch.setattr(cli.time, "sleep", waits.append)
    for rank, waited in (("0", []), ("1", [cli._OTHERS_WAIT])):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as ended:
            run_cli(raising(ValueError("melted")))
        assert ended.value.code == 1
        assert "ValueError: melted" in capsys.readouterr().err
        assert waits == waited


def test_a_rank_hands_its_message_to_torchrun_unless_that_starts_it_again(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    with pytest.raises(SystemExit):
        run_cli(raising(UserError("no such key")))
    assert json.loads((tmp_path / "error.json").read_text())["message"] == "error: no such key"
    assert capsys.readouterr().err == ""
    (tmp_path / "error.json").unlink()
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    with pytest.raises(SystemExit):
        run_cli(raising(UserError("no such key")))
    assert not (tmp_path / "error.json").exists()
    assert capsys.readouterr().err == "error: no such key\n"


@pytest.mark.parametrize("text", ["-1", str(2**32), "9" * 5000, "1.5", "", "\u0661", "1_0", "x"])
def test_what_is_no_seed_is_told_by_the_command_line(text):
    assert seed_number(str(2**32 - 1)) == 2**32 - 1
    with pytest.raises(ArgumentTypeError, match="a seed is a whole number from 0 to 4294967295"):
        seed_number(text)


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "", "\u0661", "1_0", "x", "1" * 50 + "x"])
def test_what_is_no_number_of_things_is_told_by_the_command_line(text):
    assert at_least_one("007") == 7
    with pytest.raises(ArgumentTypeError, match=rf"^{text[:40]}: a whole number, 1 or more"):
        at_least_one(text)


@pytest.mark.parametrize("text", ["0", "-0.5", "nan", "inf", "", "x"])
def test_what_is_no_amount_is_told_by_the_command_line(text):
    assert above_zero("5e-1") == 0.5
    with pytest.raises(ArgumentTypeError, match=rf"^{text}: a number, more than 0"):
        above_zero(text)


def test_of_a_long_list_a_few_are_named_and_the_rest_counted():
    assert examples(["a", "b"]) == "a, b"
    assert examples([*"abcdefg"]) == "a, b, c, d, e and 2 more"


def test_an_error_of_a_library_is_told_with_its_kind_and_in_few_lines():
    assert reason(UserError("one\ntwo\nthree")) == "one\ntwo\nthree"
    assert reason(OSError("one\n\ntwo\nthree")) == "OSError: one\ntwo"


@pytest.mark.parametrize("value", ["one", "", "-1", "1.5", " 1", "0x1", "9" * 30])
@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT"])
def test_what_no_launcher_can_have_set_is_one_message_for_any_command(monkeypatch, capsys, tmp_path, name, value):
    monkeypatch.setenv(name, value)
    handover = tmp_path / "error.json"
    for is_handed_over in (False, True):
        if is_handed_over:
            monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(handover))
        with pytest.raises(SystemExit) as ended:
            run_cli(raising(AssertionError("the command began")))
        assert ended.value.code == 2
        said = json.loads(handover.read_text())["message"] if is_handed_over else capsys.readouterr().err
        assert said.startswith("error: the environment is not that of torchrun or srun: ")
        assert f"srun: {name} = {value!r} is no number" in said
        assert f"unset {name}" in said


@pytest.mark.parametrize("environ", [{"RANK": "0"}, {"LOCAL_RANK": "0"}, {"MASTER_PORT": "tcp://10.0.0.1:80"}])
def test_what_is_harmless_of_a_launcher_keeps_no_command_from_its_work(monkeypatch, environ):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert run_cli(lambda: None) is None


@pytest.mark.parametrize("command", ["-m salmonn.chat --clip a.wav", "-m salmonn.web", "util/small.py"])
def test_commands_of_one_process_say_so_too(command):
    result = subprocess.run(
        [sys.executable, *command.split()],
        cwd=ROOT, env={**os.environ, "LOCAL_RANK": "abc"}, capture_output=True, text=True, timeout=HANG,
    )  # fmt: skip
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert "LOCAL_RANK = 'abc' is no number" in result.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "euc-kr", "cp1252"])
def test_what_the_terminal_has_no_letters_for_is_shown_all_the_same(encoding):
    code = "from salmonn.common.cli import run_cli; run_cli(lambda: print('\\ube68\\uac1b \\U0001f600 \\udcff'))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONIOENCODING": encoding}, capture_output=True
    )
    assert result.returncode == 0, result.stderr
    assert b"\\U0001f600" in result.stdout


NAMELESS = """
import os, pwd, sys
def nobody(number):
    raise KeyError("uid not found")
pwd.getpwuid = nobody
for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "XDG_CACHE_HOME"):
    os.environ.pop(name, None)
import salmonn
from salmonn.common.files import home_folder
assert home_folder() is None
"""


@pytest.mark.parametrize(
    "use",
    [
        "import torch._inductor.runtime.cache_dir_utils as cache; cache.default_cache_dir()",
        "from salmonn.data.annotations import Annotations; assert len(Annotations(sys.argv[1])) == 1",
        "from salmonn.doctor.__main__ import shown; from salmonn.doctor.packages import check_system; "
        "assert any('HOME is not set' in shown(finding) for finding in check_system())",
        "from salmonn.config.loading import load_config; from salmonn.common.errors import UserError\n"
        "try:\n    load_config('configs/mini/stage1.yaml', ['run.output_dir=~/x'])\n    sys.exit('taken')\n"
        "except UserError as error:\n    assert 'home folder is not known' in str(error)",
    ],
    ids=["PyTorch", "annotation files", "doctor", "paths"],
)
def test_a_machine_that_knows_neither_the_users_name_nor_home_is_enough(tmp_path, use):
    (tmp_path / "ann.json").write_text('{"annotation": [{"path": "a.wav", "task": "asr", "text": "x"}]}')
    command = [sys.executable, "-c", NAMELESS + use, str(tmp_path / "ann.json")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


RANK = """
import pathlib, sys, time
from salmonn.common.cli import run_cli
from salmonn.training.stop_signal import StopRequest

def main():
    if sys.argv[1] == "trains":
        with StopRequest() as request:
            print("ready", flush=True)
            while not request.name:
                time.sleep(0.05)
            pathlib.Path(sys.argv[2]).write_text(request.name)
    else:
        print("ready", flush=True)
        time.sleep(3600)

run_cli(main)
"""


@pytest.mark.parametrize("does", ["trains", "something else"])
def test_a_rank_ends_with_the_torchrun_that_was_killed_and_training_saves_first(tmp_path, does):
    launcher = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {RANK!r}, *sys.argv[1:]])"
    environment = {**os.environ, "TORCHELASTIC_RUN_ID": "none", "LOCAL_RANK": "0"}
    process = subprocess.Popen(
        [sys.executable, "-c", launcher, does, str(tmp_path / "saved")],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    process.kill()
    _, said = process.communicate(timeout=HANG)  # the rank has both pipes until it ends
    assert said.startswith("torchrun has ended")
    assert (tmp_path / "saved").exists() == (does == "trains")


@pytest.mark.parametrize("is_there", [True, False])
def test_a_rank_whose_torchrun_was_killed_before_it_could_look_for_it_ends_too(is_there):
    with socket.create_server(("127.0.0.1", 0)) as agent:
        port = agent.getsockname()[1]
        if not is_there:
            agent.close()
        environment = {**os.environ, "TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_USE_AGENT_STORE": "True"}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        process = subprocess.Popen(
            [sys.executable, "-c", RANK, "something else"], cwd=ROOT, env=environment, stdout=subprocess.PIPE
        )
        try:
            if is_there:
                agent.settimeout(HANG)
                agent.accept()[0].close()
                with pytest.raises(subprocess.TimeoutExpired):
                    process.wait(3)
            else:
                assert process.wait(HANG) == -signal.SIGTERM
        finally:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("value", [{}, {"MASTER_ADDR": "127.0.0.1"}, {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "x"}])
def test_an_environment_that_names_no_port_ends_nothing(monkeypatch, value):
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, text in {"TORCHELASTIC_USE_AGENT_STORE": "True", **value}.items():
        monkeypatch.setenv(name, text)
    cli._is_unanswered.cache_clear()
    assert not cli._is_unanswered()
    cli._is_unanswered.cache_clear()
