"""Cross-entropy over the vocabulary, a chunk of the targets at a time, so that the logits of all never exist.

The logits of a batch are often the largest tensor of a step, and autograd would keep them for the
backward pass. Here each chunk gives its gradient at once, and only that of the hidden states is kept.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

CHUNK = 1 << 23  # logits that exist at a time: 262 tokens of a vocabulary of 32,000, 34 MB in float32


class TargetLoss(NamedTuple):
    """Of N target tokens."""

    loss: Tensor  # mean, scalar; the only one with a gradient
    token_loss: Tensor  # [N]
    is_correct: Tensor  # [N] whether the target is the likeliest token


def target_loss(llm: PreTrainedModel, hidden: Tensor, target_ids: Tensor, chunk: int = CHUNK) -> TargetLoss:
    """Loss of target ids [N] given the decoder's hidden states [N, H]; `chunk`: logits that exist at a time."""
    head = llm.get_output_embeddings()
    trained = [p for p in head.parameters() if p.requires_grad]  # adapters, where model.lora_target_modules names it
    total, token_loss, is_correct = _Chunked.apply(
        lambda states: vocabulary_logits(llm, states), rows_at_once(llm, chunk), target_ids, hidden, *trained
    )
    return TargetLoss(total / len(target_ids), token_loss, is_correct)


def rows_at_once(llm: PreTrainedModel, chunk: int = CHUNK) -> int:
    """Target tokens of a chunk."""
    return max(1, chunk // llm.config.get_text_config().vocab_size)


def vocabulary_logits(llm: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Logits [N, V] in float32 of hidden states [N, H].

    By the model's own forward with its decoder left out, for some families scale or cap their logits.
    """
    with _decoder_gives(llm, hidden[None]):
        return llm(inputs_embeds=hidden[None], use_cache=False).logits[0].float()


@contextmanager
def _decoder_gives(llm: PreTrainedModel, hidden: Tensor) -> Iterator[None]:
    decoder = llm.get_decoder()
    own = decoder.__dict__.get("forward")  # some libraries put one there
    decoder.forward = lambda *_args, **_kwargs: BaseModelOutputWithPast(last_hidden_state=hidden)
    hooks = decoder._forward_pre_hooks, decoder._forward_hooks  # of a sharded LLM: to them this would be a pass
    decoder._forward_pre_hooks, decoder._forward_hooks = type(hooks[0])(), type(hooks[1])()
    try:
        yield
    finally:
        decoder._forward_pre_hooks, decoder._forward_hooks = hooks
        del decoder.forward
        if own is not None:
            decoder.forward = own


class _Chunked(torch.autograd.Function):
    """Summed loss, loss of each token and whether it is right; gradients for hidden states and parameters.

    Gradients are those of the sum, near 1 where those of the mean could be too small for fp16.
    """

    @staticmethod
    def forward(
        ctx: Any, logits_of: Callable[[Tensor], Tensor], rows: int, target_ids: Tensor, hidden: Tensor, *trained: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        token_loss, is_correct, of_hidden = [], [], []
        of_trained = [torch.zeros_like(p) for p in trained]
        needs_gradient = any(ctx.needs_input_grad)
        for states, ids in zip(hidden.split(rows), target_ids.split(rows), strict=True):
            with torch.set_grad_enabled(needs_gradient):
                states = states.detach().requires_grad_(needs_gradient)
                logits = logits_of(states)  # [n, V]
                losses = F.cross_entropy(logits, ids, reduction="none")
                loss = losses.sum()
            token_loss.append(losses.detach())
            is_correct.append(logits.detach().argmax(-1) == ids)
            del logits
            if needs_gradient:
                gradient, *others = torch.autograd.grad(loss, (states, *trained))
                of_hidden.append(gradient)
                of_trained = [so_far + other for so_far, other in zip(of_trained, others, strict=True)]
        if needs_gradient:
            ctx.save_for_backward(torch.cat(of_hidden), *of_trained)
        tokens, right = torch.cat(token_loss), torch.cat(is_correct)
        ctx.mark_non_differentiable(tokens, right)
        return tokens.sum(), tokens, right

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        # the product in float32: fp16's loss scale alone may be beyond what fp16 holds
        return None, None, None, *((g.float() * upstream).to(g.dtype) for g in ctx.saved_tensors)
