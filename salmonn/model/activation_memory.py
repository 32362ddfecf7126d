"""Activation memory: what is cheap is recomputed in the LLM's backward pass instead of kept; the same numbers.

All its matrices are frozen, so of their inputs nothing is needed. What is kept by default is then mostly what
costs next to nothing to make again: norms in float32, and the product in front of each block's last matrix.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

# Their forward is down_proj(act_fn(gate_proj(x)) * up_proj(x)).
GATED = ("LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP", "GemmaMLP", "Gemma2MLP", "Gemma3MLP")

# Their forward is weight * x / sqrt(mean(x^2) + variance_epsilon), for which GPUs have one kernel.
FUSED_NORMS = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm")


def reduce_activation_memory(llm: nn.Module) -> None:
    """Let a frozen LLM of the LLaMA kind keep no norms, no gated products and no inputs of 8-bit layers."""
    for module in llm.modules():
        kind: Any = type(module)
        if recomputing := recomputing_kind(kind):
            module.__class__ = recomputing  # not a forward of its own: that would hold the module beyond its life


@cache
def recomputing_kind(kind: Any) -> Any:
    """The same kind of module, which keeps less; None where nothing can be left out."""
    forward: Callable[..., Tensor]
    if issubclass(kind, Recomputing):
        return None
    if kind.__name__ in FUSED_NORMS:

        def forward(module: nn.Module, x: Tensor) -> Tensor:
            return _norm(module, partial(kind.forward, module), x)

    elif kind.__name__.endswith("RMSNorm"):

        def forward(module: nn.Module, x: Tensor) -> Tensor:
            return _again(partial(kind.forward, module), x)

    elif kind.__name__ in GATED:
        forward = _gated_mlp
    elif kind.__name__ == "Linear8bitLt" and kind.__module__.startswith("bitsandbytes"):  # peft's around it, too, is so

        def forward(module: nn.Module, x: Tensor) -> Tensor:
            plain = partial(kind.forward, module)
            return _Frozen8bit.apply(x, module, plain) if x.requires_grad else plain(x)

    else:
        return None
    return type(kind.__name__, (Recomputing, kind), {"forward": forward})


class Recomputing:
    """Marks what keeps less than the class behind it."""


def set_gradient_checkpointing(llm: nn.Module, mode: bool) -> None:
    """Let the blocks recompute all of their activations in the backward pass (gradient checkpointing), or not.

    The library asks a block's own training flag; the modules inside stay in eval mode, without dropout.
    """
    for module in llm.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = mode


def _again(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """A function without dropout, of which only the inputs are kept."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():  # a compiler decides for itself what it keeps
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False, determinism_check="none")


def _norm(module: Any, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """[B, L, H] -> [B, L, H]; a GPU's kernel keeps its input alone, rounds once, and asks little of the host."""
    if x.device.type == "cuda" and x.dtype == module.weight.dtype:
        with torch.autocast("cuda", enabled=False):
            return F.rms_norm(x, module.weight.shape, module.weight, module.variance_epsilon)
    if not x.requires_grad or torch.compiler.is_compiling():
        return forward(x)
    return _FrozenNorm.apply(x, module.weight, module.variance_epsilon)


class _FrozenNorm(torch.autograd.Function):
    """The library's norm with frozen weights, operation for operation; kept are its input and a number for each row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)  # [B, L, 1]
        ctx.save_for_backward(x, weight, scale)
        return weight * (wide * scale).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        x, weight, scale = ctx.saved_tensors
        wide, gradient = x.float(), (gradient * weight).to(x.dtype).float()
        of_scale = (gradient * wide).sum(-1, keepdim=True)
        of_mean = -0.5 * of_scale * scale.pow(3) / x.shape[-1]
        return (gradient * scale).add_(wide * (2 * of_mean)).to(x.dtype), None, None


def _gated_mlp(mlp: Any, x: Tensor) -> Tensor:
    """[B, L, H] -> [B, L, H]."""
    gate, up = mlp.gate_proj(x), mlp.up_proj(x)  # [B, L, F]
    if isinstance(mlp.act_fn, nn.SiLU) and not torch.compiler.is_compiling():
        return mlp.down_proj(_GatedSilu.apply(gate, up))
    return mlp.down_proj(_again(lambda gate, up: mlp.act_fn(gate) * up, gate, up))


class _GatedSilu(torch.autograd.Function):
    """silu(gate) * up, of which only the two factors are kept."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate) * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(gradient * up, gate), gradient * F.silu(gate)


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
