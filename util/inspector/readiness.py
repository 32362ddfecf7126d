"""Which entries are ready: every clip is a file with something in it. Millions of entries in seconds.

The file is cut into ranges that are parsed in parallel, only for what is needed here; folders are
listed once instead of asking for each file, and only a file that its folder lists is looked at.
"""

import os
import stat
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from salmonn.annotation_scan import DEFAULT_TASK, Range, candidate_ranges
from salmonn.annotations import Annotations
from salmonn.audio import AudioError
from salmonn.paths import ClipPaths, corpus_of, find_file, names_in
from salmonn.processes import in_processes

Key = tuple[str, str]  # task, corpus


class _Entry(msgspec.Struct, gc=False):
    path: str
    task: str | None = None
    expand_wav: list[str] | None = None


class _Folder:
    """An annotated folder as it is on this disk."""

    __slots__ = ("names", "path")

    def __init__(self, folder: str, clip_paths: ClipPaths) -> None:
        try:
            self.path = clip_paths.locate(folder)
            self.names = names_in(self.path or ".")
        except AudioError:  # it leads out of the prefix
            self.path, self.names = "", frozenset()

    def has_ready(self, name: str) -> bool:
        """Whether a clip of this name, or with another extension, is a file with something in it."""
        file = find_file(name, self.names.__contains__)
        if file not in self.names:
            return False
        try:
            status = os.stat(self.path + file)
        except (OSError, ValueError):  # gone meanwhile, a dangling link, or not permitted
            return False
        return stat.S_ISREG(status.st_mode) and status.st_size > 0


_SHARE = 16  # ranges that a process parses before it reports
_folders: dict[str, _Folder] = {}  # of this process, by annotated folder with its slash


@dataclass
class Readiness:
    """Entries by (task, corpus), and which of them are ready."""

    total: Counter[Key] = field(default_factory=Counter)
    ready: Counter[Key] = field(default_factory=Counter)
    is_ready: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))  # [entries]


def count_ready(path: Path, clip_paths: ClipPaths, jobs: int = 0, progress: Callable[[int], object] = int) -> Readiness:
    """Look for the clips of every entry; `progress` is told the bytes that are done.

    Raises UserError, as Annotations does, for a file that cannot be read or has bad entries.
    """
    if path.suffix != ".gz":
        try:
            with path.open("rb") as text:
                ranges = candidate_ranges(text)
            return _count(path, ranges, clip_paths, jobs, progress)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            pass  # an unusual layout, or something wrong: a closer look tells
    text_path, ranges = Annotations(path, need_text=False).text_ranges()
    return _count(text_path, ranges, clip_paths, jobs, progress)


def _count(
    text_path: Path, ranges: list[Range], clip_paths: ClipPaths, jobs: int, progress: Callable[[int], object]
) -> Readiness:
    result, flags = Readiness(), []
    _folders.clear()  # before the processes are forked: each lists the folders anew
    shares = [ranges[i : i + _SHARE] for i in range(0, len(ranges), _SHARE)]
    arguments = ((text_path, share, clip_paths) for share in shares)
    for (_, share, _), counted in in_processes(_count_ranges, arguments, jobs):
        if counted is None:
            raise RuntimeError(f"a process died while it read {text_path}, bytes {share[0][0]} to {share[-1][1]}")
        total, ready, is_ready = counted
        result.total.update(total)
        result.ready.update(ready)
        flags.append(is_ready)
        progress(share[-1][1] - share[0][0])
    result.is_ready = np.concatenate(flags)
    return result


def _count_ranges(text_path: Path, ranges: list[Range], clip_paths: ClipPaths) -> tuple[Counter, Counter, np.ndarray]:
    """(total, ready) by (task, corpus), and [entries] which of them are ready."""
    total: Counter[tuple[str | None, str]] = Counter()  # by task and root
    ready: Counter[tuple[str | None, str]] = Counter()
    flags = []
    decoder = msgspec.json.Decoder(list[_Entry])
    with text_path.open("rb", buffering=0) as text:
        for begin, end in ranges:
            text.seek(begin)
            entries = decoder.decode(b"[" + text.read(end - begin) + b"]")
            places = [(entry.task, entry.path[: entry.path.find("/", 1) + 1]) for entry in entries]
            total.update(places)
            flags.append(_ready_entries(entries, places, clip_paths))
            ready.update(places[i] for i in np.flatnonzero(flags[-1]))
    return _by_corpus(total), _by_corpus(ready), np.concatenate(flags)


def _ready_entries(entries: list[_Entry], places: list[tuple[str | None, str]], clip_paths: ClipPaths) -> np.ndarray:
    """[entries] which of them are ready; nothing is looked for under roots that are absent."""
    is_ready = np.zeros(len(entries), dtype=bool)
    roots = {root for _, root in places}
    if "" in roots and not all(entry.path for entry in entries):
        raise msgspec.ValidationError("an empty path")
    present = {root for root in roots if _is_present(root, clip_paths)}
    if present:
        for i, (_, root) in enumerate(places):
            is_ready[i] = root in present and all(_is_ready(clip, clip_paths) for clip in _clips(entries[i]))
    return is_ready


def _is_present(root: str, clip_paths: ClipPaths) -> bool:
    """Whether anything under the first folder of a path can exist."""
    if clip_paths.maps_under(root):
        return True
    try:
        return os.path.isdir(clip_paths.locate(root) or ".")
    except AudioError:  # it leads out of the prefix
        return False


def _clips(entry: _Entry) -> tuple[str, ...]:
    return (entry.path, *(entry.expand_wav or ()))


def _is_ready(clip: str, clip_paths: ClipPaths) -> bool:
    folder = clip[: clip.rfind("/") + 1]
    known = _folders.get(folder)
    if known is None:
        known = _folders[folder] = _Folder(folder, clip_paths)
    return known.has_ready(clip[len(folder) :])


def _by_corpus(places: Counter[tuple[str | None, str]]) -> Counter[Key]:
    counts: Counter[Key] = Counter()
    for (task, root), n in places.items():
        counts[task or DEFAULT_TASK, corpus_of(root)] += n
    return counts
