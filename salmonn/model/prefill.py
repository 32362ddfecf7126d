"""What the beams of a search have in common: their prompt, read once for all of them."""

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel


@torch.no_grad()
def read_prompts(llm: PreTrainedModel, inputs: Tensor, is_used: Tensor, num_beams: int) -> Cache:
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
    cache.batch_repeat_interleave(num_beams)
    return cache
