"""From clips to an annotation file: paths below a prefix, unique ids, what is absent on disk."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salmonn.common.errors import UserError
from salmonn.data.annotation_format import write_annotations
from salmonn.data.clip_paths import ClipPaths, FolderCache
from util.eval_sets.base import Item

Entry = dict[str, Any]


@dataclass(frozen=True)
class Clip:
    """The entries of one clip, one per reference."""

    entries: tuple[Entry, ...]
    present: bool  # on this disk, with all that is appended to it


def make_clips(items: Iterable[Item], prefix: Path) -> list[Clip]:
    """The clips of a set in its order. Raises UserError for an id that occurs twice, or a clip outside `prefix`."""
    clip_paths, exists = ClipPaths(str(prefix)), FolderCache().exists
    sources: dict[str, str] = {}
    clips: list[Clip] = []
    for item in list(items):  # all clips are cut before it is looked which are there: a folder is listed once
        before = sources.setdefault(item.id, item.source)
        if len(sources) == len(clips):
            raise UserError(f"{item.source}: the id {item.id} stands already in {before}")
        entries = _entries(item, prefix)
        files = clip_paths.of(entries[0]["path"], entries[0].get("expand_wav"), exists)
        clips.append(Clip(entries, all(map(exists, files))))
    return clips


def write(path: Path, clips: Sequence[Clip]) -> None:
    """Write the annotation file of a set. Raises UserError where it cannot be."""
    try:
        write_annotations(path, (entry for clip in clips for entry in clip.entries))
    except OSError as error:
        raise UserError(f"--out {path}: {error}") from error


def _entries(item: Item, prefix: Path) -> tuple[Entry, ...]:
    optional = {
        "Q": item.question,
        "expand_wav": [annotated_path(path, prefix, item.source) for path in item.expand],
        "spoken": item.spoken,
        "choices": list(item.choices),
    }
    more = {key: value for key, value in optional.items() if value} | {"testset_id": item.id}
    path = annotated_path(item.path, prefix, item.source)
    return tuple({"path": path, "text": text, "task": item.task, **more} for text in item.references)


def annotated_path(file: str | Path, prefix: Path, source: str) -> str:
    """A clip as the released files name it: below the prefix, absolute here, with a slash in front.

    Raises UserError that begins with its `source` for a clip that lies elsewhere.
    """
    clip = Path(os.path.abspath(file))
    if not clip.is_relative_to(prefix):
        raise UserError(f"{source}: its clip {clip} is not below --prefix {prefix}; give a folder above all clips")
    return f"/{clip.relative_to(prefix).as_posix()}"
