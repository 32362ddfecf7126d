"""What files, models and visitors wrote cannot give a terminal orders, wherever it is shown."""

import contextlib
import io
import json
import logging
import os
import re
import subprocess
import sys

import pytest
from tqdm import tqdm

from salmonn import chat
from salmonn.common import screen
from salmonn.common.cli import run_cli
from salmonn.common.errors import UserError
from salmonn.common.screen import Screen, counted, printable
from salmonn.evaluation.report.tables import table
from tests.fixtures.paths import ROOT

RED = "\x1b[31mred\x1b[0m"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (RED, r"\x1b[31mred\x1b[0m"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x9b31m\x90q\x7f\x00\x08", r"\x9b31m\x90q\x7f\x00\x08"),
        ("right\rwrong", r"right\x0dwrong"),
        ("\rwrong", r"\x0dwrong"),
        ("a\r\rb\r\n", "a\\x0d\\x0db\r\n"),
        ("one\r\ntwo\tthree\n", "one\r\ntwo\tthree\n"),
        ("배는 é 😀 \u200f\u00a0", "배는 é 😀 \u200f\u00a0"),
    ],
)
def test_control_characters_are_shown_and_letters_stay(text, shown):
    assert printable(text) == shown


def orders(text: str) -> bool:
    return any(sign in text for sign in ("\x1b", "\x9b", "\x07", "\x00"))


@pytest.mark.parametrize("ends", [SystemExit, ZeroDivisionError])
def test_whatever_way_a_command_writes_no_order_reaches_the_screen(ends, capsys):
    def main() -> None:
        print(RED)
        sys.stdout.write("\x9b1m")
        sys.stdout.writelines(["\x07", "a\n"])
        print("\x00", RED, file=sys.stderr)
        logging.basicConfig(force=True)
        logging.getLogger("any").warning("clip %s", RED)
        with tqdm(total=2, desc=RED) as bar:
            bar.update()
        raise UserError(RED) if ends is SystemExit else ends(RED)

    with pytest.raises(ends):
        run_cli(main)
    written = capsys.readouterr()
    assert written.out == "\\x1b[31mred\\x1b[0m\n\\x9b1m\\x07a\n"
    assert not orders(written.err)
    assert written.err.count(r"\x1b[31mred") >= 3
    assert "\r" not in written.err  # which is no terminal


def test_a_return_with_which_an_answer_goes_back_over_its_line_is_shown_a_bars_own_stays(monkeypatch):
    out, err = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)

    def main() -> None:
        for piece in ("no", "\r", "\ryes"):  # as chat shows an answer while it comes
            print(piece, end="", flush=True)
        sys.stderr.write("\r 50%|###  | bar\rmore")

    run_cli(main)
    assert (out.getvalue(), err.getvalue()) == (r"no\x0d\x0dyes", "\r 50%|###  | bar\\x0dmore")


def say(text: str) -> None:
    print(text, flush=True)
    logging.getLogger("worker").warning("clip %s", text)


def test_nor_does_one_that_a_process_of_the_loader_writes():
    code = "from salmonn.common.processes import Parcel, Worker; from tests.common.test_screen import RED, say\n"
    code += "worker = Worker(Parcel(say)); worker.send(RED); worker.receive(); worker.finish()"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "\\x1b[31mred\\x1b[0m\n"
    assert result.stderr == "clip \\x1b[31mred\\x1b[0m\n"


def test_nor_does_one_of_an_error_that_nobody_expected_or_of_an_option():
    code = f"from salmonn.common.cli import run_cli, argument_parser\ndef main():\n raise RuntimeError({RED!r})\n"
    options = "run_cli(lambda: argument_parser('x').parse_args())"
    for command in (["-c", f"{code}run_cli(main)"], ["-c", f"{code}{options}", RED, "--cfg-path", "x"]):
        result = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
        assert result.returncode != 0
        assert r"\x1b[31mred" in result.stderr
        assert not orders(result.stderr)


