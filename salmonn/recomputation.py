"""What the LLM's backward pass makes again instead of having it kept: memory for a little time, the same numbers.

All its matrices are frozen, so of their inputs nothing is needed. What is kept by default is then mostly what
costs next to nothing to make again: norms in float32, and the product in front of each block's last matrix.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

# Their forward is down_proj(act_fn(gate_proj(x)) * up_proj(x)).
GATED = ("LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP", "GemmaMLP", "Gemma2MLP", "Gemma3MLP")


class Lean(partial):
    """A forward that keeps less than the module's own."""


def keep_less(llm: nn.Module) -> None:
    """Let frozen blocks of the LLaMA kind keep no norms, no gated products and no inputs of 8-bit layers."""
    for module in llm.modules():
        kind = type(module).__name__
        if kind.endswith("RMSNorm"):
            module.forward = Lean(_again, module.forward)
        elif kind in GATED:
            module.forward = Lean(_gated_mlp, module)
        elif kind == "Linear8bitLt" and hasattr(module, "state"):  # bitsandbytes' own, not peft's around it
            module.forward = Lean(_frozen_8bit, module, module.forward)


def keep_all(llm: nn.Module) -> None:
    """Undo `keep_less` where nothing is quantised: a compiler decides for itself what a compiled block keeps."""
    for module in llm.modules():
        if isinstance(module.__dict__.get("forward"), Lean):
            del module.forward


def enable_recomputation(llm: nn.Module, mode: bool) -> None:
    """Let the blocks recompute all of their activations in the backward pass (gradient checkpointing), or not.

    The library asks a block's own training flag; the modules inside stay in eval mode, without dropout.
    """
    for module in llm.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = mode


def _again(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """A function without dropout, of which only the inputs are kept."""
    if not torch.is_grad_enabled():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False, determinism_check="none")


def _gated_mlp(mlp: Any, x: Tensor) -> Tensor:
    """[B, L, H] -> [B, L, H]."""
    return mlp.down_proj(_again(lambda gate, up: mlp.act_fn(gate) * up, mlp.gate_proj(x), mlp.up_proj(x)))


def _frozen_8bit(linear: Any, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return _Frozen8bit.apply(x, linear, forward) if x.requires_grad else forward(x)


class _Frozen8bit(torch.autograd.Function):
    """bitsandbytes' layer, whose own function holds its input until the backward pass without using it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: Any, forward: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.linear, ctx.dtype = linear, x.dtype
        return forward(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        state = ctx.linear.state
        weight = state.CB.to(ctx.dtype, copy=True).mul_(state.SCB[:, None] * (1 / 127))  # [out, in]
        return gradient.to(ctx.dtype) @ weight, None, None
