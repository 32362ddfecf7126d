"""8 bits both ways: what the products are, what is never made, and how near loss and gradients are to bfloat16's."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from salmonn.common.errors import UserError
from salmonn.config.loading import load_config
from salmonn.model.int8 import Int8Linear, quantise_llm, quantise_rows, turn
from salmonn.model.random_model import llama_shape, random_llm
from util.benchmarks import sizes
from util.benchmarks.sizes import SIZES, build, make_batch

CPU = torch.device("cpu")


def frozen_linear(n_in: int, n_out: int, bias: bool = False) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(n_in, n_out, bias).requires_grad_(False)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(5, 64), (2, 3, 64), (1, 1, 64)])
def test_a_layer_and_its_gradient_are_near_those_of_the_plain_one(shape, bias):
    plain = frozen_linear(64, 96, bias)
    x = torch.randn(shape, requires_grad=True)
    expected = plain(x)
    upstream = torch.randn_like(expected)
    (of_plain,) = torch.autograd.grad(expected, x, upstream)
    output = Int8Linear(plain)(x)
    (of_int8,) = torch.autograd.grad(output, x, upstream)
    assert output.shape == expected.shape
    assert (output - expected).norm() < 0.02 * expected.norm()
    assert (of_int8 - of_plain).norm() < 0.02 * of_plain.norm()


def test_values_that_8_bits_hold_are_multiplied_exactly():
    torch.manual_seed(0)
    weight, x = (torch.randint(-127, 128, shape).float() for shape in ((8, 16), (3, 16)))
    weight[:, 0], x[:, 1] = 127, 127
    layer = Int8Linear(frozen_linear(16, 8))
    layer.weight.data, layer.scale = weight.to(torch.int8), torch.full((8,), 0.5)
    torch.testing.assert_close(layer(turn(x)), turn(F.linear(x, 0.5 * weight)), rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize("size", [64, 128, 96, 40, 8, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_turning_spreads_one_channel_over_its_block_and_is_its_own_inverse(size, dtype):
    x = torch.zeros(3, size, dtype=dtype)
    x[:, 2] = 16.0
    turned = turn(x)
    assert torch.equal(turn(turned), x)
    if size > 7:  # which has no block
        assert turned.abs().max() <= 8


def test_rows_of_zeros_stay_zero_and_rows_that_are_not_finite_stay_so():
    rows = torch.tensor([[0.0, 0.0], [1.0, torch.nan], [torch.inf, 1.0], [3.0, -127.0]])
    values, _ = quantise_rows(rows)
    assert values[0].tolist() == [0, 0]
    assert values[3].tolist() == [3, -127]
    layer = Int8Linear(frozen_linear(8, 8))
    output = layer(F.pad(rows, (0, 6)))
    assert output.isfinite().all(dim=1).tolist() == [True, False, False, True]
    assert not output[0].any()


class MadeTensors(TorchDispatchMode):
    """Notes kind and shape of whatever is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.made: set[tuple[torch.dtype, tuple[int, ...]]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.made.add((tensor.dtype, tuple(tensor.shape)))
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_copy_of_a_weight_in_more_bits_is_made_in_either_pass(dtype):
    layer = Int8Linear(frozen_linear(64, 96).to(dtype))
    x = torch.randn(2, 5, 64, dtype=dtype, requires_grad=True)
    with MadeTensors() as seen:
        layer(x).sum().backward()
    weights = {kind for kind, shape in seen.made if sorted(shape) == [64, 96]}
    assert weights <= {torch.int8}
    assert x.grad.dtype == dtype


def test_nothing_of_the_input_is_kept_for_the_backward_pass():
    layer, kept = Int8Linear(frozen_linear(64, 96)), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        layer(torch.randn(5, 64, requires_grad=True))
    assert {tuple(tensor.shape) for tensor in kept} <= {(96, 64), (96,), (64, 64), (16, 16)}  # two turning matrices
    assert {layer.weight.data_ptr(), layer.scale.data_ptr()} <= {tensor.data_ptr() for tensor in kept}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_under_autocast_the_output_is_in_its_precision_and_the_gradient_in_the_inputs(dtype):
    x = torch.randn(5, 64, requires_grad=True)
    with torch.autocast("cpu", dtype):
        output = Int8Linear(frozen_linear(64, 96, bias=True))(x)
    output.float().sum().backward()
    assert (output.dtype, x.grad.dtype) == (dtype, torch.float32)


# ---- an LLM


def loss_and_gradients(model, samples) -> tuple[float, dict[str, torch.Tensor]]:
    model.eval()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(samples)["loss"]
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return loss.item(), gradients


def cosine(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    joined = [torch.cat([gradients[name].flatten() for name in ours]).double() for gradients in (ours, theirs)]
    return F.cosine_similarity(*joined, dim=0).item()


def widen_channels(llm: nn.Module, factor: float) -> None:
    """Give activations a few channels `factor` times as large as the others, as trained LLMs do; same outputs."""
    for block in llm.get_decoder().layers:
        readers = (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj)
        for norm, linears in (
            (block.input_layernorm, readers),
            (block.post_attention_layernorm, (block.mlp.gate_proj, block.mlp.up_proj)),
        ):
            norm.weight.data[3::61] *= factor
            for linear in linears:
                linear.weight.data[:, 3::61] /= factor


LLAMA = llama_shape(256, 4, 4, 768, vocab_size=1000)


@pytest.mark.parametrize(
    ("llm", "outliers", "least"),
    [
        (LLAMA, 1.0, 0.999),
        (LLAMA, 10.0, 0.999),
        (LLAMA, 30.0, 0.998),
        (SIZES["mini"].llm, 1.0, 0.998),  # of few channels and large weights, which 8 bits hold coarsely
    ],
)
def test_loss_and_gradients_are_near_those_of_bfloat16(monkeypatch, llm, outliers, least):
    """Of all that is trained; also where activations have outliers, which spoil their rows' scales."""

    def drawn(*args):
        made = random_llm(*args)
        widen_channels(made, outliers)
        return made

    monkeypatch.setattr(sizes, "random_llm", drawn)
    monkeypatch.setitem(SIZES, "mini", replace(SIZES["mini"], llm=llm))
    plain, int8 = (build("mini", CPU, "bfloat16", how) for how in ("none", "int8"))
    samples = make_batch(plain, 4)
    (loss, gradients), (loss_int8, gradients_int8) = (loss_and_gradients(m, samples) for m in (plain, int8))
    assert loss_int8 == pytest.approx(loss, rel=0.005)
    assert cosine(gradients_int8, gradients) >= least


def test_all_but_embeddings_norms_and_vocabulary_is_held_in_8_bits():
    llm = random_llm(llama_shape(64, 2, 4, 128, vocab_size=100))
    quantise_llm(llm, CPU)
    kinds = {name.split(".")[-2]: p.dtype for name, p in llm.named_parameters()}
    plain = {"embed_tokens", "input_layernorm", "post_attention_layernorm", "norm", "lm_head"}
    assert {name for name, dtype in kinds.items() if dtype != torch.int8} == plain
    assert all(p.is_contiguous() for p in llm.parameters())


@pytest.mark.parametrize("shape", [(60, 1, 2, 128), (64, 1, 4, 100)])
def test_sizes_that_the_product_cannot_have_are_refused(shape):
    with pytest.raises(UserError, match=r"model.llm_quantization = int8: layers.0.* multiples of 8"):
        quantise_llm(random_llm(llama_shape(*shape, vocab_size=100)), CPU)


def test_two_ways_at_once_are_refused():
    with pytest.raises(UserError, match="llm_quantization says int8: drop one"):
        load_config("configs/mini/stage1.yaml", ["model.low_resource=True", "model.llm_quantization=int8"])
