"""What a check of the installation finds; the check itself may fail, and then that is what it finds."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from salmonn.common.errors import reason

OK, NOTE, MISSING, WRONG = "ok", "note", "missing", "wrong"


class Finding(NamedTuple):
    """One line of the block."""

    state: str  # OK | NOTE: works without | MISSING: a file that a config names | WRONG
    name: str
    says: str
    costs: str = ""  # what is lost by it


def attempt(name: str, check: Callable[[], Iterable[Finding]], costs: str, state: str = WRONG) -> Iterator[Finding]:
    """The findings of a check; how it fails is one of them."""
    try:
        yield from check()
    except Exception as error:  # whatever a broken package raises: the other checks are still wanted
        yield Finding(state, name, reason(error), costs)
