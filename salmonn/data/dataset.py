"""Samples from annotation files: decode and resample in the loader's workers, features come later.

The workers load this module and what it imports, and not PyTorch, which takes seconds and hundreds of MB.
"""

import os
import random
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from omegaconf import DictConfig

from salmonn.audio.decode import AudioError, load_clip
from salmonn.data.annotations import Annotations
from salmonn.data.clip_paths import ClipPaths
from salmonn.data.integrity import at_second_try, reason_of, unreadable_verdict

MAX_REPLACEMENTS = 100  # unreadable files in a row; after that the item stays without audio


class Entries(Protocol):
    """What samples are taken from: an annotation file, or a list of entries with every field."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]: ...


class SALMONNDataset:
    """One sample per usable annotation entry; an unreadable clip never raises.

    With `replace_unreadable` (training) another entry takes its place, chosen from seed and index
    alone; without (evaluation) the item has no audio. Both report the file.
    """

    def __init__(
        self,
        annotations: Entries,
        clip_paths: ClipPaths,
        max_seconds: float,
        channel: str = "first",
        expand_cut: str = "head",
        replace_unreadable: bool = True,
        seed: int = 0,
        usable: np.ndarray | None = None,
    ) -> None:
        """`max_seconds`: what is heard of a clip; `usable`: numbers of the entries that take part, None = all."""
        self.annotations = annotations
        self.clip_paths = clip_paths
        self.max_seconds = max_seconds
        self.channel, self.expand_cut = channel, expand_cut
        self.replace_unreadable = replace_unreadable
        self.seed = seed
        self.usable = np.arange(len(annotations)) if usable is None else usable

    @classmethod
    def from_config(cls, annotations: Entries, datasets: DictConfig, **kwargs: Any) -> "SALMONNDataset":
        """A dataset with the paths and the decoding that the `datasets` section describes."""
        clip_paths = ClipPaths(datasets.prefix, datasets.path_map)
        return cls(annotations, clip_paths, channel=datasets.channel, expand_cut=datasets.expand_cut, **kwargs)

    def __len__(self) -> int:
        return len(self.usable)

    @property
    def text_lengths(self) -> np.ndarray:
        """[N] characters of each sample's text."""
        if isinstance(self.annotations, Annotations):
            return self.annotations.text_lengths[self.usable]
        return np.array([len(self.annotations[number]["text"]) for number in self.usable.tolist()])

    @property
    def content(self) -> str:
        """What tells this content of the annotation file from another; "" of a list."""
        return self.annotations.content if isinstance(self.annotations, Annotations) else ""

    @property
    def tasks(self) -> list[str]:
        """The tasks of the annotation file."""
        if isinstance(self.annotations, Annotations):
            return list(self.annotations.tasks)
        return sorted({self.annotations[number]["task"] for number in range(len(self.annotations))})

    def paths(self, positions: Sequence[int]) -> list[str]:
        """The annotated paths of samples."""
        return [self.annotations[int(self.usable[position])]["path"] for position in positions]

    def size(self, position: int) -> int:
        """Bytes of a sample's files, about as its length; 0 where they cannot be found."""
        entry = self.annotations[int(self.usable[position])]
        try:
            return sum(map(os.path.getsize, self.clip_paths.of(entry["path"], entry["expand_wav"])))
        except (AudioError, OSError):
            return 0

    def __getitem__(self, position: int) -> dict[str, Any]:
        """{"raw_wav": [N] float32 or None, "text", "task", "Q", "id", "index", "testset_id", "unreadable", "tried"}.

        `index` is the entry's number in the file, `unreadable` the verdicts on the files that failed,
        `tried` how many entries were tried.
        """
        rng = random.Random(f"{self.seed}:{position}")
        item = self._load(int(self.usable[position]))
        unreadable, tried = item["unreadable"], 1
        while item["raw_wav"] is None and self.replace_unreadable and tried < MAX_REPLACEMENTS:
            item = self._load(int(self.usable[rng.randrange(len(self))]))
            unreadable, tried = unreadable + item["unreadable"], tried + 1
        return {**item, "unreadable": unreadable, "tried": tried}

    def _load(self, index: int) -> dict[str, Any]:
        entry = self.annotations[index]
        item = {key: entry[key] for key in ("text", "task", "Q")}
        item |= {"id": entry["path"], "index": index, "testset_id": entry.get("testset_id"), "unreadable": []}
        try:
            paths = self.clip_paths.of(entry["path"], entry["expand_wav"])
            wav = at_second_try(lambda: load_clip(paths, self.max_seconds, self.channel, self.expand_cut))
        except AudioError as error:
            item["unreadable"] = [unreadable_verdict(error.path, reason_of(error))]
            return {**item, "raw_wav": None}
        return {**item, "raw_wav": wav}


def why_silent(sets: Sequence[tuple[SALMONNDataset, Sequence[int]]], number: int) -> str:
    """Why the first of a set's samples, a data set and positions in it, cannot be read, where none can; else ""."""
    dataset, positions = sets[number]
    reason = ""
    for position in positions:
        item = dataset[position]
        if item["raw_wav"] is not None:
            return ""
        reason = reason or item["unreadable"][0].reason
    return reason


def load_items(dataset: SALMONNDataset, positions: Sequence[int]) -> list[dict[str, Any]]:
    """The samples at these positions."""
    return [dataset[position] for position in positions]
