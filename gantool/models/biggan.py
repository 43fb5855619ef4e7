"""The generator of BigGAN (Brock et al., 2019, appendix B) for small images: every part of z reaches its own block.

Agrees with PyTorch-StudioGAN's BigGAN for CIFAR-10 (width 384, 9.416 million weights at 32x32). Its discriminator is
that of `resnet` with spectral norms, projection and attention.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gantool.config.networks import BigganGenerator, base_size
from gantool.models.layers import BatchNorm, add_spectral_norm, initialise
from gantool.models.resnet import UpBlock, attention_layers


class VectorBatchNorm(nn.Module):
    """Batch normalisation with the scale 1 + Ac and the shift Bc, linear in a vector c of each sample."""

    def __init__(self, channels: int, length: int) -> None:
        super().__init__()
        self.norm = BatchNorm(channels, affine=False)
        self.scale = nn.Linear(length, channels, bias=False)
        self.shift = nn.Linear(length, channels, bias=False)

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        """float [B, C, H, W], float [B, length] -> float [B, C, H, W]."""
        scale, shift = 1 + self.scale(vector), self.shift(vector)
        out: Tensor = self.norm(x) * scale[:, :, None, None] + shift[:, :, None, None]
        return out


class Generator(nn.Module):
    """Latents float [B, latent_dim], labels int64 [B] -> images float [B, channels, size, size] in [-1, 1]."""

    def __init__(self, config: BigganGenerator, size: int, channels: int, num_classes: int) -> None:
        super().__init__()
        self.base, doublings = base_size(size)
        widths = [min(config.width << left, config.max_width) for left in range(doublings, -1, -1)]
        self.part = config.latent_dim // (doublings + 1)
        norm = partial(VectorBatchNorm, length=self.part + config.embedding_dim)
        self.embedding = nn.Embedding(num_classes, config.embedding_dim)
        self.linear = nn.Linear(self.part, widths[0] * self.base**2)
        self.blocks = nn.ModuleList(UpBlock(a, b, "nearest", norm) for a, b in pairwise(widths))
        self.attention = attention_layers(
            widths[1:], [self.base << i for i in range(1, doublings + 1)], config.attention
        )
        self.norm = BatchNorm(widths[-1])
        self.conv = nn.Conv2d(widths[-1], channels, 3, padding=1)
        initialise(self, config.init)
        if config.spectral_norm:
            add_spectral_norm(self, but=self.embedding)  # class vectors are inputs, like z

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """float [B, latent_dim], labels int64 [B] -> float [B, channels, size, size] in [-1, 1]."""
        assert labels is not None, "a conditional generator needs labels"
        first, *parts = torch.split(latents, self.part, dim=1)
        classes = self.embedding(labels)
        x = self.linear(first).unflatten(1, (-1, self.base, self.base))
        x = x.contiguous(memory_format=torch.channels_last)
        for block, attention, part in zip(self.blocks, self.attention, parts, strict=True):
            x = attention(block(x, torch.cat([part, classes], dim=1)))
        images: Tensor = torch.tanh(self.conv(F.relu(self.norm(x))))
        return images
