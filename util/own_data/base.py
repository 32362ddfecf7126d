"""What a reader gives: a recording, or a piece of one, with its text; paths still as they are written."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from salmonn.common.errors import UserError

# Under which names the fields of an entry are found, without regard to case; the first that is there counts.
NAMES = {
    "path": (
        "path", "audio_filepath", "audio_path", "audio_file", "audio", "file_name", "filename", "file_path", "filepath",
        "file", "wav_path", "wav", "wav_filename", "clip", "sound", "recording", "location",
    ),
    "text": (
        "text", "transcript", "transcription", "sentence", "normalized_text", "caption", "answer", "label", "target",
        "txt",
    ),
    "task": ("task",),
    "Q": ("Q", "question"),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One line of what was given; `source` says where it stands, for messages."""

    source: str
    path: str
    text: str | None = None
    task: str = ""
    question: str = ""
    expand: tuple[str, ...] = ()
    start: float = 0.0  # s, where in the recording the clip begins
    seconds: float | None = None  # of the clip; None = to the end of the recording
    name: str = ""  # of a clip that has no file of its own yet
    content: bytes | None = None  # the recording itself, where no file holds it


def text_of(value: Any, where: str, name: str) -> str | None:
    """What a value says; None for null and nan. Raises UserError for what is no text, such as a list of texts."""
    if not isinstance(value, str | int | float | None):
        raise UserError(f"{where}: {name} must be text, got {str(value)[:60]}")
    return None if value is None or value != value else str(value)


@dataclass(frozen=True)
class Reading:
    """What is read, and how its columns are called."""

    source: Path
    columns: Mapping[str, str] = field(default_factory=dict)  # {field of an entry: column}, beside NAMES
    needs_text: bool = True

    def column_of(self, wanted: str, there: list[str]) -> str | None:
        """The column that holds a field: the one that was named, else the first of NAMES. Raises UserError."""
        if name := self.columns.get(wanted):
            if name not in there:
                raise UserError(f"{self.source}: no column {name} (--columns); it has {', '.join(there)}")
            return name
        lower = {column.lower(): column for column in reversed(there)}
        return next((lower[name.lower()] for name in NAMES[wanted] if name.lower() in lower), None)

    def columns_of(self, there: list[str]) -> dict[str, str]:
        """{field: column} of the wanted fields that are there. Raises UserError where clips or texts are not."""
        names = [wanted for wanted in NAMES if self.needs_text or wanted != "text"]
        found = {wanted: column for wanted in names if (column := self.column_of(wanted, there)) is not None}
        for wanted, what in (("path", "clips"), ("text", "texts")):
            if wanted in names and wanted not in found:
                raise UserError(
                    f"{self.source}: which column holds the {what}? It has {', '.join(there)}: say --columns "
                    f"{wanted}=COLUMN (its number where the first line is no header)"
                    f"{'' if wanted == 'path' else ', or --without-text'}"
                )
        return found
