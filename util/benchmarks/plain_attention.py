"""Attention as the published code computes it, operation for operation: what ours is measured against.

The published code runs on transformers 4.28, whose attention is matrix products, a softmax and passes over all scores
between them. Today's "eager" attention of the library is another: it scales Whisper's scores once more. So every pass
is spelled out here, for a yardstick has to cost what it stands for.

The *SDPA form* of the published code is what it becomes with a newer transformers and nothing else changed: the library
then gives Whisper and LLaMA its fused attention, while BEATs and Q-Former, files of the published code's own, stay.

Shapes: B clips, H heads, Q queries, K keys, D a head's width, T frames.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from salmonn.model import beats, qformer
from salmonn.model.salmonn import SALMONN

WHISPER, LLAMA = "published_whisper", "published_llama"  # names in transformers' own register
BEATS_SCALE = 32  # the scores are kept smaller by as much until their highest value has been taken off
BERT_MASKED = -10_000.0


@contextmanager
def published_attention(model: SALMONN, sdpa: bool = False) -> Iterator[None]:
    """Let every part of a model attend as the published code does, or its SDPA form; as before afterwards."""
    whisper, llama = ("sdpa", "sdpa") if sdpa else (WHISPER, LLAMA)
    parts = ((model.speech_encoder, whisper), (model.llama_model.get_base_model(), llama))
    before = [part.config._attn_implementation for part, _ in parts]
    for part, implementation in parts:
        part.set_attn_implementation(implementation)
    try:
        with ExitStack() as patches:
            patches.enter_context(mock.patch.object(beats.Encoder, "forward", beats_encoder))
            patches.enter_context(mock.patch.object(beats.PositionalConv, "forward", beats_convolution))
            patches.enter_context(mock.patch.object(qformer.MultiHeadAttention, "forward", qformer_attention))
            yield
    finally:
        for (part, _), implementation in zip(parts, before, strict=True):
            part.set_attn_implementation(implementation)


def whisper_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **_: Any
) -> tuple[Tensor, None]:
    """Queries that are scaled already [B, H, Q, D], keys and values [B, H, K, D] -> [B, Q, H, D]."""
    assert mask is None, "Whisper's encoder has no mask"
    q, k, v = (x.flatten(0, 1) for x in (query, key, value))  # [B * H, *, D]
    weights = F.dropout(torch.bmm(q, k.transpose(1, 2)).softmax(dim=-1), module.dropout, module.training)
    return torch.bmm(weights, v).view_as(query).transpose(1, 2), None


def llama_attention(
    _module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **_: Any
) -> tuple[Tensor, None]:
    """Queries [B, H, Q, D], keys and values [B, H, K, D], mask [B, 1, Q, K] added -> [B, Q, H, D]."""
    scores = torch.matmul(query, key.transpose(2, 3)) / math.sqrt(query.shape[-1])
    if mask is not None:
        scores = scores + mask
        scores = torch.max(scores, torch.tensor(torch.finfo(scores.dtype).min, device=scores.device))
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    return torch.matmul(weights, value).transpose(1, 2), None


AttentionInterface.register(WHISPER, whisper_attention)
AttentionInterface.register(LLAMA, llama_attention)
AttentionMaskInterface.register(LLAMA, eager_mask)


def qformer_attention(self: qformer.MultiHeadAttention, x: Tensor, context: Tensor) -> Tensor:
    """x [W, Q, D], context [W, K, C] -> [W, Q, D]; BERT's, with a mask that hides nothing."""
    q, k, v = self._heads(self.query, x), self._heads(self.key, context), self._heads(self.value, context)
    hides = (1.0 - torch.ones(len(context), 1, 1, context.shape[1], device=x.device)) * BERT_MASKED
    scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(q.shape[-1]) + hides
    weights = F.dropout(scores.softmax(dim=-1), qformer.DROPOUT, self.training)
    return torch.matmul(weights, v).transpose(1, 2).flatten(2)


