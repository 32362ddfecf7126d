"""Less is kept for the backward pass, and nothing else is different."""

import gc
import inspect
import weakref
from importlib import import_module

import bitsandbytes
import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from salmonn.model.activation_memory import FUSED_NORMS, GATED, Recomputing, _GatedSilu, reduce_activation_memory
from util.benchmarks.sizes import build, make_batch

CPU = torch.device("cpu")
FOLDERS = {"GemmaMLP": "gemma", "Gemma2MLP": "gemma2", "Gemma3MLP": "gemma3", "MistralMLP": "mistral"}
FOLDERS |= {"LlamaMLP": "llama", "Qwen2MLP": "qwen2", "Qwen3MLP": "qwen3"}


def gradients(model, samples):
    """Loss, and the gradient of each parameter, with the same dropout each time."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16, enabled=model.beats.dtype == torch.bfloat16):
        loss = model(samples)["loss"]
    loss.backward()
    return {"loss": loss.detach()} | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("quantization", ["none", "8bit", "nf4", "int8"])
def test_loss_and_gradients_are_those_of_a_model_that_keeps_all(quantization, dtype, recompute, monkeypatch):
    """The same bits, but where float32 adds a norm's two parts of a gradient to the residual's in another order."""
    recomputing = build("mini", CPU, dtype, quantization, gradient_checkpointing=recompute).train()
    monkeypatch.setattr("salmonn.model.salmonn.reduce_activation_memory", lambda _: None)
    whole = build("mini", CPU, dtype, quantization, gradient_checkpointing=recompute).train()
    assert any(isinstance(module, Recomputing) for module in recomputing.modules())
    assert not any(isinstance(module, Recomputing) for module in whole.modules())
    samples = make_batch(recomputing, 2)
    ours, plain = gradients(recomputing, samples), gradients(whole, samples)
    assert ours.keys() == plain.keys()
    assert len(ours) > 20
    for name, gradient in plain.items():
        if dtype == "bfloat16" or name == "loss":
            assert torch.equal(ours[name], gradient), name
        else:
            share = 0.05 if quantization == "int8" else 1e-5  # a gradient on the edge of an integer takes the next one
            assert (ours[name] - gradient).norm() <= share * gradient.norm() + 1e-5, name


@pytest.mark.parametrize("kind", GATED)
def test_each_named_mlp_is_the_product_that_is_made_again(kind):
    mlp = getattr(import_module(f"transformers.models.{FOLDERS[kind]}.modeling_{FOLDERS[kind]}"), kind)
    assert "self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))" in inspect.getsource(mlp.forward)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_gives_the_bits_of_the_library_and_lets_all_but_its_input_go(dtype):
    torch.manual_seed(0)
    norm = LlamaRMSNorm(16).to(dtype).requires_grad_(False)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(2, 3, 16, dtype=dtype, requires_grad=True)
    plain = norm(x)
    reduce_activation_memory(norm)
    kept = []
    with saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        ours = norm(x)
    assert sum(tensor.numel() for tensor in kept) == x.numel() + norm.weight.numel() + 2 * 3
    assert torch.equal(ours, plain)
    upstream = torch.randn_like(plain)
    found, expected = (torch.autograd.grad(y, x, upstream)[0] for y in (ours, plain))
    assert torch.equal(found, expected)


def test_the_gated_product_has_the_gradients_of_its_formula():
    torch.manual_seed(0)
    gate, up = (torch.randn(2, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.equal(_GatedSilu.apply(gate, up), torch.nn.functional.silu(gate) * up)
    assert torch.autograd.gradcheck(_GatedSilu.apply, (gate, up))


@pytest.mark.parametrize("kind", FUSED_NORMS)
def test_the_kernel_that_a_gpu_has_for_a_norm_computes_its_formula(kind):
    folder = FOLDERS[kind.replace("RMSNorm", "MLP")]
    norm = getattr(import_module(f"transformers.models.{folder}.modeling_{folder}"), kind)(8, eps=0.1)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(2, 3, 8)
    fused = torch.nn.functional.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)
    torch.testing.assert_close(fused, norm(x), rtol=1e-5, atol=1e-6)


def test_an_8_bit_layer_lets_its_input_go():
    model = build("mini", CPU, quantization="8bit")
    layer = next(module for module in model.modules() if isinstance(module, bitsandbytes.nn.Linear8bitLt))
    x = torch.randn(2, 3, layer.in_features, requires_grad=True)
    inner = x * 1.0
    seen = weakref.ref(inner)
    y = layer(inner)
    del inner
    assert seen() is None
    y.sum().backward()
    weight = layer.state.CB.float() * layer.state.SCB[:, None] / 127
    torch.testing.assert_close(x.grad, torch.ones_like(y) @ weight)


def test_each_block_has_two_norms_and_a_product_that_keep_less():
    model = build("mini", CPU)
    names = [name for name, module in model.named_modules() if isinstance(module, Recomputing)]
    assert len(names) == 3 * 3 + 1  # and a norm at the end
    reduce_activation_memory(model.llama_model)
    assert [name for name, module in model.named_modules() if isinstance(module, Recomputing)] == names


def test_a_model_that_is_let_go_frees_its_weights_at_once():
    model = build("mini", CPU)
    weights = [weakref.ref(p) for name, p in model.named_parameters() if "mlp" in name or "norm" in name]
    gc.disable()
    try:
        del model
        assert not any(weight() is not None for weight in weights)
    finally:
        gc.enable()
