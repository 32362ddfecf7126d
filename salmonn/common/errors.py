"""Errors that are told to people: bad input, and packages that do not load."""

from collections.abc import Sequence

_NAMED = 5  # of a list in a message

# How packages fail when they are loaded: absent, a library of the system that is absent or of another version (OSError,
# RuntimeError), or built for another version of a package that they use (the others).
BROKEN = (ImportError, OSError, RuntimeError, AttributeError, TypeError, ValueError)


class UserError(Exception):
    """Bad input: the message names the file, key or entry, what is wrong and what to do."""


def examples(names: Sequence[str]) -> str:
    """The first few of what is named in a message, and how many there are besides."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def reason(error: Exception) -> str:
    """What an error says in a line or a few."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return kind + "\n".join(lines[: 10 if isinstance(error, UserError) else 2])
