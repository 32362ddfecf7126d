"""Where an annotation's clips lie on this machine: prefix, path_map, and other extensions than the annotated one."""

import os
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence

from salmonn.audio.decode import AudioError
from salmonn.common.errors import UserError
from salmonn.common.files import NO_FILE

# `expand_wav` of the released files carries the folder of the authors' cluster; `path` does not.
RELEASED_PATH_MAP = ({"from": "/mnt/bn/audio-visual-llm-data/datasets", "to": "{prefix}"},)
OTHER_EXTENSIONS = (".flac", ".mp3", ".ogg", ".opus", ".m4a")  # of a clip that is annotated as .wav, in this order
_MOST_CORPORA = 20  # folders in one; more are the speakers or parts of one corpus


def may_exist(path: str) -> bool:
    """Whether there is something of this name, or the system cannot tell: opening it will."""
    try:
        os.lstat(path)
    except ValueError:  # no possible name
        return False
    except OSError as error:
        return error.errno not in NO_FILE
    return True


class ClipPaths:
    """Turns annotated paths into files: `ClipPaths(prefix, path_map).of(path)`."""

    def __init__(self, prefix: str = "", path_map: Sequence[Mapping[str, str]] = ()) -> None:
        """`path_map`: [{"from": annotated folder, "to": folder here}], first match counts.

        `{prefix}` in `to` stands for the prefix. Raises UserError for a mapping without from or to.
        """
        for mapping in path_map:
            if set(mapping) != {"from", "to"} or not mapping["from"].strip("/"):
                raise UserError(f"datasets.path_map: expected {{from: FOLDER, to: FOLDER}}, got {dict(mapping)}")
        # absolute, so that a file has one name however the prefix is written: verdicts go by it
        self.prefix = os.path.abspath(prefix) if prefix else ""
        self.has_prefix = bool(self.prefix.strip("/"))  # else absolute annotated paths are those of the files
        self._map = [
            (source, os.path.abspath(mapping["to"].replace("{prefix}", prefix)))
            for mapping in (*path_map, *RELEASED_PATH_MAP)
            for source in spellings(mapping["from"].rstrip("/"))
        ]

    def of(
        self, path: str, expand_wav: Sequence[str] | None = None, exists: Callable[[str], bool] = may_exist
    ) -> list[str]:
        """Files of an entry: its clip, then each of its `expand_wav`. Raises AudioError as `locate` does."""
        return [find_file(self.locate(clip), exists) for clip in (path, *(expand_wav or ()))]

    def maps_under(self, root: str) -> bool:
        """Whether some path that begins with `root` is mapped."""
        return any(source.startswith(root.rstrip("/")) for source, _ in self._map)

    def root_of(self, folders: Iterable[str]) -> str:
        """What stands in front of the corpora in absolute annotated paths, by all of their folders; "" with a prefix.

        It is what they share; but where clips lie in that folder, or very many folders, it is a corpus itself.
        """
        absolute = (
            {os.path.normpath(folder) for folder in folders if folder.startswith("/")} if not self.has_prefix else ()
        )
        if not absolute:
            return ""
        shared = os.path.commonpath(absolute)
        below = {folder[len(shared) :].lstrip("/").partition("/")[0] for folder in absolute}
        is_corpus = "" in below or len(below) > _MOST_CORPORA
        return os.path.dirname(shared) if is_corpus else shared

    def locate(self, path: str) -> str:
        """The file that an annotated path names, absolute: mapped, or with the prefix in front.

        Raises AudioError where `..` stands in what follows the prefix or the mapped folder.
        """
        for source, target in self._map:
            if path.startswith(source) and path[len(source) : len(source) + 1] in ("", "/"):
                return _below(target, path[len(source) :], path)
        return _below(self.prefix, path, path) if self.prefix else os.path.abspath(path)


def find_file(path: str, exists: Callable[[str], bool] = may_exist) -> str:
    """The file as it is spelled here, or where a .wav is absent the same stem with another extension, if that exists.

    CommonVoice is annotated as .wav, for one, and ships .mp3.
    """
    path = spelled_here(path, exists)
    stem, extension = os.path.splitext(path)
    if extension.lower() != ".wav" or exists(path):
        return path
    folder, slash, name = stem.rpartition("/")
    stems = [folder + slash + spelling for spelling in spellings(name)]
    return next((found for other in OTHER_EXTENSIONS for stem in stems if exists(found := stem + other)), path)


def spelled_here(path: str, exists: Callable[[str], bool] = may_exist) -> str:
    """An absolute path with each of its names as it is there: composed (ü), or decomposed (u and dots), as on a Mac."""
    if path.isascii():
        return path
    here = ""
    for name in path.split("/")[1:]:
        found = (f"{here}/{spelling}" for spelling in spellings(name) if name.isascii() or exists(f"{here}/{spelling}"))
        here = next(found, f"{here}/{name}")
    return here


def spellings(name: str) -> list[str]:
    """A name as it is, composed and decomposed: three strings that look the same."""
    return [name] if name.isascii() else [name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD"))]


class FolderCache:
    """Tells which of millions of files exist: each folder is listed once, instead of a question per file."""

    def __init__(self) -> None:
        self._names: dict[str, frozenset[str] | None] = {}

    def exists(self, path: str) -> bool:
        """Whether the folder of this path held its name when it was listed."""
        folder, slash, name = path.rpartition("/")
        names = self.names(folder or slash or ".")
        return may_exist(path) if names is None else name in names

    def names(self, folder: str) -> frozenset[str] | None:
        """What a folder lists, nothing where it is absent; None where it cannot be listed, but perhaps entered.

        It is not asked for when the folder above does not list it.
        """
        unknown = [folder]
        while unknown[-1] not in self._names and (above := os.path.normpath(unknown[-1]).rpartition("/")[0]):
            unknown.append(above)
        for one in reversed(unknown):  # from the top, and without recursion: some paths have thousands of folders
            if one not in self._names:
                path = os.path.normpath(one)
                above, _, name = path.rpartition("/")
                siblings = self._names[above] if above else None
                self._names[one] = frozenset() if siblings is not None and name not in siblings else _list(path)
        return self._names[folder]


def _list(folder: str) -> frozenset[str] | None:
    try:
        return frozenset(os.listdir(folder))
    except ValueError:  # no possible name
        return frozenset()
    except OSError as error:
        return frozenset() if error.errno in NO_FILE else None


def corpus_of(path: str, root: str = "") -> str:
    """The first folder of an annotation's path, below `root` where that stands in front."""
    below = path[len(root) :] if root and path.startswith(root) else path
    folders = [part for part in below.split("/")[:-1] if part not in ("", ".")]
    return folders[0] if folders else "(no folder)"


def _below(folder: str, rest: str, path: str) -> str:
    if ".." in rest and ".." in rest.split("/"):
        raise AudioError(path, f"leads out of {folder}: '..' is taken only where datasets.path_map maps it")
    return folder.rstrip("/") + ("" if rest.startswith("/") else "/") + rest
