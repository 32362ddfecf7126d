"""A batch on its way from collate to the metrics."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from torch import Tensor


class Samples(TypedDict, total=False):
    """B clips with what is asked and answered; loaders give all but the last two keys, a caller what is needed."""

    raw_wav: "Tensor"  # [B, N] float32 at 16 kHz, zero where padded
    padding_mask: "Tensor"  # [B, N] True = padding
    text: list[str]  # targets
    task: list[str]
    Q: list[str]  # questions, "" for none
    id: list[str]  # the annotated path of each clip
    index: list[int]  # of the entries in their annotation file
    testset_id: list[Any]
    unreadable: list[Any]  # verdicts (data/integrity.py, which stands above) on the files that failed
    left_out: dict[int, str]  # {index: reason} of the entries whose clips could not be read
    tried: int  # entries
    spectrogram: "Tensor"  # [B, n_mels, frames], where it is computed already
    prompts: Sequence[str]  # complete templated strings that replace the random choice
