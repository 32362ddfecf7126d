"""What the model says of options: how likely it finds each in each order, and the answers of one that hears nothing."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

import torch
from omegaconf import DictConfig
from torch import Tensor

from salmonn.common.device import autocast
from salmonn.common.errors import UserError
from salmonn.common.samples import Samples
from salmonn.evaluation.choices import orders, pick, with_options
from salmonn.evaluation.clips import EvalExample
from salmonn.evaluation.metrics.choices import Pick
from salmonn.evaluation.requests import Outcome, Prediction, Request
from salmonn.evaluation.sets import EvalSet
from salmonn.model.prompts import SPEECH_MARKER, fill_question
from salmonn.model.salmonn import SALMONN

_ROWS = 32  # options that are scored at a time, each behind its own prompt and audio


@dataclass(frozen=True)
class OptionLosses(Outcome):
    """How unlikely the model finds each option of a clip, in each order."""

    losses: list[list[float]] = field(
        default_factory=list
    )  # [orders][options, sorted], mean over tokens and end symbol


@torch.no_grad()
def option_losses(
    model: SALMONN, config: DictConfig, one: EvalSet, hears: bool, batch: Samples, heard: Sequence[Request]
) -> list[OptionLosses]:
    """The losses of all options of each clip, with its audio or, where `hears` is False, without any."""
    with autocast(config.run, model.device):
        embeds = model.encode_clips(batch["raw_wav"], batch["padding_mask"]) if hears else _nothing(model, len(heard))
        return [
            _of_clip(model, audio, one.clips[request.position], one.prompts, hears)
            for audio, request in zip(embeds, heard, strict=True)
        ]


def _of_clip(model: SALMONN, audio: Tensor, clip: EvalExample, prompts: Mapping[str, str], hears: bool) -> OptionLosses:
    prompt = prompts[clip.task] if hears else without_audio(prompts[clip.task])
    asked = [fill_question(prompt, with_options(clip.question, order)) for order in orders(clip.choices)]
    rows, losses, n = list(product(asked, sorted(clip.choices))), [], len(clip.choices)
    for begin in range(0, len(rows), _ROWS):
        questions, options = zip(*rows[begin : begin + _ROWS], strict=True)
        losses += model.answer_loss([audio] * len(options), questions, options)["sample_loss"].tolist()
    if not all(map(math.isfinite, losses)):
        raise UserError(
            f"{clip.path} ({clip.id}): the likelihood of an option is not a number; a model that overflows in fp16 "
            "needs run.amp_dtype=bf16 and model.llm_dtype=bfloat16"
        )
    return OptionLosses([losses[begin : begin + n] for begin in range(0, len(losses), n)])


@torch.no_grad()
def generate_unheard(model: SALMONN, config: DictConfig, _: Samples, heard: Sequence[Request]) -> list[Prediction]:
    """The model's text for each request, asked without any audio; the batch says only which clips could be read."""
    prompts = [without_audio(request.prompt) for request in heard]
    with autocast(config.run, model.device):
        details = model.answer_embeds(_nothing(model, len(heard)), prompts, config.generate)
    return [Prediction.of(detail) for detail in details]


def without_audio(prompt: str) -> str:
    """A prompt whose audio has no length, without the marks around it."""
    return prompt.replace(f"<Speech>{SPEECH_MARKER}</Speech>", SPEECH_MARKER)


def _nothing(model: SALMONN, count: int) -> list[Tensor]:
    width = model.llama_model.get_input_embeddings().embedding_dim
    return [torch.zeros(0, width, device=model.device)] * count


def picks_of(
    one: EvalSet, predictions: Mapping[int, Prediction], losses: Mapping[int, OptionLosses]
) -> dict[int, Pick]:
    """{position: pick} of the clips that could be heard, also of those whose right answer is withheld."""
    return {
        position: pick(predictions[position].text, clip.choices, "".join(clip.references[:1]), of_clip.losses)
        for position, of_clip in losses.items()
        if not (of_clip.unreadable or predictions[position].unreadable) and (clip := one.clips[position])
    }
