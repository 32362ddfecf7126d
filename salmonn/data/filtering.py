"""What is left out before training: `datasets.integrity`, quarantine lists that are fed back, overlong clips."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from salmonn.common import distributed
from salmonn.common.errors import UserError
from salmonn.common.processes import n_cores
from salmonn.data.annotations import Annotations
from salmonn.data.clip_paths import ClipPaths, FolderCache
from salmonn.data.integrity import Verdict, check_files, kind_of
from salmonn.data.unreadable import (
    NOT_VERIFIED,
    Exists,
    distinct_files,
    entries_left_out,
    quarantined_files,
    unusable_files,
    unverified_files,
)

logger = logging.getLogger(__name__)

_SHOWN = 20  # rows of the table in the log
_LOOKED_AT = (16, 256)  # clips of which one that can be used is looked for before all are looked at
_ALONE = 256  # clips that are sooner looked at than other processes have started


def usable_entries(annotations: Annotations, datasets: DictConfig, tasks: Sequence[str] | None = None) -> np.ndarray:
    """Numbers [K] of the entries whose clips are not known to be unreadable, the same on every rank.

    `tasks`: only these take part, and only their clips are looked at; None = all. The ranks share the work. What was
    left out is logged by corpus and reason. Raises UserError when nothing is left, or a list of verdicts is not there.
    """
    wanted = _entries_of_tasks(annotations, tasks) if tasks else np.ones(len(annotations), dtype=bool)
    if datasets.integrity == "off" and not datasets.quarantine and not datasets.max_clip_seconds:
        return np.flatnonzero(wanted)
    usable, left_out = _look(annotations, datasets, wanted)
    _report(annotations, int(wanted.sum()), left_out, datasets)
    if not len(usable):
        raise _nothing_usable(annotations, int(wanted.sum()), left_out, datasets)
    return usable


def require_some_usable(annotations: Annotations, datasets: DictConfig, tasks: Sequence[str] | None = None) -> None:
    """Raise UserError, as `usable_entries` does, when no entry's clip can be used, or a list of verdicts is not there.

    Mostly a look at some clips is enough. Also with `datasets.integrity` off, which would find out hours later.
    """
    wanted = annotations.of_tasks(tasks) if tasks else np.ones(len(annotations), dtype=bool)
    looks = OmegaConf.merge(datasets, {"integrity": "header"} if datasets.integrity in ("off", "decode") else {})
    numbers, left_out = np.flatnonzero(wanted), Counter[tuple[str, str]]()
    for n in (*_LOOKED_AT, len(numbers)):
        some = np.zeros_like(wanted)
        some[numbers[np.linspace(0, len(numbers) - 1, min(n, len(numbers)), dtype=int)]] = True
        usable, left_out = _look(annotations, looks, some)
        if len(usable):
            return
    raise _nothing_usable(annotations, len(numbers), left_out, datasets)


def _look(
    annotations: Annotations, datasets: DictConfig, wanted: np.ndarray
) -> tuple[np.ndarray, Counter[tuple[str, str]]]:
    """Numbers of the wanted entries that can be used, and how many cannot by (corpus, reason)."""
    clip_paths, exists = ClipPaths(datasets.prefix, datasets.path_map), FolderCache().exists
    unreadable = _unreadable_files(annotations, clip_paths, datasets, exists, wanted)
    keep = wanted.copy()
    left_out: Counter[tuple[str, str]] = Counter()
    if distributed.is_main():  # what rank 0 finds counts for all
        for i, corpus, reason in entries_left_out(annotations, clip_paths, unreadable, exists, wanted):
            keep[i] = False
            left_out[corpus, reason if reason == NOT_VERIFIED else kind_of(reason)] += 1
    return distributed.from_main((np.flatnonzero(keep), left_out))


def _nothing_usable(
    annotations: Annotations, n: int, left_out: Counter[tuple[str, str]], datasets: DictConfig
) -> UserError:
    (corpus, reason), _ = left_out.most_common(1)[0]
    return UserError(
        f"{annotations.path}: none of the {n} entries can be used, most of them because of "
        f"[{corpus}] {reason}. Check datasets.prefix = {datasets.prefix!r}, and see "
        f"python util/anns_inspector.py --prefix {datasets.prefix or 'DIR'} --ann {annotations.path}"
    )


def _entries_of_tasks(annotations: Annotations, tasks: Sequence[str]) -> np.ndarray:
    """[entries] True where an entry has one of the tasks; says what is left out. Raises UserError where none has."""
    require_tasks(annotations, tasks)
    wanted = annotations.of_tasks(tasks)
    others = {task: n for task, n in annotations.task_counts().items() if task not in tasks}
    left_out = ", ".join(f"{task} {n}" for task, n in others.items()) or "none"
    logger.info(
        "%s: %d of %d entries have a task of run.ctc_tasks (%s); left out: %s",
        annotations.path, wanted.sum(), len(annotations), ", ".join(tasks), left_out,
    )  # fmt: skip
    return wanted


def require_tasks(annotations: Annotations, tasks: Sequence[str]) -> None:
    """Raise UserError unless some entry has one of the tasks."""
    if not annotations.of_tasks(tasks).any():
        raise UserError(
            f"{annotations.path}: none of the {len(annotations)} entries has a task of run.ctc_tasks = "
            f"{', '.join(tasks)}; it has {', '.join(annotations.task_counts())}"
        )


def _unreadable_files(
    annotations: Annotations, clip_paths: ClipPaths, datasets: DictConfig, exists: Exists, wanted: np.ndarray
) -> dict[str, str]:
    """{file: reason}, joined over the ranks, each of which looks at its share of the files."""
    rank, world_size = distributed.rank(), distributed.world_size()
    files = list(distinct_files(annotations, clip_paths, exists, wanted))[rank::world_size]
    unreadable = quarantined_files(files, datasets.quarantine) if datasets.quarantine else {}
    there = [file for file in files if exists(file)]
    if datasets.integrity != "off":
        unreadable |= {file: "file does not exist" for file in files if not exists(file)}
    if datasets.integrity == "verified":
        unreadable |= _unverified(datasets, there)
    elif datasets.integrity != "off" or datasets.max_clip_seconds:
        unreadable |= unusable_files(there, datasets.integrity, datasets.max_clip_seconds, _verdicts)
    return {file: reason for share in distributed.gather_objects(unreadable) for file, reason in share.items()}


def _verdicts(files: Sequence[str], how: str) -> Iterator[Verdict]:
    jobs = 1 if len(files) <= _ALONE else max(1, n_cores() // distributed.local_world_size())
    return iter(tqdm(
        check_files(files, how, jobs), desc=f"checking clips ({how})", total=len(files), unit="file", mininterval=1.0,
        delay=1.0, disable=not distributed.is_main(),
    ))  # fmt: skip


def _unverified(datasets: DictConfig, files: list[str]) -> dict[str, str]:
    if not Path(datasets.verdicts).is_file():
        raise UserError(
            f"datasets.integrity = verified needs the verdicts of python util/anns_inspector.py --check-integrity, "
            f"but datasets.verdicts = {datasets.verdicts} does not exist"
        )
    return unverified_files(files, datasets.verdicts, datasets.max_clip_seconds)


def _report(annotations: Annotations, n_wanted: int, left_out: Counter[tuple[str, str]], datasets: DictConfig) -> None:
    n = sum(left_out.values())
    logger.info(
        "%s: %d of %d entries are usable (datasets.integrity: %s)",
        annotations.path, n_wanted - n, n_wanted, datasets.integrity,
    )  # fmt: skip
    for (corpus, reason), count in left_out.most_common(_SHOWN):
        logger.info("   left out [%s] %s: %d", corpus, reason, count)
    if len(left_out) > _SHOWN:
        logger.info("   ... and %d rows more", len(left_out) - _SHOWN)