def test_every_command_shows_what_it_shows_through_it():
    folders = ("salmonn", "util", "experiments", "dev")
    files = [*ROOT.glob("*.py"), *(path for folder in folders for path in (ROOT / folder).rglob("*.py"))]
    commands = [path for path in files if '\nif __name__ == "__main__":' in path.read_text(encoding="utf-8")]
    assert len(commands) > 20
    through = re.compile(r"\n    run_cli\(main\)\n|\nfrom salmonn\.commands import ")
    assert [path for path in commands if not through.search(path.read_text(encoding="utf-8"))] == []


def test_a_message_for_torchrun_holds_none(monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))

    def main() -> None:
        raise UserError(RED)

    with pytest.raises(SystemExit):
        run_cli(main)
    assert not orders(json.loads((tmp_path / "error.json").read_text())["message"])


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def bar_in(stream: io.StringIO, monkeypatch, seconds: list[float], said: str = "") -> list[str]:
    """The lines that a bar leaves whose states are written at these times, the last of them its end."""
    now = iter(seconds)
    monkeypatch.setattr(screen.time, "monotonic", lambda: next(now))
    shown = Screen(stream, takes_bars=True)
    for state in range(len(seconds)):
        shown.write(f"\rclips: {state} of {len(seconds) - 1}   ")
        if said and state == 1:
            print(said, file=shown)
    shown.write("\n")
    return stream.getvalue().splitlines()


@pytest.mark.parametrize(
    ("seconds", "states"),
    [
        ([0, 1, 2], [2]),
        ([0, 29, 30, 31, 59, 61, 62], [2, 5, 6]),
        ([100, 129, 131, 160, 161, 170], [2, 4, 5]),
        ([0, 1000, 1001], [1, 2]),
        ([5], [0]),
    ],
)
def test_in_a_file_a_bar_is_a_line_now_and_then_and_its_last_state(monkeypatch, seconds, states):
    lines = bar_in(io.StringIO(), monkeypatch, seconds)
    assert lines == [f"clips: {state} of {len(seconds) - 1}" for state in states]


def test_on_a_terminal_a_bar_overwrites_itself(monkeypatch):
    stream = Terminal()
    bar_in(stream, monkeypatch, [0, 100])
    assert stream.getvalue() == "\rclips: 0 of 1   \rclips: 1 of 1   \n"


@pytest.mark.parametrize("said", ["a message", "two\nlines", "50 %"])
def test_messages_beside_a_bar_have_lines_of_their_own(monkeypatch, said):
    lines = bar_in(io.StringIO(), monkeypatch, [0, 1, 40, 41], said)
    assert lines == [*said.splitlines(), "clips: 2 of 3", "clips: 3 of 3"]


def test_bars_of_the_library_in_a_file():
    stream = io.StringIO()
    with tqdm(total=3, desc="first", file=Screen(stream, takes_bars=True), mininterval=0) as bar:
        for _ in range(3):
            bar.update()
            bar.set_postfix_str("loss 1.0")
    for _ in tqdm(range(2), desc="gone", file=Screen(stream, takes_bars=True), leave=False):
        pass
    [line] = stream.getvalue().splitlines()
    assert line.startswith("first: 100%")
    assert "loss 1.0" in line


@pytest.mark.parametrize(
    ("n", "name", "plural", "shown"),
    [(1, "process", "processes", "1 process"), (0, "step", "", "0 steps"), (2, "process", "processes", "2 processes")],
)
def test_what_is_counted_has_its_plural(n, name, plural, shown):
    assert counted(n, name, plural) == shown


def test_tables_hold_none():
    assert not orders(table(["task", RED], [["\x9b", "\x07a"]]))


@pytest.mark.parametrize("text", [RED, "\x9b31m\x7f", "배 é"])
def test_json_for_programs_stays_json(text):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with contextlib.redirect_stdout(Screen(stream)):
        print(chat.json_line({"answer": text}), flush=True)
    line = stream.buffer.getvalue().decode()
    assert json.loads(line) == {"answer": text}
    assert not orders(line)
    assert ("배" in line) == ("배" in text)


def test_a_screen_is_the_stream_in_all_else():
    read, write = os.pipe()
    with os.fdopen(write, "w") as stream:
        screen = Screen(stream)
        assert (screen.fileno(), screen.isatty(), screen.encoding) == (write, False, stream.encoding)
    os.close(read)
