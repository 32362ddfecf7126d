"""What is shown: text of files, models and visitors moves no cursor and sets no colour or title."""

import re
from collections.abc import Iterable
from typing import Any, TextIO

# Control characters but for tab and line breaks; a progress bar begins with a return, which overwrites its own line.
_CONTROLS = re.compile(r"(?!\A\r|\r\n)[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """The text with control characters, which begin what a terminal takes for orders, written as `\\x1b`."""
    return _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


class Screen:
    """A stream in the place of stdout or stderr to which only printable text passes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write printable text."""
        return self._stream.write(printable(text))

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
