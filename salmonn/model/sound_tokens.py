"""How a clip sounds, for an LLM that reads what is spelled and would hear nothing else: `model.sound_seconds`.

Of each stretch of a clip the mean of both encoders' features, through one matrix (not in the paper).

Shapes: K encoder frames of a clip, C the width of their features, S stretches, H the LLM's width.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from salmonn.model.qformer import window_frames


def sound_projection(width: int, llm_width: int, embedding_norm: Tensor) -> nn.Linear:
    """From features [C] to the LLM's input embeddings [H], at first of their size or less."""
    projection = nn.Linear(width, llm_width)
    with torch.no_grad():
        projection.weight.normal_().mul_(embedding_norm.to(projection.weight.device) / math.sqrt(width * llm_width))
        projection.bias.zero_()
    return projection


def sound_tokens(clips: Sequence[Tensor], seconds: float, projection: nn.Module) -> list[Tensor]:
    """Tokens [S, H] of each clip's features [K, C]: equal stretches, about so long, one of a shorter clip."""
    stretches = [clip.tensor_split(n_stretches(len(clip), seconds)) for clip in clips]
    means = torch.stack([stretch.mean(dim=0) for clip in stretches for stretch in clip])
    return [*projection(means).split([len(clip) for clip in stretches])]


def n_stretches(frames: int, seconds: float) -> int:
    """Stretches S of a clip of so many encoder frames."""
    return max(1, round(frames / window_frames(seconds)))
