"""SIGTERM (Slurm, torchrun) and Ctrl-C as a request: the run saves at the next step and ends."""

import signal
import time
from types import FrameType, TracebackType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """While entered, a signal sets `name` instead of ending the process; a second Ctrl-C does end it."""

    def __init__(self) -> None:
        self.name = ""
        self._since = 0.0

    def __enter__(self) -> "StopRequest":
        self._previous = {number: signal.signal(number, self._request) for number in _SIGNALS}
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, _: FrameType | None) -> None:
        # one Ctrl-C may arrive twice, from the terminal and from torchrun
        if number == signal.SIGINT and self.name and time.monotonic() - self._since > 1.0:
            raise KeyboardInterrupt
        if not self.name:
            self.name, self._since = signal.Signals(number).name, time.monotonic()
