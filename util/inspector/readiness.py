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
from salmonn.data.clip_paths import OTHER_EXTENSIONS, ClipPaths, FolderCache, corpus_of, find_file

Key = tuple[str, str]  # task, corpus


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
    """The names, and those of absent .wav files for which others stand."""
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
            path = self.clip_paths.locate(folder)
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

    def may_hold(self, root: str) -> bool:
        """Whether there can be anything under the first folder of a path."""
        if self.clip_paths.maps_under(root):
            return True
        try:
            return os.path.isdir(self.clip_paths.locate(root) or ".")
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
    if path.suffix != ".gz":
        try:
            with path.open("rb") as text:
                ranges = candidate_ranges(text)
            if ranges:
                return _count(path, ranges, clip_paths, jobs, progress)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            pass  # an unusual layout, or something wrong: a closer look tells
    text_path, ranges = Annotations(path, need_text=False).text_ranges()
    return _count(text_path, ranges, clip_paths, jobs, progress)


def _count(
    text_path: Path, ranges: list[Range], clip_paths: ClipPaths, jobs: int, progress: Callable[[int], object]
) -> Readiness:
    result, flags, count = Readiness(), {}, partial(_count_ranges, Folders(clip_paths))
    shares = [ranges[i : i + _SHARE] for i in range(0, len(ranges), _SHARE)]
    for (_, share), counted in in_processes(count, ((text_path, share) for share in shares), jobs):
        if counted is None:
            raise RuntimeError(f"a process died while it read {text_path}, bytes {share[0][0]} to {share[-1][1]}")
        total, ready, is_ready = counted
        result.total.update(total)
        result.ready.update(ready)
        flags[share[0]] = is_ready
        progress(share[-1][1] - share[0][0])
    result.is_ready = np.concatenate([flags[share[0]] for share in shares])
    return result


def _count_ranges(
    folders: Folders, text_path: Path, ranges: list[Range]
) -> tuple[Counter[Key], Counter[Key], np.ndarray]:
    """(total, ready) by (task, corpus), and [entries] which of them are ready.

    `folders` is filled by each process for itself.
    """
    total: Counter[tuple[str | None, str]] = Counter()  # by task and root, the first folder with its slash
    ready: Counter[tuple[str | None, str]] = Counter()
    flags = []
    decoder = msgspec.json.Decoder(list[_Entry])
    with text_path.open("rb", buffering=0) as text:
        for begin, end in ranges:
            text.seek(begin)
            entries = decoder.decode(b"[" + text.read(end - begin) + b"]")
            paths = [entry.path for entry in entries]
            places = [(entry.task, path[: path.find("/", 1) + 1]) for entry, path in zip(entries, paths, strict=True)]
            if not all(task is None or task.strip() for task in {task for task, _ in places}):
                raise msgspec.ValidationError("an empty task")
            total.update(places)
            is_ready = np.zeros(len(entries), dtype=bool)
            if any(folders.may_hold(root) for root in {root for _, root in places}):
                is_ready[_ready_entries(folders, entries, paths)] = True
                ready.update(places[i] for i in np.flatnonzero(is_ready))
            flags.append(is_ready)
    return _by_corpus(total), _by_corpus(ready), np.concatenate(flags)


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


def _by_corpus(places: Counter[tuple[str | None, str]]) -> Counter[Key]:
    counts: Counter[Key] = Counter()
    for (task, root), n in places.items():
        counts[task or DEFAULT_TASK, corpus_of(root)] += n
    return counts
