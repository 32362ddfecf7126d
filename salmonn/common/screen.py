"""What is shown: text of files, models and visitors moves no cursor and sets no colour or title."""

import re
from collections.abc import Iterable
from typing import Any, TextIO

_CONTROLS = re.compile(r"(?!\r\n)[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # but for tab and line breaks


def printable(text: str) -> str:
    """The text with control characters, which begin what a terminal takes for orders, written as `\\x1b`."""
    return _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


class Screen:
    """A stream in the place of stdout or stderr to which only printable text passes.

    `takes_bars`: a return, with which progress bars begin, stays where it is the first of what is written at once.
    """

    def __init__(self, stream: TextIO, takes_bars: bool = False) -> None:
        self._stream, self._takes_bars = stream, takes_bars

    def write(self, text: str) -> int:
        """Write printable text."""
        start = "\r" if self._takes_bars and text.startswith("\r") else ""
        return self._stream.write(start + printable(text.removeprefix(start)))

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
