"""Fully connected networks, as in the first GAN (Goodfellow et al., 2014), with the norms of later ones."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from gantool.config.networks import MlpDiscriminator, MlpGenerator
from gantool.models.layers import (
    LEAKY_GAIN,
    BatchNorm,
    Dropout,
    Head,
    activation,
    add_spectral_norm,
    initialise,
    with_class,
)


class Generator(nn.Module):
    """Latents float [B, latent_dim] -> images float [B, channels, size, size] in [-1, 1]."""

    def __init__(self, config: MlpGenerator, size: int, channels: int, num_classes: int = 0) -> None:
        super().__init__()
        self.shape = (channels, size, size)
        classes = config.condition == "concat"
        layers: list[nn.Module] = []
        for a, b in pairwise([config.latent_dim * (1 + classes), *config.widths]):
            norm = [BatchNorm(b)] if config.norm == "batch" else []
            layers += [nn.Linear(a, b, bias=not norm), *norm, activation(config.activation)]
        self.body = nn.Sequential(*layers, nn.Linear(config.widths[-1], math.prod(self.shape)), nn.Tanh())
        initialise(self, "normal" if config.norm == "batch" else "he", LEAKY_GAIN)
        self.embedding = nn.Embedding(num_classes, config.latent_dim) if classes else None

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """float [B, latent_dim], labels int64 [B] if conditional -> float [B, channels, size, size] in [-1, 1]."""
        images: Tensor = self.body(with_class(latents, labels, self.embedding))
        return images.view(-1, *self.shape)


class Discriminator(nn.Module):
    """Images float [B, channels, size, size] in [-1, 1] -> logits float [B], positive for real."""

    def __init__(self, config: MlpDiscriminator, size: int, channels: int, num_classes: int = 0) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        for a, b in pairwise([channels * size**2, *config.widths]):
            layers += [nn.Linear(a, b), nn.LeakyReLU(0.2)]
            layers += [Dropout(config.dropout)] if config.dropout else []
        self.body = nn.Sequential(*layers)
        self.linear = Head(config.widths[-1], config.condition, num_classes)
        initialise(self, "he", LEAKY_GAIN)
        if config.spectral_norm:
            add_spectral_norm(self)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Any:
        """float [B, channels, size, size] in [-1, 1] -> what `Head` gives."""
        return self.linear(self.body(images), labels)
