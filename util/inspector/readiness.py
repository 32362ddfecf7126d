"""Which entries are ready: every clip is a file with something in it. Millions of entries in seconds.

The file is cut into ranges that are parsed in parallel, only for what is needed here; folders are
listed once instead of asking for each file, and only a file that its folder lists is looked at.
"""

import os
import stat
from collections import Counter
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

from salmonn.audio.decode import AudioError
from salmonn.common.processes import in_processes
from salmonn.data.annotation_scan import DEFAULT_TASK, Range, candidate_ranges
from salmonn.data.annotations import Annotations
from salmonn.data.clip_paths import (
    OTHER_EXTENSIONS,
    ClipPaths,
    FolderCache,
    corpus_of,
    find_file,
    spelled_here,
    spellings,
)

Key = tuple[str, str]  # task, corpus
_Place = tuple[str | None, str]  # task, what `Folders.place_of` gives


class _Entry(msgspec.Struct, gc=False):
    path: str
    task: str | None = None
    expand_wav: list[str] | None = None


class _Anything:
    """The names in a folder that may be entered but not listed."""

    def __contains__(self, _: object) -> bool:
        return True


@dataclass(slots=True)
class _Folder:
    """An annotated folder as it is on this disk."""

    path: str
    possible: Container[str]  # names of annotated clips that may be ready
    exists: Callable[[str], bool]

    def has_ready(self, name: str) -> bool:
        """Whether a possible clip, of this name or with another extension, is a file with something in it."""
        try:
            status = os.stat(find_file(self.path + name, self.exists))
        except (OSError, ValueError):  # gone meanwhile, a dangling link, or not permitted
            return False
        return stat.S_ISREG(status.st_mode) and status.st_size > 0


def _with_fallbacks(names: frozenset[str]) -> frozenset[str]:
    """The names, also as they are spelled elsewhere, and those of absent .wav files for which others stand."""
    names = names.union(*(spellings(name) for name in names if not name.isascii()))
    stems = [name.rpartition(".")[0] for name in names if name.endswith(OTHER_EXTENSIONS)]
    return names.union(*([stem + wav for stem in stems] for wav in (".wav", ".WAV")))


class Folders(dict[str, _Folder | None]):
    """The folders by annotated path with its last slash, each looked for once; None where there is nothing in it."""

    def __init__(self, clip_paths: ClipPaths) -> None:
        super().__init__()
        self.clip_paths = clip_paths
        self.cache = FolderCache()

    def __missing__(self, folder: str) -> _Folder | None:
        try:
            # with a slash at its end, which an absolute path without prefix has lost
            path = spelled_here(self.clip_paths.locate(folder), self.cache.exists).rstrip("/") + "/"
        except AudioError:  # it leads out of the prefix
            self[folder] = None
        else:
            names = self.cache.names(path)
            possible = _Anything() if names is None else _with_fallbacks(names)
            self[folder] = _Folder(path, possible, self.cache.exists) if possible else None
        return self[folder]

    def has_ready(self, clip: str) -> bool:
        """Whether an annotated clip is ready."""
        cut = clip.rfind("/") + 1
        folder = self[clip[:cut]]
        return folder is not None and clip[cut:] in folder.possible and folder.has_ready(clip[cut:])

    def place_of(self, path: str) -> str:
        """What tells the corpus of an annotated path: its first folder, or all of them where no prefix is in front."""
        return path[: path.find("/", 1) + 1] if self.clip_paths.has_prefix else path[: path.rfind("/") + 1]

    def may_hold(self, root: str) -> bool:
        """Whether there can be anything under an annotated folder."""
        if self.clip_paths.maps_under(root):
            return True
        try:
            return os.path.isdir(spelled_here(self.clip_paths.locate(root), self.cache.exists))
        except AudioError:  # it leads out of the prefix
            return False


_SHARE = 32  # ranges that a process parses before it reports


@dataclass
class Readiness:
    """Entries by (task, corpus), and which of them are ready."""

    total: Counter[Key] = field(default_factory=Counter)
    ready: Counter[Key] = field(default_factory=Counter)
    is_ready: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))  # [entries]


