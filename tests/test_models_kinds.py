"""All kinds of networks: what every one promises, published sizes, and blocks against their published formulas."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gantool import models
from gantool.config.networks import DiscriminatorConfig, GeneratorConfig, base_size
from gantool.models import r3gan, resnet
from gantool.models.layers import (
    ConditionalBatchNorm,
    Dropout,
    has_spectral_norm,
    iterate_spectral_norms,
    norm_layer,
    set_dropout,
)

CLASSES = 4
SMALL = {"width": 8, "max_width": 16}
GENERATORS: dict[str, dict[str, Any]] = {
    "conv": SMALL,
    "conv-stem": {"kind": "conv", **SMALL, "stem": "conv", "upsample": "nearest", "activation": "leaky_relu"},
    "conv-stem-residual": {"kind": "conv", **SMALL, "stem": "conv", "residual": True, "init": "orthogonal"},
    "conv-concat": {"kind": "conv", **SMALL, "condition": "concat", "spectral_norm": True},
    "mlp": {"widths": [16, 12]},
    "mlp-concat": {"kind": "mlp", "widths": [16], "norm": "none", "condition": "concat", "activation": "relu"},
    "resnet": SMALL,
    "resnet-plain": {"kind": "resnet", **SMALL, "norm": "none", "upsample": "bilinear", "init": "he"},
    "resnet-classes": {"kind": "resnet", **SMALL, "condition": "batch_norm", "attention": -1, "spectral_norm": True},
    "biggan": {**SMALL, "embedding_dim": 5, "attention": -1},
    "r3gan": {"width": 8, "group": 4},
    "r3gan-concat": {"kind": "r3gan", "width": 8, "group": 8, "blocks": 1, "condition": "concat", "embedding_dim": 5},
}
DISCRIMINATORS: dict[str, dict[str, Any]] = {
    "conv": SMALL,
    "conv-pool": {"kind": "conv", **SMALL, "head": "pool", "dropout": 0.3, "condition": "projection"},
    "conv-acgan": {"kind": "conv", **SMALL, "residual": True, "norm": "none", "condition": "acgan", "dropout": 0.2},
    "mlp": {"widths": [16, 12]},
    "mlp-projection": {"kind": "mlp", "widths": [16], "dropout": 0.0, "condition": "projection", "spectral_norm": True},
    "sngan_cnn": SMALL,
    "sngan_cnn-acgan": {"kind": "sngan_cnn", **SMALL, "spectral_norm": False, "condition": "acgan"},
    "resnet": SMALL,
    "resnet-projection": {
        **SMALL,
        "kind": "resnet",
        "condition": "projection",
        "spectral_norm": True,
        "attention": -1,  # a size of its feature maps
        "init": "orthogonal",
    },
    "resnet-acgan": {"kind": "resnet", **SMALL, "condition": "acgan", "pool": "mean"},
    "r3gan": {"width": 8, "group": 4},
    "r3gan-projection": {"kind": "r3gan", "width": 8, "blocks": 1, "condition": "projection"},
    "r3gan-acgan": {"kind": "r3gan", "width": 12, "group": 8, "blocks": 1, "condition": "acgan"},
}
SIZES = [32, 8, 28, 12, 64, 16, 20, 100, 128]


def conditional(name: str) -> bool:
    return (
        name == "biggan" or name.split("-")[-1] in ("concat", "classes", "projection", "acgan") or name == "conv-pool"
    )


def generator(name: str, size: int = 16, channels: int = 3, seed: int = 0) -> nn.Module:
    base, doublings = base_size(size)
    settings = {"kind": name, "latent_dim": 3 * (doublings + 1), **GENERATORS[name]}
    if settings.get("attention") == -1:
        settings["attention"] = 2 * base
    config = TypeAdapter(GeneratorConfig).validate_python(settings)
    assert config.conditional == conditional(name)
    torch.manual_seed(seed)
    network = models.GENERATORS[config.kind](config, size, channels, CLASSES)
    network.latent_dim = config.latent_dim  # type: ignore[assignment]
    return network


def discriminator(name: str, size: int = 16, channels: int = 3, seed: int = 0) -> nn.Module:
    settings = {"kind": name, **DISCRIMINATORS[name]}
    if settings.get("attention") == -1:
        settings["attention"] = size // 2
    config = TypeAdapter(DiscriminatorConfig).validate_python(settings)
    assert config.conditional == conditional(name)
    torch.manual_seed(seed)
    return models.DISCRIMINATORS[config.kind](config, size, channels, CLASSES)


def inputs(network: nn.Module, batch: int = 4, size: int = 16, channels: int = 3) -> tuple[Tensor, Tensor]:
    """Latents or images, and labels in which every class comes."""
    labels = torch.arange(batch) % CLASSES
    if hasattr(network, "latent_dim"):
        return torch.randn(batch, network.latent_dim), labels  # type: ignore[arg-type, call-overload]
    return torch.rand(batch, channels, size, size) * 2 - 1, labels


def made(name: str, **given: int) -> nn.Module:
    player, _, kind = name.partition(" ")
    return generator(kind, **given) if player == "G" else discriminator(kind, **given)


def perturbed(network: nn.Module) -> nn.Module:
    """With weights that are not 0 anywhere, and running moments of some batch."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    x, labels = inputs(network)
    set_dropout(network, 0, torch.arange(len(x)))
    network(x, labels)
    return network


