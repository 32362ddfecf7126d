"""What is shown: text of files, models and visitors moves no cursor and sets no colour or title."""

import re
import time
from collections.abc import Iterable
from typing import Any, TextIO

_CONTROLS = re.compile(r"(?!\r\n)[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # but for tab and line breaks


LINE_EVERY = 30.0  # s, between two lines of a progress bar in a file


def printable(text: str) -> str:
    """The text with control characters, which begin what a terminal takes for orders, written as `\\x1b`."""
    return _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def counted(n: int, name: str, plural: str = "") -> str:
    """A number and what there is so many of: `1 process`, `2 processes`. `plural`: where it is not NAMEs."""
    return f"{n} {name if n == 1 else plural or f'{name}s'}"


class Screen:
    """A stream in the place of stdout or stderr to which only printable text passes.

    Where it is no terminal but a file, of a progress bar it takes a line every LINE_EVERY s and the last state: a bar
    begins each state with a return, which overwrites nothing there. `takes_bars`: whether bars are written to it;
    elsewhere a return is a sign as any other.
    """

    def __init__(self, stream: TextIO, takes_bars: bool = True) -> None:
        self._stream, self._takes_bars = stream, takes_bars
        self._overwrites = stream.isatty()
        self._is_line_open = False  # something is written in it that was no bar's
        self._state, self._last = "", 0.0  # of the bar that is under way; when a line of it was written, or it began

    def write(self, text: str) -> int:
        """Write printable text; returns its length, as a stream does."""
        is_bar = self._takes_bars and text.startswith("\r")
        if self._overwrites:
            start = "\r" if is_bar else ""
            return self._stream.write(start + printable(text.removeprefix(start)))
        if is_bar:
            self._hold(text.strip())
        elif text == "\n" and self._state and not self._is_line_open:  # the bar ends
            self._stream.write(f"{printable(self._state)}\n")
            self._state = ""
        elif text:
            self._stream.write(printable(text))
            self._is_line_open = not text.endswith("\n")
        return len(text)

    def _hold(self, state: str) -> None:
        """Keep a bar's state until a line is due; "" where the bar is wiped away."""
        now = time.monotonic()
        if not self._state:
            self._last = now
        self._state = state
        if state and not self._is_line_open and now - self._last >= LINE_EVERY:
            self._stream.write(f"{printable(state)}\n")
            self._last = now

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
