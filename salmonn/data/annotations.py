"""Annotation files `{"annotation": [{path, text, task, Q, expand_wav, ...}, ...]}` of any size.

Entries stay where they are, in the file; an index of 24 bytes an entry says where each begins. The
index is memory-mapped and the file is read through the page cache, so that all loader workers of
all ranks on a machine share both, where a list of dicts would be copied into every worker.
"""

import json
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from salmonn.common.errors import UserError
from salmonn.data.annotation_index import open_index
from salmonn.data.annotation_scan import DEFAULT_TASK, Entry, Range, list_problems

_BLOCK = 20_000  # entries that are decoded together


class Annotations:
    """The entries of one annotation file; `annotations[i]` is a dict with the defaults filled in."""

    def __init__(self, path: str | Path, need_text: bool = True, end_sym: str = "") -> None:
        """Open a file by its index, which is made where there is none for this version of the file.

        `end_sym`: what ends an answer, and may stand in no text. Raises UserError that names file, entry and field of
        the first bad entries, and their number.
        """
        self.path, self.need_text = Path(path), need_text
        index = open_index(self.path, end_sym)
        if need_text and index.header.n_without_text:
            problems = [f"entry {i}: no 'text'" for i in index.header.without_text]
            raise UserError(list_problems(path, problems, index.header.n_without_text))
        n, places = index.header.with_symbol.get(end_sym, (0, []))
        if n:
            what = f"holds the end symbol {end_sym!r} (model.end_sym), where an answer would end: take it out"
            raise UserError(list_problems(path, [f"entry {i}: {field!r} {what}" for i, field in places], n))
        self._index = index

    def __len__(self) -> int:
        return len(self._index.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"text": "", "task": DEFAULT_TASK, "Q": "", "expand_wav": [], **self.as_written(index)}

    def as_written(self, index: int) -> dict[str, Any]:
        """An entry with the keys that it has in the file; null stands for an absent key.

        Raises UserError where the file was rewritten since it was opened.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        record = self._index.records[index]
        start = self._index.text_offset + int(record["start"])
        data = os.pread(self._index.text.fileno(), int(record["length"]), start)
        try:
            entry = msgspec.json.decode(data)
        except (msgspec.MsgspecError, RecursionError) as error:
            try:
                entry = json.loads(data)  # takes numbers that the quicker decoder refuses
            except (ValueError, RecursionError):
                raise self._changed(error) from error
        if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
            raise self._changed("another entry stands there")
        return {key: value for key, value in entry.items() if value is not None}

    @property
    def content(self) -> str:
        """What tells this content of the file from another."""
        return self._index.header.content

    @property
    def tasks(self) -> dict[str, int]:
        """The tasks that occur, each with the number of the first entry that has it."""
        numbers, first = np.unique(self._index.records["task"], return_index=True)
        return {self._index.header.tasks[number]: int(i) for number, i in zip(numbers, first, strict=True)}

    def without_question(self, task: str) -> np.ndarray:
        """Numbers of a task's entries that ask nothing: `Q` is absent or blank."""
        return np.flatnonzero(self.of_tasks([task]) & (self._index.records["question"] == 0))

    def longest_question(self, tasks: Collection[str]) -> int:
        """Number of the entry that asks most, by characters, among those of the tasks."""
        return int(np.argmax(self._index.records["question"] * self.of_tasks(tasks)))

    def of_tasks(self, tasks: Collection[str]) -> np.ndarray:
        """[entries] True where an entry has one of the tasks."""
        wanted = [number for number, task in enumerate(self._index.header.tasks) if task in tasks]
        return np.isin(self._index.records["task"], wanted)

    def task_counts(self) -> dict[str, int]:
        """How many entries each task has."""
        counts = np.bincount(self._index.records["task"]).tolist()
        return {self._index.header.tasks[number]: count for number, count in enumerate(counts) if count}

    @property
    def text_lengths(self) -> np.ndarray:
        """[entries] characters of each text."""
        return self._index.records["text"]

    def entries(self) -> Iterator[Entry]:
        """The entries in their order, with the known fields only: far quicker than one by one."""
        return self._blocks(msgspec.json.Decoder(list[Entry]))

    def raw_entries(self) -> Iterator[msgspec.Raw]:
        """The entries in their order, each as the bytes that stand in the file."""
        return self._blocks(msgspec.json.Decoder(list[msgspec.Raw]))

    def _blocks(self, decoder: msgspec.json.Decoder) -> Iterator[Any]:
        for number, (begin, end) in enumerate(self.text_ranges()[1]):
            data = b"[" + os.pread(self._index.text.fileno(), end - begin, begin) + b"]"
            try:
                entries = decoder.decode(data)
            except (msgspec.MsgspecError, RecursionError) as error:
                raise self._changed(error) from error
            if len(entries) != min(_BLOCK, len(self) - number * _BLOCK):
                raise self._changed(f"{len(entries)} entries stand where others were")
            yield from entries

    def text_ranges(self) -> tuple[Path, list[Range]]:
        """The file that holds the text, and the bytes of consecutive blocks of entries in it."""
        records, offset, n = self._index.records, self._index.text_offset, len(self)
        last = np.minimum(np.arange(0, n, _BLOCK) + _BLOCK, n) - 1
        begins, ends = records["start"][::_BLOCK], records["start"][last] + records["length"][last]
        ranges = zip((begins + offset).tolist(), (ends + offset).tolist(), strict=True)
        return self._index.text_path, list(ranges)

    def _changed(self, what: object) -> UserError:
        return UserError(
            f"annotation file {self.path} was changed while it was in use ({what}). Start the same command again: it "
            f"reads the file as it is now, and a run goes on with it if run.resume=auto says so. To change a file "
            f"under a run, write the new one beside it and mv it into its place: what runs keeps the old one"
        )
