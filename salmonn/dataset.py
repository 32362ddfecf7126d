"""Samples from annotation files: decode and resample in the loader's workers, features come later."""

import random
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from salmonn.annotations import Annotations, clip_paths
from salmonn.audio import AudioError, load_clip

MAX_REPLACEMENTS = 100  # broken files in a row; after that the item stays without audio


class SALMONNDataset(Dataset):
    """One sample per annotation entry; an unreadable clip never raises.

    With `replace_broken` (training) another entry takes its place, chosen from seed and index
    alone; without (evaluation) the item says that it is broken. Both report the file.
    """

    def __init__(
        self,
        ann_path: str,
        prefix: str = "",
        max_seconds: float = 30.0,
        replace_broken: bool = True,
        seed: int = 0,
        need_text: bool = True,
    ) -> None:
        self.annotations = Annotations(ann_path, need_text)
        self.prefix = prefix
        self.max_seconds = max_seconds
        self.replace_broken = replace_broken
        self.seed = seed

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """{"raw_wav": [N] float32 or None, "text", "task", "Q", "id", "index", "testset_id", "broken": [...]}."""
        rng = random.Random(f"{self.seed}:{index}")
        broken = []
        for _ in range(MAX_REPLACEMENTS):
            item = self._load(index)
            broken += item["broken"]
            if item["raw_wav"] is not None or not self.replace_broken:
                return {**item, "broken": broken}
            index = rng.randrange(len(self))
        return {**item, "broken": broken}

    def _load(self, index: int) -> dict[str, Any]:
        entry = self.annotations[index]
        item = {key: entry[key] for key in ("text", "task", "Q")}
        item |= {"id": entry["path"], "index": index, "testset_id": entry.get("testset_id"), "broken": []}
        try:
            wav = load_clip(clip_paths(entry, self.prefix), self.max_seconds)
        except AudioError as error:
            item["broken"] = [{"index": index, "path": error.path, "reason": error.reason}]
            return {**item, "raw_wav": None}
        return {**item, "raw_wav": torch.from_numpy(np.ascontiguousarray(wav))}


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Batch of the readable items.

    Returns raw_wav [B, N] zero-padded, padding_mask [B, N] True = padding, lists text, task, Q, id,
    index, testset_id, and the reports of broken files. B may be 0 in evaluation.
    """
    readable = [item for item in items if item["raw_wav"] is not None]
    wavs = [item["raw_wav"] for item in readable]
    raw_wav = pad_sequence(wavs, batch_first=True) if wavs else torch.zeros(0, 0)
    lengths = torch.tensor([len(wav) for wav in wavs])
    samples: dict[str, Any] = {
        "raw_wav": raw_wav,
        "padding_mask": torch.arange(raw_wav.shape[1])[None, :] >= lengths[:, None],
        "broken": [report for item in items for report in item["broken"]],
    }
    for key in ("text", "task", "Q", "id", "index", "testset_id"):
        samples[key] = [item[key] for item in readable]
    return samples
