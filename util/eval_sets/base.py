"""What a reader is given and what it gives: clips with their references, still without annotation format."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from salmonn.common.errors import UserError


class MissingError(UserError):
    """A file or folder of the corpus is not there."""


@dataclass(frozen=True)
class Item:
    """One clip to be answered; `source` says where it stands, for messages."""

    id: str  # unique in the set
    path: Path
    references: tuple[str, ...]  # all of them, the empty ones too
    task: str
    source: str
    question: str = ""
    expand: tuple[Path, ...] = ()
    spoken: str = ""  # what is said, where the answer is something else (the following rate needs it)
    choices: tuple[str, ...] = ()  # of multiple choice; the reference is one of them


@dataclass
class Request:
    """Where a corpus lies and how it is to be read; None and "" stand for the set's own default."""

    root: Path
    split: str = ""
    table: Path | None = None
    audio: Path | None = None
    librispeech: Path | None = None
    lexicon: list[Path] = field(default_factory=list)
    name: str = ""
    question: str = ""
    cut_to: Path | None = None
    speech_only: bool = False
    notes: Counter[str] = field(default_factory=Counter)  # what is told at the end, each with a count


Reader = Callable[[Request], Iterator[Item]]


@dataclass(frozen=True)
class EvalSet:
    """A test set that can be prepared."""

    read: Reader
    download: str  # what to download, and what --root is
    options: tuple[str, ...] = ()  # fields of Request that it heeds besides root
    split: str = ""  # the default
    name: str = ""  # the default pattern of file names


def folder(path: Path) -> Path:
    """The folder itself. Raises MissingError where it is none."""
    if not path.is_dir():
        raise MissingError(f"{path}: no such folder")
    return path
