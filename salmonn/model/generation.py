"""Generation: settings of the library's search, prefill once for all beams, token ids to an answer, times of tokens."""

from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from transformers import (
    Cache,
    DynamicCache,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
)
from transformers.cache_utils import DynamicLayer

from salmonn.common.device import now

ROOM = 32  # tokens of an answer for which room is made at once
TOP_K = 50  # when sampling; the library's default at the time of the published code


def search_settings(settings: DictConfig, bos_id: int | None, end_id: int) -> dict[str, Any]:
    """Keyword arguments of transformers' `generate`: every setting is ours, none the LLM folder's."""
    sampling = {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": TOP_K}
    config = GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        min_new_tokens=max(0, settings.min_length - 1) or None,  # published lengths count BOS
        num_beams=settings.num_beams,
        do_sample=settings.do_sample,
        bos_token_id=bos_id,
        eos_token_id=end_id,
        pad_token_id=end_id,
        use_cache=True,
        **(sampling if settings.do_sample else {}),
        **({"length_penalty": settings.length_penalty} if settings.num_beams > 1 else {}),
    )
    processors = LogitsProcessorList()
    if settings.repetition_penalty != 1.0:
        # As a field of the config it would spare as many tokens of a row as stand in its padding.
        processors.append(RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
    return {"generation_config": config, "logits_processor": processors}


def of_length(settings: DictConfig, new_tokens: int) -> DictConfig:
    """The settings with answers of exactly that length; `min_length` counts BOS, as published."""
    return OmegaConf.merge(settings, {"max_new_tokens": new_tokens, "min_length": new_tokens + 1})


def answer(ids: list[int], tokenizer: PreTrainedTokenizerBase, end_id: int) -> dict[str, Any]:
    """{"text" without special tokens, "token_ids" up to and with the end symbol, "finished": it was seen}."""
    finished = end_id in ids
    n_text = ids.index(end_id) if finished else len(ids)  # the end symbol need not be a special token of the LLM
    text = tokenizer.decode(ids[:n_text], skip_special_tokens=True).strip()
    return {"text": text, "token_ids": ids[: n_text + 1], "finished": finished}  # what follows is padding


@torch.no_grad()
def prefill(llm: PreTrainedModel, inputs: Tensor, is_used: Tensor, num_beams: int) -> Cache:
    """Keys and values of all but each prompt's last position, for the library's search to go on from.

    inputs [B, L, H], is_used [B, L] False = padding on the left; the cache has B * num_beams rows.
    The library itself would read every prompt once for each beam.
    """
    positions = (is_used.cumsum(dim=1) - 1).clamp(min=0)  # [B, L]
    cache = DynamicCache(config=llm.config)
    llm.get_decoder()(
        inputs_embeds=inputs[:, :-1],
        attention_mask=is_used[:, :-1].long(),
        position_ids=positions[:, :-1],
        past_key_values=cache,
        use_cache=True,
    )
    for i, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[i] = BeamsLayer(layer, num_beams)
        else:  # windows that slide
            layer.batch_repeat_interleave(num_beams)
    return cache


class BeamsLayer(DynamicLayer):
    """A layer's keys and values with room for an answer: a further token copies nothing, other beams no prompts.

    The library's own layer copies all of it for each token, and once more where beams are put in another order.
    """

    def __init__(self, prompts: DynamicLayer, num_beams: int) -> None:
        super().__init__()
        self.lazy_initialization(prompts.keys, prompts.values)
        self.n_prompt = prompts.get_seq_length()
        self.whole: list[Tensor] = [x.repeat_interleave(num_beams, dim=0) for x in (prompts.keys, prompts.values)]
        self.keys, self.values = self.whole

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """All keys and values [B, H, L, D], the new ones behind the others."""
        begin = self.get_seq_length()
        end = begin + key_states.shape[-2]
        if end > self.whole[0].shape[-2]:
            self.whole = [F.pad(x[..., :begin, :], (0, 0, 0, end - begin + ROOM)) for x in self.whole]
        for x, new in zip(self.whole, (key_states, value_states), strict=True):
            x[..., begin:end, :] = new
        keys, values = (x[..., :end, :] for x in self.whole)
        self.keys, self.values = keys, values
        return keys, values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Beams change places among those of their row, whose prompt is the same."""
        for x in self.whole:
            answers = x[..., self.n_prompt : self.get_seq_length(), :]
            answers.copy_(answers.index_select(0, beam_idx.to(x.device)))


class TokenClock(StoppingCriteria):
    """Notes when each token is there, the GPU's work done; never stops anything."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.times: list[float] = []  # s, of time.perf_counter

    def __call__(self, input_ids: Tensor, _scores: Tensor, **_: Any) -> Tensor:
        self.times.append(now(self.device))  # input_ids [B, L]; returns [B]
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
