"""The media files that a run met and could not use: listed, counted, and too many of them end the run."""

import logging
from pathlib import Path

from salmonn.common import distributed
from salmonn.common.samples import Samples
from salmonn.data.integrity import Verdict, VerdictList, write_verdicts

logger = logging.getLogger(__name__)

MIN_TRIED = 500  # entries before which no share is judged
_SHOWN = 3  # files that are named in the log; all of them are in the list


class Quarantine:
    """`quarantine.jsonl` in a run's folder: a verdict per file, to be read and fed back (datasets.quarantine)."""

    def __init__(self, folder: Path, max_bad_fraction: float = 1.0) -> None:
        self.list = VerdictList(folder / "quarantine.jsonl")
        self.max_bad_fraction = max_bad_fraction
        self.tried, self.unreadable = 0, 0  # entries, over all ranks
        self._before = 0, 0  # the same when this run was taken up: what could not be read then may be there again
        self.files: dict[str, Verdict] = {}  # over all ranks
        self.passing: dict[str, Verdict] = {}  # what the system could not read when its turn came: in no list
        self._new: list[Verdict] = []
        self._new_tried, self._new_unreadable = 0, 0
        self._unwritten: list[Verdict] = []

    def take_over(self, earlier: str | Path) -> None:
        """Start the list with that of an earlier run, so that the last list is the whole one."""
        with self.list.append_to() as file:
            write_verdicts(file, [verdict for verdict in VerdictList(earlier).read() if not verdict.is_passing])

    def go_on(self, tried: int, unreadable: int) -> None:
        """Take up the counters and the list of a run that goes on."""
        self.tried, self.unreadable = self._before = tried, unreadable
        if self.list.path.exists():
            self.files = {verdict.path: verdict for verdict in self.list.read(is_given=False) if not verdict.is_passing}

    def add(self, samples: Samples, judged: bool = True) -> None:
        """Take what a batch of this rank reports; `judged`: it counts for the share that ends a run."""
        self._new += samples["unreadable"]
        if judged:
            self._new_tried += samples["tried"]
            self._new_unreadable += len(samples["unreadable"])

    def sync(self) -> dict[str, int | float]:
        """Join what is new on all ranks (each must call), write it down, and return the counters."""
        new, self._unwritten = self._unwritten, []
        passing: list[Verdict] = []
        for verdicts, tried, unreadable in distributed.gather_objects(
            (self._new, self._new_tried, self._new_unreadable)
        ):
            self.tried += tried
            self.unreadable += unreadable
            for verdict in verdicts:
                known, unknown = (self.passing, passing) if verdict.is_passing else (self.files, new)
                if verdict.path not in known:
                    known[verdict.path] = verdict
                    unknown.append(verdict)
        self._new, self._new_tried, self._new_unreadable = [], 0, 0
        if distributed.is_main() and (new or not self.list.path.exists()):
            self._write(new)
        self._name(new)
        for verdict in passing[: max(0, _SHOWN - len(self.passing) + len(passing))]:
            logger.warning(
                "not read now, and looked at again when its turn comes: %s: %s", verdict.path, verdict.reason
            )
        counters: dict[str, int | float] = {"tried": self.tried, "bad": self.unreadable, "bad_files": len(self.files)}
        return counters | ({"passing_files": len(self.passing)} if self.passing else {})

    def _write(self, verdicts: list[Verdict]) -> None:
        try:
            with self.list.append_to() as file:
                write_verdicts(file, verdicts)
        except OSError as error:
            logger.warning("%s could not be written: %s; training goes on", self.list.path, error)
            self._unwritten = verdicts

    def _name(self, new: list[Verdict]) -> None:
        before = len(self.files) - len(new)
        for verdict in new[: max(0, _SHOWN - before)]:
            logger.info("unreadable file %s: %s", verdict.path, verdict.reason)
        if before < _SHOWN <= len(self.files):
            logger.info("further unreadable files go without a line here; %s lists them all", self.list.path)

    def too_many(self) -> str:
        """What to tell when, since this run began or was taken up, the share of bad entries is too large; else ""."""
        tried, unreadable = self.tried - self._before[0], self.unreadable - self._before[1]
        if tried < MIN_TRIED or unreadable <= self.max_bad_fraction * tried:
            return ""
        found = [*self.files.values(), *self.passing.values()]
        examples = "".join(f"\n  {verdict.path}: {verdict.reason}" for verdict in found[:_SHOWN])
        passing = (
            f"\n{len(self.passing)} of the files could not be read by the system and are in no list: see to "
            f"permissions, open files (ulimit -n), memory and the disk, and start again."
        )
        return (
            f"{unreadable} of the {tried} entries tried so far could not be used, more than "
            f"datasets.max_bad_fraction = {self.max_bad_fraction:g} allows, e.g.{examples}\n"
            f"Broken files are in {self.list.path}. Leave them out from the start: datasets.integrity=decode, or "
            f"util/anns_inspector.py --check-integrity and datasets.integrity=verified; or allow more."
            + (passing if self.passing else "")
        )
