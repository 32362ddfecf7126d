"""How a command ends: its exit code, and what it says on which stream."""

import json

import pytest

from salmonn.common import cli
from salmonn.common.cli import run_cli
from salmonn.common.errors import UserError, examples, reason


def raising(error: BaseException):
    def main() -> None:
        raise error

    return main


@pytest.fixture(autouse=True)
def _alone(monkeypatch) -> None:
    """Not one of several ranks."""
    for name in ("RANK", "SLURM_PROCID", "TORCHELASTIC_ERROR_FILE"):
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


def test_of_a_long_list_a_few_are_named_and_the_rest_counted():
    assert examples(["a", "b"]) == "a, b"
    assert examples([*"abcdefg"]) == "a, b, c, d, e and 2 more"


def test_an_error_of_a_library_is_told_with_its_kind_and_in_few_lines():
    assert reason(UserError("one\ntwo\nthree")) == "one\ntwo\nthree"
    assert reason(OSError("one\n\ntwo\nthree")) == "OSError: one\ntwo"
