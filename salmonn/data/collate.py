"""Samples of clips padded to a batch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from salmonn.common.samples import Samples


def pad_wavs(wavs: Sequence[np.ndarray], pinned: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """[N] each -> raw_wav [B, N] zero-padded, padding_mask [B, N] True = padding; `pinned`: quicker to a GPU.

    In NumPy: threads that load run it, and must not take PyTorch's cores from the model.
    """
    lengths = np.array([len(wav) for wav in wavs], dtype=np.int64)
    shape = len(wavs), int(max(lengths, default=0))
    raw_wav = torch.empty(shape, pin_memory=pinned)
    padding_mask = torch.empty(shape, dtype=torch.bool, pin_memory=pinned)
    for row, wav in zip(raw_wav.numpy(), wavs, strict=True):
        row[: len(wav)], row[len(wav) :] = wav, 0
    np.greater_equal(np.arange(shape[1]), lengths[:, None], out=padding_mask.numpy())
    return raw_wav, padding_mask


def collate(items: Sequence[dict[str, Any]], pinned: bool = False) -> Samples:
    """Batch of the readable items, raw_wav [B, N] zero-padded; B may be 0 in evaluation."""
    readable = [item for item in items if item["raw_wav"] is not None]
    raw_wav, padding_mask = pad_wavs([item["raw_wav"] for item in readable], pinned)
    samples: Samples = {
        "raw_wav": raw_wav,
        "padding_mask": padding_mask,
        "unreadable": [verdict for item in items for verdict in item["unreadable"]],
        "left_out": {item["index"]: item["unreadable"][-1].reason for item in items if item["raw_wav"] is None},
        "tried": sum(item["tried"] for item in items),
    }
    for key in ("text", "task", "Q", "id", "index", "testset_id"):
        samples[key] = [item[key] for item in readable]
    return samples
