"""A frozen LLM that multiplies in 8 bits both ways: weights, activations and incoming gradients.

Each output channel of a weight has a scale, and each row of what it is multiplied with. The backward pass uses the same
8-bit weight, its scales moved into the gradient first, so no 16-bit copy of a weight is ever made (bitsandbytes' 8 bits
make one of each for every backward pass).

A few channels of an LLM's activations, and of its gradients, are many times as large as the others, and would leave
those a few steps of 127. So both sides of a weight are turned: blocks of channels are multiplied by a Hadamard matrix,
which spreads what is large in one of them over all. It is its own inverse, so nothing but the rounding changes.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from salmonn.common.device import is_autocast
from salmonn.common.errors import UserError

_LARGEST = 127
_SMALLEST = 1e-30  # of a row: one of zeros is divided by it
_BLOCKS = (64, 16, 4)  # channels that are turned together; the matrix of each has values that bfloat16 holds
_GPU_ROWS, _GPU_MULTIPLE = 17, 8  # the GPU's product wants so many rows at least, and sizes that are multiples


def quantise_llm(llm: PreTrainedModel, device: torch.device) -> None:
    """Replace an LLM's linear layers, but for its vocabulary, by 8-bit ones; the device does it one after the other.

    They stay where they were. Raises UserError for an LLM that has none, or whose sizes the product cannot have.
    """
    decoder = llm.get_decoder()
    layers = [name for name, module in decoder.named_modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise UserError(f"model.llm_quantization = int8: {type(llm).__name__} has no linear layers")
    for name in layers:
        linear = decoder.get_submodule(name)
        if linear.in_features % _GPU_MULTIPLE or linear.out_features % _GPU_MULTIPLE:
            raise UserError(
                f"model.llm_quantization = int8: {name} of the LLM is {linear.in_features} x {linear.out_features}, "
                f"and products in 8 bits need multiples of {_GPU_MULTIPLE}: set model.llm_quantization=8bit"
            )
        home = linear.weight.device
        decoder.set_submodule(name, Int8Linear(linear.to(device)).to(home))


class Int8Linear(nn.Linear):
    """A frozen linear layer whose weight, both sides turned, is int8 [out, in], with a scale for each row [out]."""

    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        """Quantise a layer, where it is."""
        nn.Module.__init__(self)  # not Linear's, which would make a weight
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        turned = turn(turn(linear.weight.detach().float()).t()).t().contiguous()
        weight, scale = quantise_rows(turned)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer("scale", scale[:, 0])

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] -> [..., out], in the precision of autocast or else of the input."""
        if is_autocast(input.device):
            input = input.to(torch.get_autocast_dtype(input.device.type))
        weight = self.weight.view(torch.int8)  # in shares its bytes are called otherwise
        output = turn(_Int8Product.apply(turn(input), weight, self.scale))
        return output if self.bias is None else output + self.bias.to(output.dtype)


class _Int8Product(torch.autograd.Function):
    """input [..., in] times a weight [out, in] with scales [out]: [..., out]."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(weight, scale)
        rows, row_scale = quantise_rows(input.flatten(0, -2))
        output = _scaled(_product(rows, weight.t()), row_scale, scale)
        return output.to(input.dtype).unflatten(0, input.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        weight, scale = ctx.saved_tensors
        rows, row_scale = quantise_rows(gradient.flatten(0, -2) * scale)
        of_input = _scaled(_product(rows, weight), row_scale)
        return of_input.to(gradient.dtype).unflatten(0, gradient.shape[:-1]), None, None


def quantise_rows(values: Tensor) -> tuple[Tensor, Tensor]:
    """int8 values [N, K] and their float32 scales [N, 1]; rows that are not finite have a scale that is not."""
    scale = values.abs().amax(dim=1, keepdim=True).float().clamp(min=_SMALLEST) / _LARGEST
    return (values / scale).round_().to(torch.int8), scale


def _product(left: Tensor, right: Tensor) -> Tensor:
    """int8 [N, K] x [K, M] -> int32 [N, M]."""
    missing = max(0, _GPU_ROWS - len(left)) if left.device.type == "cuda" else 0
    return torch._int_mm(F.pad(left, (0, 0, 0, missing)), right)[: len(left)]


def _scaled(product: Tensor, scale: Tensor, *more: Tensor) -> Tensor:
    """int32 [N, M] times scales, in float32; a CPU multiplies two kinds of numbers slowly."""
    output = product.float().mul_(scale) if product.device.type == "cpu" else product * scale
    for another in more:
        output.mul_(another)
    return output


def turn(values: Tensor) -> Tensor:
    """[..., K] with each block of K multiplied by a Hadamard matrix; twice gives the values again."""
    size = next(size for size in (*_BLOCKS, 1) if values.shape[-1] % size == 0)
    return (values.unflatten(-1, (-1, size)) @ _hadamard(size, values.device, values.dtype)).flatten(-2)


@cache
def _hadamard(size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    matrix, double = torch.ones(1, 1, device=device), torch.tensor([[1.0, 1.0], [1.0, -1.0]], device=device)
    while len(matrix) < size:
        matrix = torch.kron(matrix, double)
    return (matrix / size**0.5).to(dtype)