def count_ready(path: Path, clip_paths: ClipPaths, jobs: int = 0, progress: Callable[[int], object] = int) -> Readiness:
    """Look for the clips of every entry; `progress` is told the bytes that are done.

    Only what this takes is read and checked: path, task, expand_wav. Raises UserError, as
    Annotations does, for a file that cannot be read or is wrong in these.
    """
    if path.suffix != ".gz" and path.is_file():  # of a pipe nothing may come, of /dev/zero too much
        try:
            with path.open("rb") as text:
                ranges = candidate_ranges(text)
            if ranges:
                return _count(path, ranges, clip_paths, jobs, progress)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            pass  # an unusual layout, or something wrong: a closer look tells
    text_path, ranges = Annotations(path, need_text=False).text_ranges()
    return _count(text_path, ranges, clip_paths, jobs, progress)


def _count(
    text_path: Path, ranges: list[Range], clip_paths: ClipPaths, jobs: int, progress: Callable[[int], object]
) -> Readiness:
    flags, count = {}, partial(_count_ranges, Folders(clip_paths))
    total: Counter[_Place] = Counter()
    ready: Counter[_Place] = Counter()
    shares = [ranges[i : i + _SHARE] for i in range(0, len(ranges), _SHARE)]
    for (_, share), counted in in_processes(count, ((text_path, share) for share in shares), jobs):
        if counted is None:
            raise RuntimeError(f"a process died while it read {text_path}, bytes {share[0][0]} to {share[-1][1]}")
        total.update(counted[0])
        ready.update(counted[1])
        flags[share[0]] = counted[2]
        progress(share[-1][1] - share[0][0])
    root = clip_paths.root_of(place for _, place in total)
    is_ready = np.concatenate([flags[share[0]] for share in shares])
    return Readiness(_by_corpus(total, root), _by_corpus(ready, root), is_ready)


def _count_ranges(
    folders: Folders, text_path: Path, ranges: list[Range]
) -> tuple[Counter[_Place], Counter[_Place], np.ndarray]:
    """(total, ready) by task and place, and [entries] which of them are ready.

    `folders` is filled by each process for itself.
    """
    total: Counter[_Place] = Counter()
    ready: Counter[_Place] = Counter()
    flags = []
    decoder = msgspec.json.Decoder(list[_Entry])
    with text_path.open("rb", buffering=0) as text:
        for begin, end in ranges:
            text.seek(begin)
            entries = decoder.decode(b"[" + text.read(end - begin) + b"]")
            paths = [entry.path for entry in entries]
            places = [(entry.task, folders.place_of(path)) for entry, path in zip(entries, paths, strict=True)]
            if not all(task is None or task.strip() for task in {task for task, _ in places}):
                raise msgspec.ValidationError("an empty task")
            total.update(places)
            is_ready = np.zeros(len(entries), dtype=bool)
            if any(folders.may_hold(place) for place in {place for _, place in places}):
                is_ready[_ready_entries(folders, entries, paths)] = True
                ready.update(places[i] for i in np.flatnonzero(is_ready))
            flags.append(is_ready)
    return total, ready, np.concatenate(flags)


def _ready_entries(folders: Folders, entries: list[_Entry], paths: list[str]) -> list[int]:
    """Numbers of the ready ones. Comprehensions, because this is where the time goes."""
    if not all(paths):
        raise msgspec.ValidationError("an empty path")
    of_entries = [folders[path[: path.rfind("/") + 1]] for path in paths]
    possible = [
        i
        for i, (folder, path) in enumerate(zip(of_entries, paths, strict=True))
        if folder is not None and path[path.rfind("/") + 1 :] in folder.possible
    ]
    return [i for i in possible if all(map(folders.has_ready, (paths[i], *(entries[i].expand_wav or ()))))]


def _by_corpus(places: Counter[_Place], root: str) -> Counter[Key]:
    counts: Counter[Key] = Counter()
    for (task, place), n in places.items():
        counts[task or DEFAULT_TASK, corpus_of(place, root)] += n
    return counts
