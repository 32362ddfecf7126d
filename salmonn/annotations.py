"""Annotation files `{"annotation": [{path, text, task, Q, expand_wav, ...}, ...]}`, held compactly.

Entries live as JSON bytes in one buffer with an offset each. Loader workers share these two arrays
with their parent (copy on write is never triggered), where a list of dicts would be copied page by
page into every worker as reference counts change.
"""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np

from salmonn.errors import UserError

DEFAULT_TASK = "asr"
_SHOWN_PROBLEMS = 5


class Annotations:
    """The entries of one annotation file; `annotations[i]` is a dict with the defaults filled in."""

    def __init__(self, path: str | Path, need_text: bool = True) -> None:
        """Read and check a file. Raises UserError that names file, entry and field of the first bad ones."""
        entries = [_without_null(entry) for entry in read_entries(path)]
        problems = [f"entry {i}: {what}" for i, entry in enumerate(entries) for what in _problems(entry, need_text)]
        if problems:
            shown = problems[:_SHOWN_PROBLEMS]
            if len(problems) > len(shown):
                shown.append(f"... {len(problems)} problems in all")
            raise UserError("\n  ".join([f"annotation file {path}:", *shown]))
        packed = [json.dumps(entry, ensure_ascii=False).encode() for entry in entries]
        self.path = Path(path)
        self.tasks = {entry.get("task", DEFAULT_TASK) for entry in entries}
        self._bytes = np.frombuffer(b"".join(packed), dtype=np.uint8)
        self._ends = np.cumsum([len(entry) for entry in packed])

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = self._ends[index - 1] if index else 0
        entry = json.loads(self._bytes[start : self._ends[index]].tobytes())
        return {"text": "", "task": DEFAULT_TASK, "Q": "", "expand_wav": [], **entry}


def read_entries(path: str | Path) -> list[dict[str, Any]]:
    """The raw entries of an annotation file (.json or .json.gz), not yet checked."""
    opener = gzip.open if str(path).endswith(".gz") else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, EOFError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"annotation file {path} cannot be read: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("annotation"), list):
        raise UserError(f'annotation file {path}: expected {{"annotation": [entry, ...]}}')
    if not content["annotation"]:
        raise UserError(f"annotation file {path} has no entries")
    return content["annotation"]


def _without_null(entry: Any) -> Any:
    """null stands for an absent key."""
    return {k: v for k, v in entry.items() if v is not None} if isinstance(entry, dict) else entry


def _problems(entry: Any, need_text: bool) -> list[str]:
    if not isinstance(entry, dict):
        return [f"expected an object, got {type(entry).__name__}"]
    wrong = [f"no {key!r}" for key in ("path", "text") if key not in entry and (key == "path" or need_text)]
    wrong += [
        f"{key!r} must be a string, got {type(entry[key]).__name__}"
        for key in ("path", "text", "task", "Q")
        if key in entry and not isinstance(entry[key], str)
    ]
    if entry.get("path") == "":
        wrong.append("'path' is empty")
    clips = entry.get("expand_wav", [])
    if not isinstance(clips, list) or not all(isinstance(clip, str) for clip in clips):
        wrong.append("'expand_wav' must be a list of strings")
    return wrong


def clip_paths(entry: dict[str, Any], prefix: str) -> list[Path]:
    """Files of an entry: `prefix` joined in front of its path and of each `expand_wav` path."""
    return [Path(prefix + path) if prefix else Path(path) for path in (entry["path"], *entry.get("expand_wav", []))]