def beats_convolution(self: beats.PositionalConv, x: Tensor) -> Tensor:
    """[B, D, T] -> [B, D, T]; fewer than 16 channels in a group in float32, where a CPU's bfloat16 is not always right.

    Torch 2.11's with AMX is 100 % off then, without an error; the published width has 48.
    """
    weight = self.weight_g * self.weight_v / self.weight_v.norm(dim=(0, 1), keepdim=True)
    wrong = x.device.type == "cpu" and weight.shape[1] < 16
    wave, kernel, bias = (part.float() if wrong else part for part in (x, weight, self.bias))
    with torch.autocast(x.device.type, enabled=not wrong and torch.is_autocast_enabled(x.device.type)):
        y = F.conv1d(wave, kernel, bias, padding=self.taps // 2, groups=self.groups)
    return y[..., : x.shape[-1]].to(x.dtype if wrong else y.dtype)


def beats_encoder(self: beats.Encoder, x: Tensor, padding: Tensor) -> Tensor:
    """x [B, T, D], padding [B, T] True where padded -> [B, T, D]; time first between the layers."""
    x = self.layer_norm(x + self.pos_conv(x.transpose(1, 2)).transpose(1, 2))
    x = F.dropout(x, self.dropout, self.training).transpose(0, 1)  # [T, B, D]
    bias = _position_bias(self, len(x), x.shape[1], x.device)  # [B * H, T, T]
    for layer in self.layers:
        x = _beats_layer(layer, x, bias, padding)  # type: ignore[arg-type]
    return x.transpose(0, 1)


def _position_bias(encoder: beats.Encoder, length: int, clips: int, device: torch.device) -> Tensor:
    """A look-up for every pair, and a copy for every clip: [B * H, T, T]."""
    at = torch.arange(length)
    buckets = encoder.bucket(at[None, :] - at[:, None]).to(device)  # [T, T]
    table = encoder.layers[0].self_attn.relative_attention_bias
    bias = table(buckets).permute(2, 0, 1)  # [H, T, T]
    return bias[None].repeat(clips, 1, 1, 1).flatten(0, 1)


def _beats_layer(layer: beats.Layer, x: Tensor, bias: Tensor, padding: Tensor) -> Tensor:
    """[T, B, D] -> [T, B, D]."""
    attended = F.dropout(_beats_attention(layer.self_attn, x, bias, padding), layer.dropout, layer.training)
    x = layer.self_attn_layer_norm(x * layer.alpha + attended)
    fed = layer.fc2(F.gelu(layer.fc1(x).float()).to(x.dtype))
    return layer.final_layer_norm(x * layer.alpha + F.dropout(fed, layer.dropout, layer.training))


def _beats_attention(attention: beats.Attention, x: Tensor, bias: Tensor, padding: Tensor) -> Tensor:
    """x [T, B, D], bias [B * H, T, T], padding [B, T] -> [T, B, D]."""
    T, B, D = x.shape
    heads, width = attention.heads, D // attention.heads
    q, k, v = attention.q_proj(x), attention.k_proj(x), attention.v_proj(x)
    q *= width**-0.5
    q *= 1 / BEATS_SCALE
    q, k, v = (y.view(T, B * heads, width).transpose(0, 1) for y in (q, k, v))  # [B * H, T, D / H]
    scores = torch.bmm(q, k.transpose(1, 2))
    scores = (scores - scores.max(dim=-1, keepdim=True)[0]) * BEATS_SCALE
    scores = scores.view(B, heads, T, T).masked_fill(padding[:, None, None, :], -torch.inf).view(B * heads, T, T)
    if attention.gated:
        query = q.view(B, heads, T, width) * BEATS_SCALE / width**-0.5
        a, b = torch.sigmoid(attention.grep_linear(query).unflatten(-1, (2, 4)).sum(-1)).chunk(2, dim=-1)
        gate = a * (b * attention.grep_a - 1.0) + 2.0  # [B, H, T, 1]
        bias = gate.reshape(B * heads, T, 1) * bias
    weights = (scores + bias).softmax(dim=-1).to(scores.dtype)
    mixed = torch.bmm(weights, v)  # [B * H, T, D / H]
    return attention.out_proj(mixed.transpose(0, 1).reshape(T, B, D))
