"""Cut an annotation file into training, validation and test files that share no clip.

Entries that share a clip, directly or through other entries, form a group, and a group stays
together. A hash decides the order of the groups, and the order is cut where the wanted shares of
the entries are reached. So the result depends on seed and clips, not on the order of the entries;
and the shares are met to within half a group at each cut, where thresholds on the hash itself
would meet them by chance only. The price: when entries are added, groups near a cut may change
sides (thresholds would keep them), all others stay where they were unless groups merge.
"""

import filecmp
import hashlib
import logging
import math
import os
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from salmonn.common.errors import UserError
from salmonn.common.files import clear_unfinished_of, replacing
from salmonn.common.screen import counted
from salmonn.data.annotation_scan import DEFAULT_TASK
from salmonn.data.annotations import Annotations
from salmonn.data.clip_paths import OTHER_EXTENSIONS, RELEASED_PATH_MAP

SPLITS = ("train", "valid", "test")

_EXTENSIONS = (".wav", *OTHER_EXTENSIONS)  # one annotated clip may be found under any of them


def split(
    annotations: Annotations, usable: np.ndarray, shares: Sequence[float], seed: int, stratify: bool,
    folder: Path, force: bool,
) -> dict[str, int]:  # fmt: skip
    """Write STEM_train.json, STEM_valid.json and STEM_test.json in `folder`; returns the entries in each.

    `usable`: [entries] which of them to take. `shares`: of the entries, one per file; a file with
    share 0 is not written. Entries stand as in the source and in its order. `stratify`: shares are
    met within each task; a group belongs to the task that most of its entries have. A group that is
    larger than the smallest share (speaker verification chains clips into large ones) comes first,
    that is into training as far as that reaches, and is warned of. Raises UserError for bad shares,
    a split without entries, and files that hold something else already unless `force`.
    """
    check_shares(shares)
    files = [split_file(annotations.path, name, folder) for name in SPLITS]
    membership = assign(annotations, usable, shares, seed, stratify)
    counts = {name: int((membership == k).sum()) for k, name in enumerate(SPLITS)}
    written = {k: files[k] for k, share in enumerate(shares) if share > 0}
    for k, file in enumerate(files):
        if k in written and not counts[SPLITS[k]]:
            raise UserError(f"{file} would have no entries with a share of {shares[k]}; give it a larger one, or 0")
        if k not in written and file.exists():
            logging.warning("%s is of an earlier split; it may share clips with the new files", file)
    _write_files(annotations, membership, written, force)
    return counts


def add_split(add: Callable[..., Any], how: str) -> None:
    """The options --split and --seed of a command whose parser this `add` is of."""
    add("--split", nargs=3, type=float, metavar=("TRAIN", "VALID", "TEST"), help=f"{how}, such as 0.9 0.1 0")
    add("--seed", type=int, default=42, metavar="N", help="of --split (default: %(default)s)")


def check_shares(shares: Sequence[float]) -> None:
    """Raise UserError unless they are three numbers >= 0 with the sum 1."""
    good = len(shares) == len(SPLITS) and all(share >= 0 for share in shares)  # NaN is not >= 0
    if not (good and math.isclose(sum(shares), 1, rel_tol=0, abs_tol=1e-6)):
        raise UserError(
            f"shares of {'/'.join(SPLITS)} must be three numbers >= 0 with the sum 1, as --split 0.9 0.1 0, got "
            f"{list(shares)}"
        )


def assign(
    annotations: Annotations, usable: np.ndarray, shares: Sequence[float], seed: int, stratify: bool
) -> np.ndarray:
    """[entries] int8: the split of each by its number in SPLITS; -1 for those that are not usable."""
    if usable.shape != (len(annotations),) or not usable.any():
        raise UserError(f"{annotations.path}: {usable.sum()} usable of {len(annotations)} entries, nothing to split")
    group_of, leaders, task_of = _groups(annotations, usable)  # [usable], [groups], [usable]
    sizes = np.bincount(group_of)
    stratum_of = _main_tasks(group_of, task_of) if stratify else np.zeros(len(sizes), np.int64)  # [groups]
    order_of = np.array([_digest(f"{seed}:{leader}") for leader in leaders.tolist()], np.uint64)
    split_of = np.empty(len(sizes), np.int8)
    for stratum in np.unique(stratum_of):
        groups = np.flatnonzero(stratum_of == stratum)
        limit = min(share for share in shares if share > 0) * sizes[groups].sum()
        large = (sizes[groups] > limit) & (sizes[groups] > 1)
        if large.any():
            text = "%s: %d groups of clips are larger than the smallest share (%d of %d entries); they go into training"
            logging.warning(text, annotations.path, large.sum(), sizes[groups].max(), sizes[groups].sum())
        groups = groups[np.lexsort((leaders[groups], order_of[groups], ~large))]
        ends = np.cumsum(sizes[groups])
        middles = (ends - sizes[groups] / 2) / ends[-1]
        split_of[groups] = np.searchsorted(np.cumsum(shares)[:-1] / sum(shares), middles, side="right")
    membership = np.full(len(annotations), -1, np.int8)
    membership[usable] = split_of[group_of]
    return membership


