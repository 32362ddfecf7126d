"""Which files and entries of an annotation file are known to be unreadable."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import compress
from pathlib import Path

import numpy as np

from salmonn.audio.decode import AudioError
from salmonn.data.annotation_scan import Entry
from salmonn.data.annotations import Annotations
from salmonn.data.clip_paths import ClipPaths, corpus_of
from salmonn.data.integrity import Verdict, VerdictList, version_of

NOT_VERIFIED = "not verified (new or changed): run util/anns_inspector.py --check-integrity"

Exists = Callable[[str], bool]


def corpora_root(annotations: Annotations, clip_paths: ClipPaths) -> str:
    """What stands in front of the corpora in the paths of an annotation file; "" where paths begin with them."""
    return clip_paths.root_of(entry.path.rpartition("/")[0] for entry in annotations.entries())


def distinct_files(
    annotations: Annotations, clip_paths: ClipPaths, exists: Exists, wanted: np.ndarray | None = None
) -> dict[str, str]:
    """{file: corpus} of the files that an annotation file names, in the order in which they come.

    `wanted`: [entries] whose files; None = all.
    """
    files: dict[str, str] = {}
    root = corpora_root(annotations, clip_paths)
    for _, entry in _numbered(annotations, wanted):
        try:
            found = clip_paths.of(entry.path, entry.expand_wav, exists)
        except AudioError:
            continue  # the entry is left out for that, whatever its files are like
        for file in found:
            files.setdefault(file, corpus_of(entry.path, root))
    return files


def entries_left_out(
    annotations: Annotations,
    clip_paths: ClipPaths,
    unreadable: Mapping[str, str],
    exists: Exists,
    wanted: np.ndarray | None = None,
) -> Iterator[tuple[int, str, str]]:
    """Yield (number, corpus, reason) of the `wanted` entries that have a clip among `unreadable` {file: reason}."""
    root = corpora_root(annotations, clip_paths)
    for i, entry in _numbered(annotations, wanted):
        try:
            reason = next(
                (
                    unreadable[file]
                    for file in clip_paths.of(entry.path, entry.expand_wav, exists)
                    if file in unreadable
                ),
                "",
            )
        except AudioError as error:
            reason = error.reason
        if reason:
            yield i, corpus_of(entry.path, root), reason


def _numbered(annotations: Annotations, wanted: np.ndarray | None) -> Iterator[tuple[int, Entry]]:
    numbered = enumerate(annotations.entries())
    return numbered if wanted is None else compress(numbered, wanted.tolist())


def unverified_files(files: Iterable[str], verdicts: str | Path, max_seconds: float = 0) -> dict[str, str]:
    """{file: reason} of those without a good verdict, from decoding them, on the version that is there.

    And of those that are longer than `max_seconds`; 0 = any length.
    """
    good: set[int] = set()  # hashes take a fifth of the memory of millions of paths
    bad: dict[int, Verdict] = {}
    for verdict in VerdictList(verdicts).read():
        if verdict.checked == "decode" and not verdict.is_passing:
            version = hash(verdict.version)
            good.discard(version)
            bad.pop(version, None)
            if verdict.ok and not verdict.excess(max_seconds):
                good.add(version)
            else:
                bad[version] = verdict
    versions = ((file, hash(version_of(file))) for file in files)
    return {file: _reason(bad.get(version), max_seconds) for file, version in versions if version not in good}


def _reason(verdict: Verdict | None, max_seconds: float) -> str:
    if verdict and verdict.ok:
        return verdict.excess(max_seconds)
    return verdict.reason if verdict and verdict.still_holds() else NOT_VERIFIED


def unusable_files(
    files: Sequence[str], how: str, max_seconds: float, check: Callable[[Sequence[str], str], Iterable[Verdict]]
) -> dict[str, str]:
    """{file: reason} of those that a look finds unreadable, and of those that are longer than `max_seconds`.

    `how`: header, decode, or off = only lengths count; `max_seconds` 0 = any length; `check`: `check_files`.
    """
    found: dict[str, str] = {}
    of_unknown_length: list[str] = []  # such as an mp3 without a tag; filled by the first round
    for look, paths in (("header" if how == "off" else how, files), ("decode", of_unknown_length)):
        for verdict in check(paths, look) if paths else ():
            if max_seconds and verdict.ok and not verdict.seconds and paths is files:
                of_unknown_length.append(verdict.path)
            elif reason := verdict.excess(max_seconds) or ("" if how == "off" else verdict.reason):
                found[verdict.path] = reason
    return found


def quarantined_files(files: Iterable[str], quarantine: str | Path) -> dict[str, str]:
    """{file: reason} of those that a run's quarantine list names, unless they have changed since."""
    verdicts = (verdict for verdict in VerdictList(quarantine).read() if not verdict.ok and not verdict.is_passing)
    listed = {verdict.version: verdict for verdict in verdicts}
    paths = {path for path, _, _ in listed}
    found = {file: listed.get(version_of(file)) for file in files if file in paths}
    return {
        file: f"quarantined: {verdict.reason}" for file, verdict in found.items() if verdict and verdict.still_holds()
    }
