"""The networks, by `kind`: to add one, write its file and add its line to the table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from gantool import randomness
from gantool.config.schema import RunConfig
from gantool.models import conv

# kind -> builder(config of that kind, image size in pixels, image channels)
GENERATORS: dict[str, Callable[[Any, int, int], nn.Module]] = {"conv": conv.Generator}
DISCRIMINATORS: dict[str, Callable[[Any, int, int], nn.Module]] = {"conv": conv.Discriminator}


def build_generator(config: RunConfig) -> nn.Module:
    """The generator of `config` on the CPU, initialised from its seed: latents [B, latent_dim] -> images in [-1, 1]."""
    return _build(GENERATORS[config.generator.kind], config.generator, config, 0)


def build_discriminator(config: RunConfig) -> nn.Module:
    """The discriminator of `config` on the CPU, initialised from its seed: images in [-1, 1] -> logits [B]."""
    return _build(DISCRIMINATORS[config.discriminator.kind], config.discriminator, config, 1)


def _build(builder: Callable[[Any, int, int], nn.Module], settings: Any, config: RunConfig, player: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(randomness.generator(config.seed, "init", player).integers(2**63)))
        return builder(settings, config.data.image_size, config.data.image_channels)
