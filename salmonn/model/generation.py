"""From a `generate` section to the library's search, and from its token ids to an answer."""

from typing import Any

from omegaconf import DictConfig
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    RepetitionPenaltyLogitsProcessor,
)

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


def answer(ids: list[int], tokenizer: PreTrainedTokenizerBase, end_id: int) -> dict[str, Any]:
    """{"text" without special tokens, "token_ids" up to and with the end symbol, "finished": it was seen}."""
    finished = end_id in ids
    n_text = ids.index(end_id) if finished else len(ids)  # the end symbol need not be a special token of the LLM
    text = tokenizer.decode(ids[:n_text], skip_special_tokens=True).strip()
    return {"text": text, "token_ids": ids[: n_text + 1], "finished": finished}  # what follows is padding
