"""The networks, by `kind`: to add one, write its file and add its line to the table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from gantool import randomness
from gantool.config.schema import RunConfig
from gantool.models import biggan, conv, custom, mlp, r3gan, resnet, sngan_cnn

Builder = Callable[[Any, int, int, int], nn.Module]
"""(settings of that kind, image size in pixels, image channels, number of classes) -> network."""

GENERATORS: dict[str, Builder] = {
    "conv": conv.Generator,
    "mlp": mlp.Generator,
    "resnet": resnet.Generator,
    "biggan": biggan.Generator,
    "r3gan": r3gan.Generator,
    "custom": custom.build,
}
DISCRIMINATORS: dict[str, Builder] = {
    "conv": conv.Discriminator,
    "mlp": mlp.Discriminator,
    "sngan_cnn": sngan_cnn.Discriminator,
    "resnet": resnet.Discriminator,
    "r3gan": r3gan.Discriminator,
    "custom": custom.build,
}


def build_generator(config: RunConfig, num_classes: int = 0) -> nn.Module:
    """The generator of `config` on the CPU, initialised from its seed: latents float [B, latent_dim] and, if it is
    class-conditional, labels int64 [B] -> images float [B, C, H, W] in [-1, 1]."""
    return _build(GENERATORS[config.generator.kind], config.generator, config, num_classes, 0)


def build_discriminator(config: RunConfig, num_classes: int = 0) -> nn.Module:
    """The discriminator of `config` on the CPU, initialised from its seed: images in [-1, 1] and, if it is
    class-conditional, labels int64 [B] -> logits float [B], with an auxiliary classifier (logits, class logits
    float [B, num_classes])."""
    return _build(DISCRIMINATORS[config.discriminator.kind], config.discriminator, config, num_classes, 1)


def _build(builder: Builder, settings: Any, config: RunConfig, num_classes: int, player: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(randomness.generator(config.seed, "init", player).integers(2**63)))
        return builder(settings, config.data.image_size, config.data.image_channels, num_classes)