ALL = [f"G {name}" for name in GENERATORS] + [f"D {name}" for name in DISCRIMINATORS]
CONDITIONAL = [name for name in ALL if conditional(name[2:])]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", GENERATORS)
def test_generators_make_images_of_any_size(name: str, channels: int) -> None:
    offset = list(GENERATORS).index(name) + 4 * channels
    for size in (SIZES[offset % 9], SIZES[(offset + 2) % 9], SIZES[(offset + 5) % 9]):
        network = generator(name, size, channels)
        images = network(*inputs(network))
        assert images.shape == (4, channels, size, size) and images.isfinite().all()
        assert name.startswith("r3gan") or images.abs().max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_discriminators_judge_images_of_any_size(name: str, channels: int) -> None:
    offset = list(DISCRIMINATORS).index(name) + 4 * channels
    for size in (SIZES[offset % 9], SIZES[(offset + 2) % 9], SIZES[(offset + 5) % 9]):
        network = discriminator(name, size, channels)
        set_dropout(network, 1, torch.arange(4))
        images, labels = inputs(network, 4, size, channels)
        out = network(images, labels)
        if name.endswith("acgan"):
            out, class_logits = out
            assert class_logits.shape == (4, CLASSES) and class_logits.isfinite().all()
            assert torch.equal(network(images)[0], out), "the labels are not used"
        assert out.shape == (4,) and out.isfinite().all()


@pytest.mark.parametrize("name", ALL)
def test_gradients_reach_every_parameter(name: str) -> None:
    # In eval mode: a bias before batch normalisation has no gradient in training mode.
    network = perturbed(made(name)).eval()
    out = network(*inputs(network))
    sum(part.square().sum() for part in (out if isinstance(out, tuple) else (out,))).backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), key
        assert "embedding" not in key or parameter.grad.any(dim=1).all(), key


