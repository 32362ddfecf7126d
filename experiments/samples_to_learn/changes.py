"""What a recipe changes that no key of the configuration does: connector, loss, order of the data.

It acts on a model or a data set that is there already, and adds no parameter: checkpoints fit as before.
"""

import copy
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from statistics import median
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from salmonn.audio.decode import load_clip
from salmonn.common.errors import UserError
from salmonn.common.samples import Samples
from salmonn.data import dataset as dataset_module
from salmonn.data.dataset import SALMONNDataset
from salmonn.model.encoders import EncoderOutputs
from salmonn.model.llm_input import tokenize
from salmonn.model.loss import vocabulary_logits
from salmonn.model.salmonn import SALMONN

SPAN = 5  # encoder frames that are dropped together: 0.1 s
SHORT = "short"


def normalise_audio_tokens(model: SALMONN) -> None:
    """A LayerNorm without weights behind the projection, as large as the LLM's embeddings are on average."""
    table = model.llama_model.get_input_embeddings().weight
    size = table.float().square().mean().sqrt().item()
    model.speech_llama_proj.register_forward_hook(
        lambda _module, _inputs, tokens: size * F.layer_norm(tokens, tokens.shape[-1:])
    )


def drop_frames(model: SALMONN, share: float) -> None:
    """In training, zero about this share of the frames that the connector hears, in spans of both encoders' frames."""
    connector, fuse = model.connector, model.connector.fuse

    def fuse_some(encoded: EncoderOutputs) -> Tensor:
        features = fuse(encoded)
        if not model.training:
            return features
        clips, frames = features.shape[:2]
        return features.masked_fill(dropped_frames(clips, frames, share)[..., None].to(features.device), 0.0)

    connector.fuse = fuse_some  # type: ignore[method-assign]


def dropped_frames(clips: int, frames: int, share: float) -> Tensor:
    """[B, T] True in spans that begin anywhere and may overlap: on average this share of all."""
    begins = torch.rand(clips, frames + SPAN - 1) < 1 - (1 - share) ** (1 / SPAN)
    return begins.unfold(1, SPAN, 1).any(dim=-1)


def distil(model: SALMONN, weight: float) -> None:
    """Add to the training's loss the KL between what the LLM says of the text and what it says of the audio."""
    model.loss_of_batch = partial(distilled_loss, model, weight)  # type: ignore[method-assign]


def distilled_loss(model: SALMONN, weight: float, embeds: Sequence[Tensor], samples: Samples) -> dict[str, Tensor]:
    """Loss, number of tokens and cut targets of a batch, as `answer_loss`.

    The teacher is the LLM without LoRA, with the text's own embeddings where the audio stands.
    """
    chosen, texts = samples.get("prompts") or model.choose_prompts(samples), samples["text"]
    logits, ids, cut = target_logits(model, embeds, chosen, texts)
    table = model.llama_model.get_input_embeddings()
    as_text = [table(torch.tensor(tokens, device=model.device)) for tokens in tokenize(model.tokenizer, texts)]
    with torch.no_grad(), without_lora(model):
        expected, _, _ = target_logits(model, as_text, chosen, texts)
    learned = F.kl_div(logits.log_softmax(-1), expected.log_softmax(-1), log_target=True, reduction="batchmean")
    counts = {"total": len(ids), "cut": cut}
    loss = F.cross_entropy(logits, ids) + weight * learned
    return {"loss": loss, **{key: torch.full((), value, device=model.device) for key, value in counts.items()}}


def target_logits(
    model: SALMONN, embeds: Sequence[Tensor], chosen: Sequence[str] | None, texts: Sequence[str]
) -> tuple[Tensor, Tensor, int]:
    """Logits [N, V] and ids [N] of all target tokens, and how many texts are cut."""
    hidden, ids, _, cut = model.target_states(embeds, chosen, texts)
    return vocabulary_logits(model._causal_lm(), hidden), ids, cut


@contextmanager
def without_lora(model: SALMONN) -> Iterator[None]:
    """Inside, the adapters add nothing."""
    scaling = model.lora_scaling
    model.lora_scaling = 0.0
    try:
        yield
    finally:
        model.lora_scaling = scaling


def easier(dataset: SALMONNDataset, what: str) -> SALMONNDataset:
    """The part of a data set that a curriculum begins with: a task, or of each task the shorter half of its texts."""
    entries = [dataset.annotations[number] for number in dataset.usable.tolist()]
    lengths: dict[str, list[int]] = defaultdict(list)
    for entry in entries:
        lengths[entry["task"]].append(len(entry["text"]))
    middle = {task: median(of) for task, of in lengths.items()}
    most = middle if what == SHORT else {what: math.inf}
    part = copy.copy(dataset)
    part.usable = dataset.usable[[len(entry["text"]) <= most.get(entry["task"], -1) for entry in entries]]
    if not len(part):
        raise UserError(f"curriculum: {what} is none of {SHORT}, {', '.join(middle)}, which the training data has")
    return part


@contextmanager
def clips_kept() -> Iterator[None]:
    """Inside, a run that loads by itself decodes no clip that this process has decoded before; about 60 kB a second."""
    with mock.patch.object(dataset_module, "load_clip", lambda paths, *how: _decoded(tuple(paths), *how)):
        yield


@cache
def _decoded(paths: tuple[str, ...], *how: Any) -> np.ndarray:
    return load_clip(list(paths), *how)
