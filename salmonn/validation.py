"""Validation: loss and token accuracy, beside the same with the audio shuffled between samples.

When the two stay equal the model does not listen: it has learned the language model's prior over
answers and nothing from the audio (the plateau on which public reproductions stayed unknowingly).
"""

import random
from collections.abc import Iterable
from typing import Any

import torch

from salmonn import distributed, prompts
from salmonn.errors import UserError
from salmonn.model import SALMONN
from salmonn.run_log import SkippedFiles


@torch.no_grad()
def validate(model: SALMONN, batches: Iterable[dict[str, Any]], skipped: SkippedFiles) -> dict[str, float]:
    """Score this rank's batches, sum over all ranks.

    Loss is the mean over samples, accuracy over tokens, as published; a sample's loss is that of a
    batch of one, so batch size and number of ranks do not matter. Batches of a single sample have no
    other audio to swap with and stay out of the shuffled values (nan if there are no others).
    """
    model.eval()
    sums = torch.zeros(8, dtype=torch.float64)  # loss, samples, correct, tokens; the same for shuffled audio
    for samples in batches:
        skipped.add(samples["broken"])
        n = len(samples["text"])
        if n == 0:
            continue
        embeds, _ = model.encode_speech(samples["raw_wav"], samples["padding_mask"])
        chosen = fixed_prompts(model, samples)
        sums[:4] += _count(model.answer_loss(embeds, chosen, samples["text"]))
        if n > 1:
            sums[4:] += _count(model.answer_loss(embeds.roll(1, dims=0), chosen, samples["text"]))
    sums = distributed.sum_over_ranks(sums.to(model.device)).tolist()
    if sums[1] == 0:
        raise UserError("no validation clip could be read: check datasets.valid_ann_path and datasets.prefix")
    loss, samples_seen, correct, tokens, loss_shuffled, shuffled_seen, correct_shuffled, tokens_shuffled = sums
    return {
        "loss": loss / samples_seen,
        "accuracy": correct / tokens,
        "loss_shuffled": loss_shuffled / shuffled_seen if shuffled_seen else float("nan"),
        "accuracy_shuffled": correct_shuffled / tokens_shuffled if shuffled_seen else float("nan"),
    }


def _count(result: dict[str, torch.Tensor]) -> torch.Tensor:
    values = (result["sample_loss"].sum(), len(result["sample_loss"]), result["correct"], result["total"])
    return torch.tensor([float(value) for value in values], dtype=torch.float64)


def fixed_prompts(model: SALMONN, samples: dict[str, Any]) -> list[str] | None:
    """A prompt per sample that depends on its index alone, so that validations can be compared."""
    if not model.train_prompts:
        return None
    chosen = []
    for index, task, question in zip(samples["index"], samples["task"], samples["Q"], strict=True):
        chosen += prompts.choose_prompts(model.train_prompts, [task], [question], random.Random(index))
    return chosen
