"""The loss in chunks of the targets is the whole one, its gradients too, and the logits of all never exist."""

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from salmonn.model.loss import rows_at_once, target_loss, vocabulary_logits

V, H, N = 300, 16, 23
CHUNK = 5 * V  # 5 tokens: the last chunk has 3
TINY = {
    "vocab_size": V, "hidden_size": H, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "initializer_range": 0.5, "pad_token_id": 0,
}  # fmt: skip


def llama(dtype=torch.float32):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**TINY)).to(dtype).requires_grad_(False)


def capped():
    torch.manual_seed(0)
    return Gemma2ForCausalLM(Gemma2Config(**TINY, final_logit_softcapping=2.0)).requires_grad_(False)


def targets(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(N, H, generator=generator).to(dtype).requires_grad_()
    return hidden, torch.randint(V, (N,), generator=generator)


@pytest.mark.parametrize("make", [llama, capped])
def test_loss_and_gradient_are_those_of_all_logits_at_once(make):
    llm = make()
    hidden, ids = targets()
    logits = llm.lm_head(hidden)
    if make is capped:
        logits = 2.0 * torch.tanh(logits / 2.0)
    whole = F.cross_entropy(logits, ids, reduction="none")
    expected = torch.autograd.grad(3.0 * whole.mean(), hidden)[0]
    result = target_loss(llm, hidden, ids, CHUNK)
    torch.testing.assert_close(result.loss, whole.mean(), rtol=1e-6, atol=0)
    torch.testing.assert_close(result.token_loss, whole, rtol=1e-6, atol=1e-6)
    assert torch.equal(result.is_correct, logits.argmax(-1) == ids)
    torch.testing.assert_close(torch.autograd.grad(3.0 * result.loss, hidden)[0], expected, rtol=1e-5, atol=1e-8)
    assert "forward" not in vars(llm.get_decoder())  # the model is as it was


def test_adapters_of_the_vocabulary_learn():
    llm = get_peft_model(llama(), LoraConfig(target_modules=["lm_head"], r=2, init_lora_weights=False)).base_model.model
    trained = [p for p in llm.parameters() if p.requires_grad]
    hidden, ids = targets()
    whole = F.cross_entropy(llm.lm_head(hidden), ids)
    expected = torch.autograd.grad(whole, trained)
    found = torch.autograd.grad(target_loss(llm, hidden, ids, CHUNK).loss, trained)
    assert len(trained) == 2
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


class Largest(TorchDispatchMode):
    """The most numbers that a tensor made inside has."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        if func is not torch.ops.aten.t.default:  # the frozen matrix itself, seen from the side
            self.numbers = max(self.numbers, *sizes, 0)
        return result


def test_no_tensor_is_larger_than_a_chunk_and_nothing_is_made_for_a_gradient_that_nobody_wants():
    llm, (hidden, ids) = llama(), targets()
    with Largest() as training:
        target_loss(llm, hidden, ids, CHUNK).loss.backward()
    assert training.numbers == CHUNK
    with torch.no_grad():
        result = target_loss(llm, hidden, ids, CHUNK)
    assert not result.loss.requires_grad
    assert rows_at_once(llm, CHUNK) == 5
    assert rows_at_once(llm, 1) == 1


def test_a_loss_scale_beyond_fp16_leaves_the_gradient_finite():
    """GradScaler begins with 65,536, fp16 ends at 65,504; gradients of a token that is nearly sure are small."""
    llm, (hidden, _) = llama(torch.float16), targets(torch.float16)
    sure = (20 * hidden[:1]).detach().requires_grad_()
    with torch.no_grad():
        ids = vocabulary_logits(llm, sure).argmax(-1)
    (gradient,) = torch.autograd.grad(target_loss(llm, sure, ids).loss * 65_536.0, sure)
    assert 0 < gradient.abs().max() < torch.inf
