"""The strided forms give the numbers of the plain ones: values, gradients of every order, whole trainings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import Gantool
from test_resume import sets, train_whole
from torch import Tensor, nn

from gantool import checkpoint
from gantool.models import resampling
from gantool.models.layers import add_spectral_norm
from gantool.models.resampling import bilinear, doubled_conv, pooled_conv, rewritten

Layer = Callable[[Tensor, nn.Conv2d], Tensor]
PLAIN: list[tuple[Layer, Layer]] = [
    (doubled_conv, lambda x, conv: conv(F.interpolate(x, scale_factor=2))),
    (pooled_conv, lambda x, conv: F.avg_pool2d(conv(x), 2)),
]


@pytest.mark.parametrize("size", [(16, 16), (20, 28), (8, 8)])
@pytest.mark.parametrize("normalised", [False, True], ids=["weight", "spectral-norm"])
@pytest.mark.parametrize(("strided", "plain"), PLAIN, ids=["doubled", "pooled"])
def test_values_and_gradients_of_both_orders(
    strided: Layer, plain: Layer, normalised: bool, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    if size == (8, 8):
        monkeypatch.setattr(resampling, "_pays_as_product", lambda *_: True)
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, 3, padding=1).double()
    if normalised:
        add_spectral_norm(conv)
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    used = []
    monkeypatch.setattr(resampling, "_with_box", lambda w, original=resampling._with_box: used.append(1) or original(w))
    found = []
    for layer in (strided, plain):
        out = layer(x, conv)
        (slope,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)  # as a gradient penalty does
        found.append([out, slope, *torch.autograd.grad(slope.square().sum(), [x, *conv.parameters()])])
    assert used  # or two plain forms would have been compared
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("strided", "plain"), PLAIN, ids=["doubled", "pooled"])
def test_the_plain_form_is_taken_where_it_is_asked_for(strided: Layer, plain: Layer) -> None:
    conv, x = nn.Conv2d(3, 5, 3, padding=1), torch.randn(2, 3, 16, 16)
    with rewritten(False):
        assert torch.equal(strided(x, conv), plain(x, conv))


def test_both_forms_of_bilinear_upsampling_agree() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 10, dtype=torch.float64, requires_grad=True)
    found = []
    for wanted in (True, False):
        with rewritten(wanted):
            out = bilinear(x)
        found.append([out, *torch.autograd.grad(out.square().sum(), x)])
    assert not torch.equal(found[0][0], found[1][0])  # two forms indeed
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


NETWORKS = {
    "conv": "generator={kind: conv, upsample: nearest, latent_dim: 8, width: 4, max_width: 8, norm: none}",
    "resnet": "generator={kind: resnet, latent_dim: 8, width: 4, max_width: 8}",
}
RESNET = "discriminator={kind: resnet, width: 4, max_width: 8, spectral_norm: true}"


@pytest.mark.parametrize("network", NETWORKS)
def test_a_training_of_50_steps_gives_the_same_numbers(
    network: str, gantool: Gantool, tiny: Path, tmp_path: Path
) -> None:
    # A large eps keeps Adam from blowing rounding up where a gradient is all but zero.
    options = ["data={name: shapes, size: 32}", NETWORKS[network], RESNET, "penalty=gp", "steps=50"]
    options += ["optimizer.generator.eps=1e-3", "optimizer.discriminator.eps=1e-3", "optimizer.generator.lr=2e-4"]
    options += [f"runtime.data_dir={tmp_path / 'data'}"]
    found = []
    for rewrites in ("true", "false"):
        words = sets((*options, f"runtime.rewrites={rewrites}", f"runtime.runs_dir={tmp_path / rewrites}"))
        run = train_whole(gantool, tiny, *words)
        rows = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
        found.append((checkpoint.load(sorted((run / "snapshots").glob("*"))[-1])[0], rows, run.name))
    (strided, rows, name), (plain, plain_rows, plain_name) = found
    assert name == plain_name
    assert any(not torch.equal(strided[key], plain[key]) for key in plain)  # another path was taken
    for key, value in plain.items():
        torch.testing.assert_close(
            strided[key].float(), value.float(), rtol=1e-3, atol=1e-3 if network == "resnet" else 1e-5
        )
    for one, other in zip(rows, plain_rows, strict=True):
        assert one["loss_d"] == pytest.approx(other["loss_d"], rel=1e-3, abs=1e-4)


STRIDED: list[tuple[Callable[..., Tensor], Callable[..., Tensor], int]] = [
    (resampling.halved, F.conv2d, 2),
    (resampling.doubled, F.conv_transpose2d, 1),
]
IDS = ["halved", "doubled"]


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (7, 7), (2, 5)])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("product", "library", "scale"), STRIDED, ids=IDS)
def test_a_product_of_matrices_gives_the_values_and_gradients_of_both_orders(
    product: Callable[..., Tensor],
    library: Callable[..., Tensor],
    scale: int,
    with_bias: bool,
    size: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resampling, "_pays_as_product", lambda *_: True)
    torch.manual_seed(0)
    inputs = torch.randn(3, 5, scale * size[0], scale * size[1], dtype=torch.float64)
    x = inputs.contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn((6, 5, 4, 4) if scale == 2 else (5, 6, 4, 4), dtype=torch.float64, requires_grad=True)
    bias = torch.randn(6, dtype=torch.float64, requires_grad=True) if with_bias else None
    parameters = [weight, *([bias] if bias is not None else [])]
    found = []
    for out in (product(x, weight, bias), library(x, weight, bias, stride=2, padding=1)):
        (slope,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        found.append([out, slope, *torch.autograd.grad(slope.square().sum(), [x, *parameters])])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("product", "library", "scale"), STRIDED, ids=IDS)
def test_a_product_in_bfloat16_is_as_near_to_the_truth_as_the_librarys(
    product: Callable[..., Tensor], library: Callable[..., Tensor], scale: int
) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(4, 128, 4 * scale, 4 * scale), torch.randn(128, 128, 4, 4) / 64
    x, weight = x.requires_grad_(), weight.requires_grad_()
    slope = torch.randn_like(library(x, weight, stride=2, padding=1))

    def with_gradients(out: Tensor) -> tuple[Tensor, ...]:
        return out, *torch.autograd.grad(out, (x, weight), slope.to(out.dtype))

    truth = with_gradients(library(x.double(), weight.double(), stride=2, padding=1))
    with torch.autocast("cpu", torch.bfloat16):
        outs = product(x, weight, None), library(x, weight, stride=2, padding=1)
    assert outs[0].dtype == outs[1].dtype == torch.bfloat16
    for right, *both in zip(truth, *map(with_gradients, outs), strict=True):
        own, theirs = ((one - right).square().mean().sqrt() for one in both)
        assert own < 1.5 * theirs


@pytest.mark.parametrize(("product", "_", "scale"), STRIDED, ids=IDS)
def test_the_product_is_for_mixed_precision_many_channels_and_few_pixels(
    product: Callable[..., Tensor], _: object, scale: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_product(channels: int, side: int) -> bool:
        used = []
        monkeypatch.setattr(resampling, "_cast", lambda x, original=resampling._cast: used.append(1) or original(x))
        x, weight = torch.randn(2, channels, side * scale, side * scale), torch.randn(channels, channels, 4, 4)
        product(x, weight, None)
        return bool(used)

    assert not is_product(256, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert [is_product(*case) for case in ((256, 4), (256, 8), (64, 4))] == [True, False, False]
        with rewritten(False):
            assert not is_product(256, 4)
