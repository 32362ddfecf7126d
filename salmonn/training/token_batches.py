"""Micro-batches of as many clips as a budget of the LLM's tokens takes: `run.batch_tokens`.

A step holds the clips that it would hold without, and its mean over target tokens is the same; only how many are
computed at once follows from how long they are: audio, prompt and target together.
"""

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from salmonn.common import distributed
from salmonn.common.samples import Samples
from salmonn.data.collate import collate
from salmonn.model.salmonn import SALMONN


class Budget(NamedTuple):
    """What a micro-batch holds at most."""

    tokens: int  # of the LLM, padding counted; a clip that has more comes alone
    clips: int = sys.maxsize


def micro_batches(model: SALMONN, loaded: Sequence[Samples], budget: Budget) -> list[Samples]:
    """The loaded clips of a step, the longest first, in micro-batches within the budget.

    Each rank, and all must ask, gets equally many, at the end perhaps some without an "id", which count for nothing.
    The prompts are drawn here: they count, too.
    """
    items = [item for samples in loaded for item in _items(samples)]
    # of the whole step no batch is made: it would copy all of its audio
    text, task, questions = ([item[key] for item in items] for key in ("text", "task", "Q"))
    prompts = model.choose_prompts({"task": task, "Q": questions})
    lengths = input_lengths(model, [len(item["raw_wav"]) for item in items], prompts, text)
    n = max(distributed.gather_objects(len(cut(lengths, budget))))
    cuts = cut(lengths, budget, min(n, len(items)))
    batches = [collate([items[i] for i in places], pinned=torch.cuda.is_initialized()) for places in cuts]
    for batch, places in zip(batches, cuts, strict=True):
        if prompts:
            batch["prompts"] = [prompts[i] for i in places]
    # where clips are unreadable there may be fewer than another rank needs, which must not wait for this one
    return batches + [{**batches[-1], "id": []}] * (n - len(batches))


def input_lengths(
    model: SALMONN, n_samples: Sequence[int], prompts: Sequence[str] | None, texts: Sequence[str]
) -> list[int]:
    """Tokens of the LLM's input for clips of so many samples, before they are heard."""
    return model.lay_out(model.n_audio_tokens(n_samples), prompts, texts)[0].is_used.sum(dim=1).tolist()


def cut(lengths: Sequence[int], budget: Budget, at_least: int = 1) -> list[list[int]]:
    """Places of the lengths, the longest first, in as few stretches as the budget allows, or `at_least`.

    A stretch of k places costs k times its longest, which is more than the budget's only where k is 1.
    """
    stretches: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        last = stretches[-1] if stretches else []
        if last and len(last) < budget.clips and (len(last) + 1) * lengths[last[0]] <= budget.tokens:
            last.append(place)
        else:
            stretches.append([place])
    while len(stretches) < at_least:  # another rank needs more: the one with the most is halved
        i = max(range(len(stretches)), key=lambda i: len(stretches[i]))
        half = (len(stretches[i]) + 1) // 2
        stretches[i : i + 1] = [stretches[i][:half], stretches[i][half:]]
    return stretches


def _items(samples: Samples) -> list[dict[str, Any]]:
    """The clips of a batch as they were before they were padded; what could not be read is counted already."""
    names = ("text", "task", "Q", "id", "index", "testset_id")
    n_samples = (~samples["padding_mask"]).sum(dim=1).tolist()
    return [
        {"raw_wav": samples["raw_wav"][i, :n].numpy(), "unreadable": [], "tried": 0}
        | {name: samples[name][i] for name in names}  # type: ignore[literal-required]
        for i, n in enumerate(n_samples)
    ]
