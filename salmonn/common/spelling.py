"""What may have been meant by a path that leads nowhere: one beside it whose name is nearly the same."""

import os
import re
from collections import Counter
from collections.abc import Callable
from difflib import SequenceMatcher
from pathlib import Path

_MOST_CHANGES = 2  # letters, to be a slip of the hand


def did_you_mean(path: str | Path, fits: Callable[[Path], bool] = Path.exists) -> str:
    """The end of a message about a path that does not exist; "" where nothing near it does that `fits`."""
    near = near_path(Path(path), fits)
    return f"; did you mean {near}?" if near else ""


def near_path(path: Path, fits: Callable[[Path], bool] = Path.exists) -> Path | None:
    """What exists, fits, and differs from a path by a slip at most, in its name as in those of its folders."""
    here, names = Path(path.anchor), path.parts[bool(path.anchor) :]
    for number, name in enumerate(names, start=1):
        found = _near_name(here, name, fits if number == len(names) else Path.is_dir)
        if found is None:
            return None
        here = found
    return here


def _near_name(folder: Path, name: str, fits: Callable[[Path], bool]) -> Path | None:
    path = folder / name
    if os.path.exists(path):  # os.path's: pathlib's raises OSError for what is longer than a name can be
        return path if fits(path) else None
    try:
        names = sorted(other for other in os.listdir(folder) if other[0] != "." and is_near(name, other))
    except OSError:  # it may not be listed
        return None
    found = [folder / other for other in names if fits(folder / other)]
    return min(found, key=lambda other: _changes(name, other.name), default=None)


def is_near(name: str, other: str) -> bool:
    """Whether a name may be meant by another: a slip, another case, an ending too few or too many.

    Other numbers are other things, such as stage1 and stage2.
    """
    name, other = name.lower(), other.lower()
    numbers, others = re.findall(r"\d+", name), re.findall(r"\d+", other)
    if numbers != others and numbers and others:
        return False
    shorter, longer = sorted((name, other), key=len)
    if longer.startswith(f"{shorter}."):
        return True
    most = min(_MOST_CHANGES, len(shorter.partition(".")[0]) // 2)
    letters, there = Counter(name), Counter(other)
    if max((letters - there).total(), (there - letters).total()) > most:  # told quickly, of the many in a folder
        return False
    return _changes(name, other) <= (2 * most if letters == there else most)  # a letter that moved counts twice


def _changes(name: str, other: str) -> int:
    """Letters to insert, take out or replace; several in a row that are replaced, as of best and last, count twice."""
    steps = SequenceMatcher(None, name.lower(), other.lower(), autojunk=False).get_opcodes()
    sizes = [(what, max(i2 - i1, j2 - j1)) for what, i1, i2, j1, j2 in steps if what != "equal"]
    return sum(2 * size if what == "replace" and size > 1 else size for what, size in sizes)