def _groups(annotations: Annotations, usable: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Group [usable] of each usable entry, leading clip [groups] uint64, and task [usable], numbered by name.

    A clip is a 64-bit hash of its name: two of millions may meet once in a million files, and are
    then kept together without need. A group is led by its clip with the smallest hash.
    """
    tasks: dict[str, int] = {}
    clips, task_of, owners, partners = array("Q"), array("q"), array("q"), array("Q")
    for is_usable, entry in zip(usable.tolist(), annotations.entries(), strict=True):
        if is_usable:
            for clip in entry.expand_wav or ():
                owners.append(len(clips))
                partners.append(_digest(clip_name(clip)))
            clips.append(_digest(clip_name(entry.path)))
            task_of.append(tasks.setdefault(entry.task or DEFAULT_TASK, len(tasks)))
    n = len(clips)
    names, numbers = np.unique(np.concatenate([np.array(clips), np.array(partners)]), return_inverse=True)
    roots = _connect(len(names), numbers[np.array(owners)], numbers[n:])
    leaders, group_of = np.unique(roots[numbers[:n]], return_inverse=True)
    ranks = np.argsort(np.argsort(list(tasks)))
    return group_of, names[leaders], ranks[np.array(task_of)]


def _connect(n: int, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """[n] the smallest number that each is connected with by the pairs (left, right): union-find."""
    parents = array("q", range(n))

    def root(i: int) -> int:
        while parents[i] != i:
            parents[i] = i = parents[parents[i]]
        return i

    for a, b in zip(left.tolist(), right.tolist(), strict=True):
        a, b = root(a), root(b)
        parents[max(a, b)] = min(a, b)
    return np.fromiter((root(i) for i in range(n)), np.int64, n)


def _main_tasks(group_of: np.ndarray, task_of: np.ndarray) -> np.ndarray:
    """[groups] the most frequent task of each group's entries; of equally frequent ones the first by name."""
    n_tasks = int(task_of.max()) + 1
    pairs, counts = np.unique(group_of * n_tasks + task_of, return_counts=True)
    groups, tasks = np.divmod(pairs, n_tasks)
    best_first = np.lexsort((tasks, -counts, groups))
    return tasks[best_first[np.unique(groups[best_first], return_index=True)[1]]]


def clip_name(clip: str) -> str:
    """One name for the ways to annotate a clip: released folder, leading slash, another extension, (de)composed."""
    for mapping in RELEASED_PATH_MAP:
        clip = clip.removeprefix(mapping["from"])
    if not clip.isascii():
        clip = unicodedata.normalize("NFC", clip)
    if "//" in clip or "/." in clip or clip.startswith("."):
        clip = os.path.normpath(clip)
    stem, extension = os.path.splitext(clip.lstrip("/"))
    return stem if extension.lower() in _EXTENSIONS else stem + extension


def _digest(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def told_split(counts: Mapping[str, int], path: Path, folder: Path, seed: int) -> str:
    """Each file that `split` wrote, with its entries."""
    files = [
        f"   {split_file(path, name, folder)}: {counted(n, 'entry', 'entries')}" for name, n in counts.items() if n
    ]
    return "\n".join([f"split by clips, seed {seed}:", *files])


def split_file(annotation: Path, name: str, folder: Path) -> Path:
    """Where the part of an annotation file goes that is called train, valid or test."""
    return folder / f"{stem_of(annotation)}_{name}.json"


def stem_of(path: Path) -> str:
    """The name of an annotation file without .json or .json.gz."""
    return path.name.removesuffix(".gz").removesuffix(".json")


def write_entries(file: Path, entries: Iterable[bytes | msgspec.Raw]) -> None:
    """Write an annotation file, an entry at a time."""
    with file.open("wb") as output:
        for i, entry in enumerate(entries):
            output.write(b",\n" if i else b'{"annotation": [\n')
            output.write(entry)
        output.write(b"\n]}\n")


def _write_files(annotations: Annotations, membership: np.ndarray, files: dict[int, Path], force: bool) -> None:
    """Write the entries of each split to its file: all of the files, or none.

    Killed between the files, the same command finds some of them there: as they shall be, so they may be.
    """
    try:
        with ExitStack() as stack:  # which renames them when all are written
            others = []
            for k, file in files.items():
                clear_unfinished_of(file)
                entries = zip(annotations.raw_entries(), (membership == k).tolist(), strict=True)
                new = stack.enter_context(replacing(file))
                write_entries(new, (raw for raw, chosen in entries if chosen))
                if not force and file.exists() and not filecmp.cmp(new, file, shallow=False):
                    others.append(str(file))
            if others:
                raise UserError(f"{', '.join(others)} would be overwritten; move it away or force it")
    except OSError as error:
        raise UserError(f"split of {annotations.path} cannot be written: {error}") from error
