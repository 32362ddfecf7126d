"""The LLM's input: BOS, prompt up to the audio, audio, rest of the prompt, target.

The pieces are tokenised separately and without special tokens, as published. Padding stands on one
outer side of a row and never inside it: then a row's result is that of the row alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from salmonn.common.errors import UserError
from salmonn.model.prompts import split_prompt


class LLMInputs(NamedTuple):
    """What stands where in a batch of sequences; all [B, L]."""

    token_ids: Tensor  # 0 where audio or padding stands
    is_audio: Tensor
    is_target: Tensor
    is_used: Tensor  # not padding


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, without special tokens."""
    return tokenizer(list(texts), add_special_tokens=False).input_ids


def build_llm_inputs(
    tokenizer: PreTrainedTokenizerBase,
    n_audio: Sequence[int],
    chosen: Sequence[str] | None,
    targets: Sequence[list[int]],
    left_padded: bool = False,
) -> LLMInputs:
    """Lay out one row per target around its `n_audio` audio tokens; without prompts the audio stands alone.

    Padding on the left is for generation, on the right for training. Raises UserError for prompts
    that do not hold the audio's marker once, or that are not one per row.
    """
    if isinstance(chosen, str):
        raise UserError("prompts must be a list with one string per clip, got a string")
    halves = [("", "")] * len(targets) if chosen is None else [split_prompt(prompt) for prompt in chosen]
    if len(halves) != len(targets):
        raise UserError(f"{len(halves)} prompts for {len(targets)} clips: give one per clip")
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    before = [bos + ids for ids in tokenize(tokenizer, [half[0] for half in halves])]
    after = tokenize(tokenizer, [half[1] for half in halves])
    parts = [*zip(before, n_audio, after, targets, strict=True)]
    lengths = [len(b) + n + len(a) + len(t) for b, n, a, t in parts]
    width = max(lengths)

    token_ids = torch.zeros(len(targets), width, dtype=torch.long)
    is_audio, is_target, is_used = (torch.zeros(len(targets), width, dtype=torch.bool) for _ in range(3))
    for i, ((b, n, a, t), length) in enumerate(zip(parts, lengths, strict=True)):
        start = width - length if left_padded else 0
        end, audio = start + length, start + len(b)
        token_ids[i, start:end] = torch.tensor(b + [0] * n + a + t)
        is_audio[i, audio : audio + n] = True
        is_target[i, end - len(t) : end] = True
        is_used[i, start:end] = True
    return LLMInputs(token_ids, is_audio, is_target, is_used)
