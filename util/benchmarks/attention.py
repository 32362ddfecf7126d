"""The library's eager attention against SDPA in one layer of a LLaMA: training short rows, decoding a token."""

import argparse
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from salmonn.model.llm import hidden_at
from salmonn.model.random_model import Shape, llama_shape, random_llm
from util.benchmarks.measure import in_turns, row, spent

LAYERS = {  # by width; the first with the grouped heads of SmolLM2-135M, of which nine share three keys
    "576, 3 of 9 heads": llama_shape(576, 1, 9, 1536, vocab_size=8, num_key_value_heads=3),
    "576, 9 heads": llama_shape(576, 1, 9, 1536, vocab_size=8),
    "1024, 16 heads": llama_shape(1024, 1, 16, 2816, vocab_size=8),
}
BATCHES, ROWS = (4, 8), (60, 120, 240)
BEAMS, CACHED = 4, 150  # tokens before the one that is decoded
ATTENTIONS = ("eager", "sdpa")


def bench_attention(args: argparse.Namespace) -> Iterator[dict]:
    """Rows: the least seconds of forward and backward of rows of a length, and of one token."""
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    yield {"what": "one layer of a LLaMA: forward and backward of some rows, and a token decoded"}
    for name, shape in LAYERS.items():
        llms = [_layer(shape, how, device, dtype) for how in ATTENTIONS]
        what = f"   {name}, {args.dtype}"
        for batch in BATCHES:
            for length in ROWS:
                x = torch.randn(batch, length, shape["hidden_size"], device=device, dtype=dtype)
                ways = [partial(train, llm, x) for llm in llms]
                yield _compared(f"{what}, {batch} rows of {length}", ways, args.repeats, device)
        ways = [partial(decode, llm, *_cached(llm, dtype)) for llm in llms]
        yield _compared(f"{what}, a token behind {CACHED}, {BEAMS} beams", ways, args.repeats, device)


def _layer(shape: Shape, attention: str, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    torch.manual_seed(0)
    llm = random_llm(shape, dtype).to(device)
    llm.set_attn_implementation(attention)
    return llm


def _compared(what: str, ways: list[partial], repeats: int, device: torch.device) -> dict:
    eager, sdpa = in_turns(ways, repeats, lambda: spent(device), of=min)  # others on the cores only add
    return row(what, (eager, sdpa)) | {"sides": ATTENTIONS}


def train(llm: PreTrainedModel, x: Tensor) -> None:
    """Forward and backward of rows [B, L, H], through frozen weights, under autocast as in training."""
    x = x.detach().requires_grad_()
    positions = torch.arange(x.shape[1], device=x.device).repeat(len(x))
    rows = torch.arange(len(x), device=x.device).repeat_interleave(x.shape[1])
    with torch.autocast(x.device.type, torch.bfloat16, enabled=x.dtype == torch.bfloat16):
        hidden_at(llm, x, rows, positions).float().sum().backward()


@torch.no_grad()
def decode(llm: PreTrainedModel, cache: DynamicCache, x: Tensor) -> None:
    """One more token [B, 1, H] behind those of a cache, which is as before afterwards."""
    mask = torch.ones(len(x), CACHED + 1, dtype=torch.long, device=x.device)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=x.dtype == torch.bfloat16):
        llm.get_decoder()(inputs_embeds=x, attention_mask=mask, past_key_values=cache, use_cache=True)
    cache.crop(-1)


@torch.no_grad()
def _cached(llm: PreTrainedModel, dtype: torch.dtype) -> tuple[DynamicCache, Tensor]:
    cache = DynamicCache(config=llm.config)
    x = torch.randn(BEAMS, CACHED + 1, llm.config.hidden_size, device=llm.device, dtype=dtype)
    llm.get_decoder()(inputs_embeds=x[:, :CACHED], past_key_values=cache, use_cache=True)
    return cache, x[:, CACHED:]
