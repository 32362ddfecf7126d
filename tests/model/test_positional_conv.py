"""BEATs' positional convolution by spectra, as a CPU takes it, and group by group, as a GPU does."""

import pytest
import torch
from torch import Tensor

from salmonn.model.beats import PositionalConv

HALF = [torch.bfloat16, torch.float16]


def make(channels: int, groups: int = 4, taps: int = 32, length: int = 40) -> tuple[PositionalConv, Tensor]:
    """A convolution of that many channels in a group, and something to convolve."""
    torch.manual_seed(channels)
    conv = PositionalConv(channels * groups, taps, groups)
    torch.nn.init.normal_(conv.bias)
    return conv, torch.randn(2, channels * groups, length)


def usual(conv: PositionalConv, x: Tensor) -> Tensor:
    """What PyTorch's own kernel makes of it."""
    weight = conv.weight_g * conv.weight_v / conv.weight_v.norm(dim=(0, 1), keepdim=True)
    y = torch.nn.functional.conv1d(x, weight, conv.bias, padding=conv.taps // 2, groups=conv.groups)
    return y[..., : x.shape[-1]]


def difference(found: Tensor, exact: Tensor) -> float:
    return ((found.float() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("channels", range(1, 49))
def test_half_precision_is_near_float32_for_any_width(channels: int, dtype: torch.dtype):
    conv, x = make(channels)
    with torch.no_grad():
        exact = conv(x)
        with torch.autocast("cpu", dtype):
            mixed = conv(x)
        rounded = conv.to(dtype)(x.to(dtype))
    assert mixed.dtype == rounded.dtype == dtype
    assert 0 < difference(mixed, exact) < 0.02
    assert 0 < difference(rounded, exact) < 0.02


@pytest.mark.parametrize(("channels", "groups", "taps", "length"), [(2, 16, 128, 96), (4, 16, 32, 96), (8, 4, 8, 3)])
def test_the_small_models_of_the_tests_are_near_float32_too(channels, groups, taps, length):
    conv, x = make(channels, groups, taps, length)
    with torch.no_grad():
        exact = conv(x)
        assert difference(conv.bfloat16()(x.bfloat16()), exact) < 0.02


@pytest.mark.parametrize(("channels", "taps", "length"), [(3, 32, 1), (3, 32, 31), (2, 8, 41), (4, 31, 62), (1, 1, 5)])
def test_by_spectra_it_is_the_convolution_of_any_length(channels, taps, length):
    conv, x = make(channels, taps=taps, length=length)
    conv, x = conv.double(), x.double()
    found = [conv._by_spectra(x, conv._spectra_of_weight(torch.float64)), usual(conv, x)]
    gradients = [torch.autograd.grad(y.square().sum(), [*conv.parameters()]) for y in found]
    for ours, plain in zip((found[0], *gradients[0]), (found[1], *gradients[1]), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-6)


def test_gradients_of_mixed_precision_are_near_those_of_float32():
    conv, x = make(6)
    gradients = []
    for mixed in (False, True):
        conv.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            y = conv(x)
            assert torch.is_autocast_enabled("cpu") == mixed  # as it was, for what comes behind
        (y * x).sum().backward()
        gradients.append([p.grad for p in conv.parameters()])
    for exact, found in zip(*gradients, strict=True):
        assert found.dtype == torch.float32
        assert difference(found, exact) < 0.02


def test_other_devices_are_left_alone():
    conv, x = make(4)
    y = conv.to("meta", torch.bfloat16)(x.to("meta", torch.bfloat16))
    assert (y.shape, y.dtype) == (x.shape, torch.bfloat16)


@pytest.mark.parametrize("taps", [31, 32])
def test_group_by_group_as_a_gpu_takes_it_is_the_same_convolution(taps):
    conv, x = make(channels=6, taps=taps)
    found = conv._group_by_group(x, conv._weight(conv.weight_v))
    torch.testing.assert_close(found, usual(conv, x), rtol=0, atol=1e-5)


def test_spectra_of_a_frozen_weight_are_made_once_and_anew_where_it_changes(monkeypatch):
    conv, x = make(20)
    made = []
    weight_of = conv._weight
    monkeypatch.setattr(conv, "_weight", lambda v: made.append(v.dtype) or weight_of(v))
    conv.requires_grad_(False)
    first, again = conv(x), conv(x)
    assert torch.equal(first, again)
    assert len(made) == 1
    conv.load_state_dict({name: 2 * values for name, values in conv.state_dict().items()})
    assert difference(conv(x), usual(conv, x)) < 1e-5
    conv.double()
    torch.testing.assert_close(conv(x.double()), usual(conv, x.double()))
    conv.requires_grad_(True)
    for _ in range(2):
        conv(x.double()).sum().backward()  # nothing of the graph is kept
