"""Networks: shapes, gradients, determinism, and the layers against torch's own."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

from gantool import models
from gantool.config.networks import base_size
from gantool.config.schema import ConvGenerator, RunConfig
from gantool.models.layers import SpectralNorm, add_spectral_norm, iterate_spectral_norms

SWITCHES = list(
    itertools.product(["transposed", "nearest"], ["batch", "instance", "none"], [False, True], [False, True])
)


def config(size: int = 16, channels: int = 3, **both: object) -> RunConfig:
    only_g = {key: both.pop(key) for key in ("upsample",) if key in both}
    return RunConfig.model_validate(
        {
            "data": {"name": "shapes", "size": size, "channels": channels},
            "generator": {"width": 4, "max_width": 16, "latent_dim": 6, **both, **only_g},
            "discriminator": {"width": 4, "max_width": 16, **both},
        }
    )


@pytest.mark.parametrize(("upsample", "norm", "residual", "spectral"), SWITCHES)
def test_every_switch_gives_images_logits_and_gradients(
    upsample: str, norm: str, residual: bool, spectral: bool
) -> None:
    settings = config(upsample=upsample, norm=norm, residual=residual, spectral_norm=spectral)
    generator, discriminator = models.build_generator(settings), models.build_discriminator(settings)
    images = generator(torch.randn(5, 6))
    logits = discriminator(images)
    assert images.shape == (5, 3, 16, 16) and images.abs().max() <= 1
    assert logits.shape == (5,)
    logits.square().mean().backward()
    for network in (generator, discriminator):
        assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == [], network
    generator.eval()
    z = torch.randn(3, 6)
    assert torch.equal(generator(z), generator(z))


@pytest.mark.parametrize("size", [4, 8, 12, 28, 32, 64, 100, 128])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_multiple_of_four(size: int, channels: int) -> None:
    settings = config(size=size, channels=channels)
    images = models.build_generator(settings)(torch.randn(2, 6))
    assert images.shape == (2, channels, size, size)
    assert models.build_discriminator(settings)(images).shape == (2,)
    base, doublings = base_size(size)
    assert base * 2**doublings == size and base >= 4 and (base % 2 or base < 8)


def test_dcgan_of_the_published_width_has_the_published_number_of_parameters() -> None:
    # Linear 128 -> 4x4x512, transposed convolutions to 256, 128 and 64 channels, convolution to RGB, batch norms.
    generator = models.build_generator(RunConfig(generator=ConvGenerator(latent_dim=128, width=64)))
    expected = (128 * 8192 + 8192) + 16 * (512 * 256 + 256 * 128 + 128 * 64) + (9 * 64 * 3 + 3)
    expected += 2 * (512 + 256 + 128 + 64)
    assert sum(p.numel() for p in generator.parameters()) == expected


def test_initial_weights_depend_on_the_seed_alone() -> None:
    first, again = models.build_generator(config()), models.build_generator(config())
    torch.manual_seed(99)
    other = models.build_generator(config().model_copy(update={"seed": 1}))
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    assert not torch.equal(first.linear.weight, other.linear.weight)  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(4, 6, 4, stride=2), nn.Linear(10, 7)])
def test_spectral_norm_equals_torchs_after_the_same_iterations(layer: nn.Module) -> None:
    ours, theirs = nn.Sequential(copy.deepcopy(layer)), copy.deepcopy(layer)
    add_spectral_norm(ours)
    theirs = torch.nn.utils.parametrizations.spectral_norm(theirs)
    norm = theirs.parametrizations.weight[0]  # type: ignore[union-attr, index]
    mine = ours[0].parametrizations.weight[0]  # type: ignore[union-attr, index]
    norm._u.copy_(mine.u)
    norm._v.copy_(mine.v)
    for _ in range(3):
        iterate_spectral_norms(ours)
        torch.testing.assert_close(ours[0].weight, theirs.weight, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(4, 6, 4, stride=2), nn.Linear(10, 7)])
def test_spectral_norm_ends_at_the_true_singular_value(layer: nn.Module) -> None:
    ours = nn.Sequential(copy.deepcopy(layer))
    add_spectral_norm(ours)
    for _ in range(200):
        iterate_spectral_norms(ours)
    matrix = layer.weight.detach().transpose(0, 1 if isinstance(layer, nn.ConvTranspose2d) else 0).flatten(1)
    sigma = torch.linalg.matrix_norm(matrix, 2)
    torch.testing.assert_close(ours[0].weight, layer.weight / sigma, atol=1e-4, rtol=1e-4)


def test_spectral_norm_gradient_is_that_of_w_over_sigma() -> None:
    weight = torch.randn(5, 7, dtype=torch.float64)
    norm = SpectralNorm(weight, 0)
    assert torch.autograd.gradcheck(norm, weight.requires_grad_())


def test_spectral_norm_does_not_iterate_by_itself() -> None:
    network = nn.Sequential(nn.Linear(64, 64))
    add_spectral_norm(network)
    before = copy.deepcopy(network.state_dict())
    network(torch.randn(2, 64))
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    iterate_spectral_norms(network)
    assert any(not torch.equal(before[key], value) for key, value in network.state_dict().items())
