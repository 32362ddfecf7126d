"""Validation: loss and token accuracy, beside the same with the audio shuffled between samples.

When the two stay equal the model does not listen: it has learned the language model's prior over
answers and nothing from the audio (the plateau on which public reproductions stayed unknowingly).
"""

import logging
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from salmonn.common import distributed
from salmonn.common.errors import UserError
from salmonn.common.samples import Samples
from salmonn.data.quarantine import Quarantine
from salmonn.model import prompts
from salmonn.model.alignment import Aligner
from salmonn.model.salmonn import SALMONN

logger = logging.getLogger(__name__)

_MANY_TOO_LONG = 0.05  # of the transcripts; without fewer, such as those of hurried speakers, as much is learned
_SHORTER_WINDOWS = "set model.second_per_window and model.second_stride lower, or model.num_speech_query_token higher"


@torch.no_grad()
def validate(model: SALMONN, batches: Iterable[Samples], quarantine: Quarantine) -> dict[str, Any] | None:
    """Score this rank's batches, sum over all ranks; in `tasks` the same values for each task.

    Loss is the mean over samples, accuracy over tokens, as published; a sample's loss is that of a
    batch of one, so batch size and number of ranks do not matter for these two. The shuffled values
    need another clip in the same batch; they are None where no sample had one. In stage 0 accuracy is 1 - token error
    rate of greedy CTC, beside it the word error rate; transcripts with more tokens than their clip are too_long and
    have no loss.
    Returns None when no clip could be read. Raises UserError where no transcript fits.
    """
    model.eval()
    sums: dict[str, np.ndarray] = defaultdict(_zeros)  # by task
    with model.lending():  # a rank may have a batch more than others
        for samples in batches:
            quarantine.add(samples, judged=False)
            if not samples["text"]:
                continue
            clips = model.encode_clips(samples["raw_wav"], samples["padding_mask"])  # each [A, H]
            chosen = None if isinstance(model, Aligner) else fixed_prompts(model, samples)
            everything = range(len(samples["text"]))
            _add(sums, samples["task"], _score(model, samples["text"], clips, chosen, everything, everything))
            rows, partners = shuffle_partners(samples["id"])
            if rows:
                shuffled = _score(model, samples["text"], clips, chosen, rows, partners)
                _add(sums, [samples["task"][i] for i in rows], shuffled, shuffled=True)
    everywhere: dict[str, np.ndarray] = defaultdict(_zeros)
    for share in distributed.gather_objects(dict(sums)):
        for task, of_task in share.items():
            everywhere[task] += of_task
    if not everywhere:
        return None
    tasks = {task: _means(everywhere[task]) for task in sorted(everywhere)}
    result = _means(sum(everywhere.values(), start=_zeros()))
    if result["loss"] is None:
        raise UserError(f"no validation transcript has a clip with as many audio tokens: {_SHORTER_WINDOWS}")
    return {**result, "tasks": tasks}


def _score(
    model: SALMONN,
    texts: Sequence[str],
    clips: Sequence[torch.Tensor],
    chosen: Sequence[str] | None,
    rows: Sequence[int],
    heard: Sequence[int],
) -> dict[str, torch.Tensor]:
    """What is counted of the texts of `rows`, each behind its prompt of `chosen` and the clip of the row in `heard`."""
    audio, expected = [clips[i] for i in heard], [texts[i] for i in rows]
    if isinstance(model, Aligner):
        return model.ctc_scores(audio, expected)
    return model.answer_loss(audio, None if chosen is None else [chosen[i] for i in rows], expected)


def shuffle_partners(clips: Sequence[str]) -> tuple[list[int], list[int]]:
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


def report_listening(result: dict[str, Any], epoch: int, past_warmup: bool) -> None:
    """Log a validation, and warn while the right audio helps no more than any other."""
    loss, shuffled = result["loss"], result["loss_shuffled"]
    logger.info("epoch %d valid: loss %.4f, token accuracy %.4f", epoch, loss, result["accuracy"])
    for task, values in result["tasks"].items():
        own, control = ("-" if x is None else f"{x:.4f}" for x in (values["loss"], values["loss_shuffled"]))
        logger.info("   %s: loss %s (shuffled %s), accuracy %.4f", task, own, control, values["accuracy"])
    if "word_error_rate" in result:
        _report_ctc(result)
    if shuffled is None:
        logger.warning("no control with shuffled audio: each batch holds one clip only; raise run.batch_size_eval")
        return
    logger.info(
        "   audio shuffled within the batch: loss %.4f, token accuracy %.4f",
        shuffled,
        result["accuracy_shuffled"],
    )
    if past_warmup and shuffled - loss < 0.01 * loss:
        logger.warning(
            "THE MODEL IS NOT LISTENING: its loss is the same with other clips' audio (%.4f against %.4f). "
            "It answers from the language model's habit alone.",
            loss,
            shuffled,
        )


def _report_ctc(result: dict[str, Any]) -> None:
    logger.info(
        "   greedy CTC: word error rate %.1f %%, with shuffled audio %s",
        100 * result["word_error_rate"],
        "-" if (shuffled := result["word_error_rate_shuffled"]) is None else f"{100 * shuffled:.1f} %",
    )


def report_too_long(result: dict[str, Any]) -> None:
    """Log how many of a validation's transcripts have no loss; advice where they are many."""
    n, total = result["too_long"], result["transcripts"]
    told = f"{n} of {total} transcripts ({100 * n / total:.1f} %) have more tokens than their clips have audio tokens"
    if n < _MANY_TOO_LONG * total:
        logger.info("   %s, and teach nothing; so few do no harm", told)
    else:
        logger.warning("%s, and teach nothing: %s", told, _SHORTER_WINDOWS)


def _zeros() -> np.ndarray:
    """Sums of loss, samples with one, correct tokens, tokens, word errors, words, samples: [right, shuffled audio]."""
    return np.zeros((2, 7))


def _add(
    sums: dict[str, np.ndarray], tasks: Sequence[str], result: dict[str, torch.Tensor], shuffled: bool = False
) -> None:
    counts = {"sample_fits": torch.ones(len(tasks)), "word_errors": torch.zeros(len(tasks))}
    counts |= {"words": counts["word_errors"], **result}
    names = ("sample_loss", "sample_fits", "sample_correct", "sample_total", "word_errors", "words")
    columns = [counts[name].double().cpu().numpy() for name in names]
    for task, loss, fits, *others in zip(tasks, *columns, strict=True):
        sums[task][int(shuffled)] += (loss * fits, fits, *others, 1)


def _means(sums: np.ndarray) -> dict[str, float | None]:
    means: dict[str, float | None] = {}
    of_ctc = sums[0, 5] > 0  # words are counted in stage 0 only
    for suffix, (loss, n, correct, tokens, errors, words, _) in zip(("", "_shuffled"), sums.tolist(), strict=True):
        means |= {f"loss{suffix}": loss / n if n else None, f"accuracy{suffix}": correct / tokens if tokens else None}
        if of_ctc:
            means[f"word_error_rate{suffix}"] = errors / words if words else None
    if of_ctc:
        means |= {"too_long": int(sums[0, 6] - sums[0, 1]), "transcripts": int(sums[0, 6])}
    return means


def fixed_prompts(model: SALMONN, samples: Samples) -> list[str] | None:
    """A prompt per sample that depends on its index alone, so that validations can be compared."""
    if not model.train_prompts:
        return None
    chosen = []
    for index, task, question in zip(samples["index"], samples["task"], samples["Q"], strict=True):
        chosen += prompts.choose_prompts(model.train_prompts, [task], [question], random.Random(index))
    return chosen