@pytest.mark.parametrize("name", ALL)
def test_eval_mode_is_repeatable_and_takes_each_sample_alone(name: str) -> None:
    network = perturbed(made(name)).eval()
    x, labels = inputs(network)
    with torch.no_grad():
        out, again, alone = network(x, labels), network(x, labels), network(x[1:2], labels[1:2])
    if isinstance(out, tuple):
        out, again, alone = out[0], again[0], alone[0]
    assert torch.equal(out, again)
    torch.testing.assert_close(out[1:2], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_initial_weights_are_a_function_of_the_seed_and_state_dicts_go_round(name: str) -> None:
    network, same, other = made(name), made(name), copy.deepcopy(made(name, seed=1))
    state = network.state_dict()
    assert all(torch.equal(value, same.state_dict()[key]) for key, value in state.items())
    assert any(not torch.equal(value, other.state_dict()[key]) for key, value in state.items())
    state = perturbed(network).state_dict()
    other.load_state_dict(state)
    x, labels = inputs(network)
    with torch.no_grad():
        left, right = network.eval()(x, labels), other.eval()(x, labels)
    assert torch.equal(*(out[0] if isinstance(out, tuple) else out for out in (left, right)))


@pytest.mark.parametrize("name", ALL)
def test_labels_change_what_conditional_networks_give_and_nothing_else(name: str) -> None:
    network = perturbed(made(name)).eval()
    x, labels = inputs(network)
    if name.endswith("acgan"):
        return
    with torch.no_grad():
        out = network(x, labels)
        if not conditional(name[2:]):
            assert torch.equal(network(x), out)
            return
        other = network(x, (labels + torch.tensor([0, 1, 1, 1])) % CLASSES)
        with pytest.raises(AssertionError, match="needs labels"):
            network(x)
    differs = (out != other).reshape(4, -1).any(1).tolist()
    assert differs == [False, True, True, True]


@pytest.mark.parametrize("name", [name for name in ALL if has_spectral_norm(made(name))])
def test_spectral_norms_make_every_matrix_small_and_can_be_cached(name: str) -> None:
    network = made(name)
    for _ in range(100):
        iterate_spectral_norms(network)
    found = 0
    for key, module in network.named_modules():
        if parametrize.is_parametrized(module):
            dim = 1 if isinstance(module, nn.ConvTranspose2d) else 0
            sigma = torch.linalg.matrix_norm(module.weight.detach().transpose(0, dim).flatten(1), 2)
            assert float(sigma) == pytest.approx(1, abs=0.02), key
            found += 1
        elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            raise AssertionError(f"{key} has no spectral norm")
    assert found >= 3
    x, labels = inputs(network)
    network.eval()
    with torch.no_grad():
        plain = network(x, labels)
        with parametrize.cached():
            assert torch.equal(network(x, labels), plain)
            assert torch.equal(network(x, labels), plain)


@pytest.mark.parametrize("name", [name for name in DISCRIMINATORS if name not in ("conv", "conv-pool")])
def test_gradient_penalties_have_the_right_gradient(name: str) -> None:
    """The derivative of |grad D(x)|^2 along a random direction of the weights, against finite differences."""
    network = discriminator(name, 8).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    network.eval()
    x, labels = inputs(network, 2, 8)
    x = x.double().requires_grad_()

    def value(create_graph: bool) -> Tensor:
        out = network(x, labels)
        logits = out[0] if isinstance(out, tuple) else out
        return torch.autograd.grad(logits.sum(), x, create_graph=create_graph)[0].square().sum()

    parameters = list(network.parameters())
    directions = [torch.randn_like(parameter) for parameter in parameters]
    gradients = torch.autograd.grad(value(True), parameters, allow_unused=True)
    slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True) if g is not None)
    step, ends = 1e-6, []
    for sign in (1, -2):
        torch._foreach_add_([p.data for p in parameters], directions, alpha=sign * step)
        ends.append(value(False))
    torch.testing.assert_close((ends[0] - ends[1]) / (2 * step), slope, rtol=1e-3, atol=1e-6)


BIGGAN_D = {"kind": "resnet", "width": 192, "max_width": 192, "attention": 16, "condition": "projection"}
COUNTS = [
    ("G", {"kind": "conv", "latent_dim": 100, "width": 64}, 0, 3_583_555),
    ("G", {"kind": "resnet"}, 0, 4_276_739),
    ("G", {"kind": "resnet", "condition": "batch_norm"}, 10, 4_304_387),
    ("G", {"kind": "biggan"}, 10, 9_416_196),
    ("G", {"kind": "r3gan", "condition": "concat"}, 10, 20_781_952),
    ("D", {"kind": "sngan_cnn"}, 0, 5_860_865),
    ("D", {"kind": "resnet"}, 0, 1_053_825),
    ("D", {"kind": "resnet", "spectral_norm": True, "condition": "projection"}, 10, 1_055_105),
    ("D", BIGGAN_D, 10, 2_415_170),
    ("D", {"kind": "r3gan", "condition": "projection"}, 10, 21_280_512),
]


@pytest.mark.parametrize(("player", "settings", "num_classes", "expected"), COUNTS)
def test_published_numbers_of_parameters_at_32_pixels(
    player: str, settings: dict[str, Any], num_classes: int, expected: int
) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(GeneratorConfig if player == "G" else DiscriminatorConfig)
    config = adapter.validate_python(settings)
    table = models.GENERATORS if player == "G" else models.DISCRIMINATORS
    with torch.device("meta"):
        network = table[config.kind](config, 32, 3, num_classes)
    assert sum(parameter.numel() for parameter in network.parameters()) == expected


def doubled_slowly(x: Tensor, kind: str) -> Tensor:
    if kind == "nearest":
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


