"""Validation: loss and token accuracy, beside the same with the audio shuffled between samples.

When the two stay equal the model does not listen: it has learned the language model's prior over
answers and nothing from the audio (the plateau on which public reproductions stayed unknowingly).
"""

import logging
import random
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from salmonn import distributed, prompts
from salmonn.errors import UserError
from salmonn.model import SALMONN
from salmonn.quarantine import Quarantine

logger = logging.getLogger(__name__)


@torch.no_grad()
def validate(model: SALMONN, batches: Iterable[dict[str, Any]], quarantine: Quarantine) -> dict[str, float | None]:
    """Score this rank's batches, sum over all ranks.

    Loss is the mean over samples, accuracy over tokens, as published; a sample's loss is that of a
    batch of one, so batch size and number of ranks do not matter for these two. The shuffled values
    need another clip in the same batch; they are None where no sample had one.
    """
    model.eval()
    sums = torch.zeros(8, dtype=torch.float64)  # loss, samples, correct, tokens; the same for shuffled audio
    for samples in batches:
        quarantine.add(samples, judged=False)
        if not samples["text"]:
            continue
        embeds, _ = model.encode_speech(samples["raw_wav"], samples["padding_mask"])
        chosen, texts = fixed_prompts(model, samples), samples["text"]
        sums[:4] += _count(model.answer_loss(embeds, chosen, texts))
        rows, partners = swap_partners(samples["id"])
        if rows:
            prompts_of_rows = None if chosen is None else [chosen[i] for i in rows]
            sums[4:] += _count(model.answer_loss(embeds[partners], prompts_of_rows, [texts[i] for i in rows]))
    sums = distributed.sum_over_ranks(sums.to(model.device)).tolist()
    if sums[1] == 0:
        raise UserError("no validation clip could be read: check datasets.valid_ann_path and datasets.prefix")
    loss, n, correct, tokens, loss_shuffled, n_shuffled, correct_shuffled, tokens_shuffled = sums
    return {
        "loss": loss / n,
        "accuracy": correct / tokens,
        "loss_shuffled": loss_shuffled / n_shuffled if n_shuffled else None,
        "accuracy_shuffled": correct_shuffled / tokens_shuffled if n_shuffled else None,
    }


def swap_partners(clips: Sequence[str]) -> tuple[list[int], list[int]]:
    """For each row the next one (cyclically) with another clip; rows without such a one are left out.

    Neighbours often share a clip: several captions or tasks of one recording stand side by side.
    """
    rows, partners = [], []
    for i, clip in enumerate(clips):
        others = [j % len(clips) for j in range(i + 1, i + len(clips)) if clips[j % len(clips)] != clip]
        if others:
            rows.append(i)
            partners.append(others[0])
    return rows, partners


def report_listening(result: dict[str, float | None], epoch: int, past_warmup: bool) -> None:
    """Log a validation, and warn while the right audio helps no more than any other."""
    loss, shuffled = result["loss"], result["loss_shuffled"]
    logger.info("epoch %d valid: loss %.4f, token accuracy %.4f", epoch, loss, result["accuracy"])
    if shuffled is None:
        logger.warning("no control with shuffled audio: each batch holds one clip only; raise run.batch_size_eval")
        return
    logger.info("   with the audio shuffled: loss %.4f, token accuracy %.4f", shuffled, result["accuracy_shuffled"])
    if past_warmup and shuffled - loss < 0.01 * loss:
        logger.warning(
            "THE MODEL IS NOT LISTENING: its loss is the same with other clips' audio (%.4f against %.4f). "
            "It answers from the language model's habit alone.",
            loss,
            shuffled,
        )


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
