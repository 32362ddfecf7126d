"""BEATs' positional convolution is right in half precision, also where the CPU's own kernel is not."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from salmonn.model import beats
from salmonn.model.beats import PositionalConv, conv_is_right

HALF = [torch.bfloat16, torch.float16]
conv1d = torch.nn.functional.conv1d


@pytest.fixture(autouse=True)
def _nothing_tried_yet() -> Iterator[None]:
    conv_is_right.cache_clear()
    yield
    conv_is_right.cache_clear()


@pytest.fixture
def kernel(monkeypatch) -> Callable[[bool], list[torch.dtype]]:
    """Puts another kernel in the place of the CPU's: right, or off in half precision; returns what it is called in."""

    def put(is_right: bool) -> list[torch.dtype]:
        calls: list[torch.dtype] = []

        def fake(x: Tensor, weight: Tensor, bias: Tensor | None = None, **options) -> Tensor:
            calls.append(torch.bfloat16 if torch.is_autocast_enabled("cpu") else x.dtype)
            with torch.autocast("cpu", enabled=False):
                wide = (None if tensor is None else tensor.float() for tensor in (x, weight, bias))
                y = conv1d(*wide, **options).to(calls[-1])
            return y if is_right or calls[-1] == torch.float32 else y.flip(-1)

        monkeypatch.setattr(torch.nn.functional, "conv1d", fake)
        return calls

    return put


def make(channels: int, groups: int = 4, taps: int = 32, length: int = 40) -> tuple[PositionalConv, Tensor]:
    """A convolution of that many channels in a group, and something to convolve."""
    torch.manual_seed(channels)
    conv = PositionalConv(channels * groups, taps, groups)
    torch.nn.init.normal_(conv.bias)
    return conv, torch.randn(2, channels * groups, length)


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


@pytest.mark.parametrize("mixed", [False, True], ids=["weights", "autocast"])
def test_a_kernel_that_is_wrong_is_found_out_and_float32_takes_its_place(kernel, mixed: bool):
    kernel(is_right=False)
    assert not conv_is_right(torch.bfloat16, 48, 16, 128)
    conv, x = make(5)
    conv, x = (conv, x) if mixed else (conv.bfloat16(), x.bfloat16())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        y = conv(x)
        assert torch.is_autocast_enabled("cpu") == mixed  # as it was, for what comes behind
    if not mixed:
        g, v = conv.weight_g, conv.weight_v
        weight = (g * v / v.norm(dim=(0, 1), keepdim=True)).float()
        assert torch.equal(y, conv1d(x.float(), weight, conv.bias.float(), padding=16, groups=4)[..., :-1].bfloat16())
    else:
        with torch.no_grad():
            assert torch.equal(y, conv(x).bfloat16())


def test_gradients_come_through_float32_in_its_place(kernel):
    kernel(is_right=False)
    conv, x = make(6)
    gradients = []
    for mixed in (False, True):
        conv.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            y = conv(x)
        (y * x).sum().backward()
        gradients.append([p.grad for p in conv.parameters()])
    for exact, found in zip(*gradients, strict=True):
        assert found.dtype == torch.float32
        assert difference(found, exact) < 0.02


@pytest.mark.parametrize("mixed", [False, True], ids=["weights", "autocast"])
def test_a_kernel_that_is_right_is_tried_once_and_then_used(kernel, mixed: bool):
    calls = kernel(is_right=True)
    conv, x = make(4)
    conv, x = (conv, x) if mixed else (conv.bfloat16(), x.bfloat16())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        conv(x)
        assert sorted(map(str, calls)) == ["torch.bfloat16", "torch.bfloat16", "torch.float32"]
        calls.clear()
        conv(x[:1])
    assert calls == [torch.bfloat16]


def test_float32_and_other_devices_are_left_alone(kernel, monkeypatch):
    calls = kernel(is_right=False)
    conv, x = make(4)
    conv(x)
    assert calls == [torch.float32]
    monkeypatch.undo()
    monkeypatch.setattr(beats, "conv_is_right", lambda *_: pytest.fail("nothing is to be tried there"))
    y = conv.to("meta", torch.bfloat16)(x.to("meta", torch.bfloat16))
    assert (y.shape, y.dtype) == (x.shape, torch.bfloat16)


def test_trying_takes_none_of_a_runs_random_numbers():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    conv_is_right(torch.bfloat16, 3, 2, 8)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("taps", [31, 32])
def test_group_by_group_as_a_gpu_takes_it_is_the_same_convolution(taps):
    conv, x = make(channels=6, taps=taps)
    weight = conv.weight_g * conv.weight_v / conv.weight_v.norm(dim=(0, 1), keepdim=True)
    whole = conv1d(x, weight, conv.bias, padding=taps // 2, groups=conv.groups)
    torch.testing.assert_close(conv._group_by_group(x, weight), whole, rtol=0, atol=1e-5)
