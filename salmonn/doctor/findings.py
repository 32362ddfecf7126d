"""What a check of the installation finds; the check itself may fail, and then that is what it finds."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from salmonn.common.errors import UserError

OK, NOTE, MISSING, WRONG = "ok", "note", "missing", "wrong"

# How packages fail when they are loaded: absent, a library of the system that is absent or of another version (OSError,
# RuntimeError), or built for another version of a package that they use (the others).
BROKEN = (ImportError, OSError, RuntimeError, AttributeError, TypeError, ValueError)


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


def reason(error: Exception) -> str:
    """What an error says in a line or a few."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return kind + "\n".join(lines[: 10 if isinstance(error, UserError) else 2])