@pytest.mark.parametrize("kind", ["nearest", "bilinear"])
@pytest.mark.parametrize("shape", [(2, 3, 1, 2), (2, 3, 4, 4), (1, 2, 7, 5)])
def test_doubling_equals_torchs(kind: str, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    torch.testing.assert_close(resnet.doubled(x, kind), doubled_slowly(x, kind))


@pytest.mark.parametrize("kind", ["nearest", "bilinear"])
@pytest.mark.parametrize("classes", [False, True])
def test_up_block_is_the_published_formula(kind: str, classes: bool) -> None:
    """norm, ReLU, up, conv, norm, ReLU, conv + (up, then 1x1), as in mimicry's GBlock."""
    block = resnet.UpBlock(4, 6, kind, lambda c: ConditionalBatchNorm(c, 3) if classes else norm_layer("batch", c))
    x, labels = torch.randn(3, 4, 5, 5), torch.tensor([0, 2, 1])
    out = block(x, labels if classes else None)
    given = (labels,) if classes else ()
    main = block.conv1(doubled_slowly(F.relu(block.norm1(x, *given)), kind))
    main = block.conv2(F.relu(block.norm2(main, *given)))
    torch.testing.assert_close(out, main + block.shortcut(doubled_slowly(x, kind)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("outputs", "halve", "first"), [(6, True, True), (6, True, False), (4, False, False)])
def test_down_block_is_the_published_formula(outputs: int, halve: bool, first: bool) -> None:
    """As in mimicry's DBlock (1x1, then pooling) and DBlockOptimized (pooling, then 1x1)."""
    block = resnet.DownBlock(4, outputs, halve, first)
    x = torch.randn(3, 4, 6, 6)
    main = block.conv2(F.relu(block.conv1(x if first else F.relu(x))))
    expected = F.avg_pool2d(main, 2) if halve else main
    expected = expected + (F.avg_pool2d(block.shortcut(x), 2) if halve else x)
    torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-5)


def test_resnet_discriminator_is_its_blocks_then_relu_pool_and_linear() -> None:
    for pool in ("sum", "mean"):
        config = TypeAdapter(DiscriminatorConfig).validate_python({"kind": "resnet", **SMALL, "pool": pool})
        network = resnet.Discriminator(config, 32, 3)
        x = torch.randn(2, 3, 32, 32)
        blocks = [module for module in network.modules() if isinstance(module, resnet.DownBlock)]
        assert [block.halve for block in blocks] == [True, True, False, False]
        assert [block.first for block in blocks] == [True, False, False, False]
        features = x
        for block in blocks:
            features = block(features)
        assert features.shape == (2, 16, 8, 8)
        pooled = F.relu(features).sum((2, 3)) / (64 if pool == "mean" else 1)
        torch.testing.assert_close(network(x), F.linear(pooled, network.linear.weight, network.linear.bias)[:, 0])


def test_resnet_weights_have_the_gain_sqrt_2_in_the_blocks_alone() -> None:
    config = TypeAdapter(GeneratorConfig).validate_python({"kind": "resnet", "width": 32, "max_width": 32})
    torch.manual_seed(0)
    network = resnet.Generator(config, 16, 3)
    first, last = network.blocks
    gains = {first.conv1: 2**0.5, last.conv2: 2**0.5, first.shortcut: 1.0, network.linear: 1.0, network.conv: 1.0}
    for layer, gain in gains.items():
        weight = layer.weight.detach()
        bound = gain * (6 / (weight[0].numel() + weight[:, 0].numel())) ** 0.5
        assert 0.97 * bound < weight.abs().max() <= bound


def resampled(x: Tensor, up: bool) -> Tensor:
    """The authors' InterpolativeUpsamplerReference and InterpolativeDownsamplerReference: [1, 2, 1] * [1, 1]."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    kernel = torch.outer(taps, taps).expand(x.shape[1], 1, 4, 4)
    if up:
        return F.conv_transpose2d(x, 4 * kernel, stride=2, padding=1, groups=x.shape[1])
    return F.conv2d(x, kernel, stride=2, padding=1, groups=x.shape[1])


@pytest.mark.parametrize("size", [4, 6, 14])
def test_r3gan_resampling_is_the_authors(size: int) -> None:
    x = torch.randn(2, 3, size, size)
    torch.testing.assert_close(r3gan.Up()(x), resampled(x, up=True))
    torch.testing.assert_close(r3gan.Down()(x), resampled(x, up=False))


def test_r3gan_block_is_the_published_formula() -> None:
    torch.manual_seed(0)
    block = r3gan.Block(48, 16, num_blocks=8)
    x = torch.randn(2, 48, 5, 5)
    assert torch.equal(block(x), x), "the last convolution starts at 0"
    gain = (2 / 1.04) ** 0.5 * 8**-0.25
    for layer, num_inputs in ((block.expand, 48), (block.conv, 16 * 9)):
        assert float(layer.weight.detach().std()) == pytest.approx(gain / num_inputs**0.5, rel=0.05)
        assert not layer.bias.any()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(0, 0.1)
    hidden = torch.einsum("oc,bchw->bohw", block.expand.weight[:, :, 0, 0], x) + block.expand.bias[:, None, None]
    hidden = torch.where(hidden > 0, hidden, 0.2 * hidden)
    groups = zip(hidden.split(16, 1), block.conv.weight.split(16), block.conv.bias.split(16), strict=True)
    hidden = torch.cat([F.conv2d(part, weight, bias, padding=1) for part, weight, bias in groups], 1)
    hidden = torch.where(hidden > 0, hidden, 0.2 * hidden)
    expected = x + torch.einsum("oc,bchw->bohw", block.reduce.weight[:, :, 0, 0], hidden)
    torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-5)


def test_r3gan_generator_starts_as_its_basis_doubled_and_projected() -> None:
    network = generator("r3gan-concat", 16)
    latents, labels = inputs(network)
    weights = network.linear(torch.cat([latents, network.embedding.weight[labels]], 1))
    x = network.basis[None] * weights[:, :, None, None]
    for _ in range(2):
        x = resampled(x, up=True)
    torch.testing.assert_close(network(latents, labels), network.to_image(x), atol=1e-5, rtol=1e-5)


def test_r3gan_projection_takes_the_place_of_the_linear_logit() -> None:
    network = discriminator("r3gan-projection", 8)
    images, labels = inputs(network, 4, 8)
    x = resampled(network.from_image(images), up=False)
    features = network.linear((x * network.basis.weight[:, 0]).sum((2, 3)))
    expected = torch.einsum("bf,bf->b", features, network.embedding.weight[labels])
    torch.testing.assert_close(network(images, labels), expected, atol=1e-5, rtol=1e-5)


def test_biggan_gives_each_part_of_z_to_its_own_block() -> None:
    network = perturbed(generator("biggan", 16)).eval()
    latents, labels = inputs(network)
    first, *parts = latents.split(3, dim=1)
    x = network.linear(first).view(4, -1, 4, 4)
    for block, attention, part in zip(network.blocks, network.attention, parts, strict=True):
        vector = torch.cat([part, network.embedding.weight[labels]], 1)
        plain = {}
        for name, norm in (("norm1", block.norm1), ("norm2", block.norm2)):
            scale, shift = 1 + vector @ norm.scale.weight.T, vector @ norm.shift.weight.T
            plain[name] = lambda h, n=norm, a=scale, b=shift: n.norm(h) * a[..., None, None] + b[..., None, None]
        main = block.conv1(doubled_slowly(F.relu(plain["norm1"](x)), "nearest"))
        x = block.conv2(F.relu(plain["norm2"](main))) + block.shortcut(doubled_slowly(x, "nearest"))
        x = attention(x)
    expected = torch.tanh(network.conv(F.relu(network.norm(x))))
    torch.testing.assert_close(network(latents, labels), expected, atol=1e-5, rtol=1e-4)


def test_conv_stem_is_a_matrix_times_z() -> None:
    network = generator("conv-stem-residual", 28)
    latents, _ = inputs(network)
    first = network.stem(latents[:, :, None, None])
    assert first.shape == (4, 16, 7, 7)
    expected = torch.einsum("bz,zchw->bchw", latents, network.stem.weight) + network.stem.bias[:, None, None]
    torch.testing.assert_close(first, expected, atol=1e-5, rtol=1e-5)
    assert not any(isinstance(module, nn.Linear) for module in network.modules()), "no dense layer"


def test_dropout_layers_come_after_each_stage_and_differ() -> None:
    network = discriminator("conv-pool", 32)
    layers = [module for module in network.modules() if isinstance(module, Dropout)]
    assert len(layers) == 3
    set_dropout(network, 4, torch.arange(8))
    masks = [layer(torch.ones(8, 50)) for layer in layers]
    assert not torch.equal(masks[0], masks[1]) and not torch.equal(masks[1], masks[2])
    images, labels = inputs(network, 8, 32)
    whole = network.eval()(images, labels)
    assert not torch.equal(network.train()(images, labels), whole)
