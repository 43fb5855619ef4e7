"""The fast form of 3x3 convolutions: the numbers of the plain one, where it is taken, what it keeps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gantool.models import winograd
from gantool.models.layers import add_spectral_norm
from gantool.models.resampling import rewritten
from gantool.models.winograd import Conv3x3


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the inputs that the fast form was given."""
    found: list[tuple[int, ...]] = []
    original = winograd._convolved
    monkeypatch.setattr(winograd, "_convolved", lambda x, w: found.append(tuple(x.shape)) or original(x, w))
    return found


@pytest.mark.parametrize("size", [(4, 4), (8, 12), (20, 4)])
@pytest.mark.parametrize("normalised", [False, True], ids=["weight", "spectral-norm"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("at_once", [1, 2000, 10**9])
def test_values_and_gradients_of_both_orders(
    size: tuple[int, int],
    normalised: bool,
    layout: torch.memory_format,
    at_once: int,
    used: list[tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(winograd, "_NUMBERS_AT_ONCE", at_once)
    torch.manual_seed(0)
    conv = Conv3x3(3, 5).double()
    if normalised:
        add_spectral_norm(conv)
    images = torch.randn(5, 3, *size, dtype=torch.float64)
    x = images.contiguous(memory_format=layout).requires_grad_()
    found, calls = [], []
    for fast in (True, False):
        monkeypatch.setattr(winograd, "_pays", lambda *_, fast=fast: fast)
        out = conv(x)
        (slope,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)  # as a gradient penalty does
        found.append([out, slope, *torch.autograd.grad(slope.square().sum(), [x, *conv.parameters()])])
        calls.append(len(used))
    assert 0 < calls[0] == calls[1]  # the second was the plain one
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_gradients_of_any_order_by_differences() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 2, 4, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    slope = torch.randn(2, 3, 4, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(winograd.winograd, (x, weight))
    assert torch.autograd.gradcheck(winograd._WeightGradient.apply, (x, slope))
    assert torch.autograd.gradgradcheck(winograd._WeightGradient.apply, (x, slope))


@pytest.mark.parametrize("x_wanted", [False, True])
@pytest.mark.parametrize("weight_wanted", [False, True])
def test_only_what_is_wanted_is_computed(x_wanted: bool, weight_wanted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.randn(1, 2, 4, 4, requires_grad=x_wanted), torch.randn(3, 2, 3, 3, requires_grad=weight_wanted)
    out = winograd.winograd(x, weight)
    assert out.requires_grad == (x_wanted or weight_wanted)
    calls = []
    for name in ("_convolved", "_weight_gradient"):
        original = getattr(winograd, name)
        monkeypatch.setattr(winograd, name, lambda *a, n=name, f=original: calls.append(n) or f(*a))
    if out.requires_grad:
        out.sum().backward()
    assert calls == ["_convolved"] * x_wanted + ["_weight_gradient"] * weight_wanted


def test_float32_is_off_by_little_of_the_largest_number() -> None:
    torch.manual_seed(0)
    x, slope = torch.randn(4, 128, 16, 16), torch.randn(4, 128, 16, 16)
    weight = torch.randn(128, 128, 3, 3) / 34

    def values(convolved: object, of: torch.dtype) -> list[Tensor]:
        inputs = [x.to(of).requires_grad_(), weight.to(of).requires_grad_()]
        out = convolved(*inputs)  # type: ignore[operator]
        return [out, *torch.autograd.grad(out, inputs, slope.to(of))]

    truth = values(lambda a, b: F.conv2d(a, b, padding=1), torch.float64)
    for one, other in zip(values(winograd.winograd, torch.float32), truth, strict=True):
        assert (one - other).abs().max() < 2e-5 * other.abs().max()


@pytest.mark.parametrize(
    ("shape", "outputs", "fast"),
    [
        ((32, 128, 16, 16), 128, True),  # as in the tests of resume and of ranks
        ((64, 128, 12, 16), 128, True),
        ((8, 256, 32, 32), 128, True),
        ((63, 128, 8, 8), 128, False),  # little to do
        ((64, 64, 32, 32), 128, False),  # few channels
        ((64, 128, 16, 16), 3, False),
        ((64, 128, 14, 16), 128, False),  # no multiple of 4
        ((1, 256, 128, 128), 128, False),  # too large an image
    ],
)
def test_where_it_is_taken(shape: tuple[int, ...], outputs: int, fast: bool, used: list[tuple[int, ...]]) -> None:
    conv, x = Conv3x3(shape[1], outputs), torch.randn(shape)
    plain = nn.Conv2d.forward(conv, x)
    with torch.no_grad():
        out = conv(x)
    assert bool(used) == fast
    assert torch.equal(out, plain) == (not fast)
    torch.testing.assert_close(out, plain, rtol=1e-4, atol=1e-4)
    with torch.no_grad(), rewritten(False):
        assert torch.equal(conv(x), plain)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(conv(x), nn.Conv2d.forward(conv, x))
    assert len(used) == fast


def test_what_is_kept_does_not_grow_with_the_batch() -> None:
    for batch, outputs in ((64, 128), (256, 128), (64, 512)):
        x, slope = (torch.randn(1, channels, 16, 16).expand(batch, -1, -1, -1) for channels in (128, outputs))
        winograd._memory.blocks.clear()
        winograd._weight_gradient(x, slope)
        winograd._convolved(x, torch.randn(outputs, 128, 3, 3))
        kept = sum(block.nbytes for block in winograd._memory.blocks.values())
        assert kept < 40 * 2**20  # the changed input of 256 images alone is 75 MB


def test_a_first_call_in_inference_mode_leaves_memory_that_training_can_use() -> None:
    weight = torch.randn(3, 2, 3, 3, requires_grad=True)
    winograd._memory.blocks.clear()
    for images in (2, 4):  # the second is larger than what is kept
        x = torch.randn(images, 2, 8, 8)
        with torch.inference_mode():
            winograd.winograd(x, weight)
        winograd.winograd(x, weight).sum().backward()
    assert weight.grad is not None


def test_what_no_gradient_needs_is_not_saved() -> None:
    x, weight = torch.randn(1, 2, 4, 4), torch.randn(3, 2, 3, 3)
    for x_wanted in (False, True):
        out = winograd.winograd(x.requires_grad_(x_wanted), weight.requires_grad_(not x_wanted))
        saved = out.grad_fn.saved_tensors  # type: ignore[union-attr]
        assert [tensor is not None for tensor in saved] == [not x_wanted, x_wanted]
