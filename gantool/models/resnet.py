"""The residual networks of WGAN-GP and SNGAN (Gulrajani et al., 2017; Miyato et al., 2018, table 4), with
class-conditional norms and projection (Miyato & Koyama, 2018) and self-attention (Zhang et al., 2019) as options.

Agrees with mimicry's sngan_32, wgan_gp_32 and cgan_pd_32 (there with bilinear upsampling), but for the shortcut, which
gets a block's input as it is and not after an in-place ReLU. 1x1 convolutions commute with pooling, and with
upsampling by weights that sum to 1: shortcuts are computed on the small side.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gantool.config.networks import ResnetDiscriminator, ResnetGenerator, base_size, resnet_halvings
from gantool.models.layers import (
    ConditionalBatchNorm,
    Head,
    SelfAttention,
    add_spectral_norm,
    initialise,
    norm_layer,
)
from gantool.models.resampling import bilinear, doubled_conv, pooled_conv
from gantool.models.winograd import Conv3x3


def doubled(x: Tensor, kind: str) -> Tensor:
    """float [B, C, H, W] -> [B, C, 2H, 2W] by `nearest` or `bilinear` upsampling (half-pixel centres)."""
    return F.interpolate(x, scale_factor=2) if kind == "nearest" else bilinear(x)


class UpBlock(nn.Module):
    """norm, ReLU, double, convolution, norm, ReLU, convolution, plus a doubled 1x1 shortcut. The norms get the class
    when there is a condition."""

    def __init__(self, inputs: int, outputs: int, upsample: str, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.upsample = upsample
        self.norm1, self.norm2 = norm(inputs), norm(outputs)
        self.conv1, self.conv2 = Conv3x3(inputs, outputs), Conv3x3(outputs, outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """float [B, inputs, H, W], and what the norms take beside it -> [B, outputs, 2H, 2W]."""
        given = () if condition is None else (condition,)
        out: Tensor = F.relu(self.norm1(x, *given))
        nearest = self.upsample == "nearest"
        out = doubled_conv(out, self.conv1) if nearest else self.conv1(doubled(out, self.upsample))
        out = self.conv2(F.relu(self.norm2(out, *given)))
        shortcut: Tensor = doubled(self.shortcut(x), self.upsample)
        return out + shortcut


class DownBlock(nn.Module):
    """(ReLU,) convolution, ReLU, convolution(, pooling), plus a shortcut: 1x1, or the identity where nothing changes.
    The first block of a network ("optimised") has no ReLU on the image."""

    def __init__(self, inputs: int, outputs: int, halve: bool, first: bool = False) -> None:
        super().__init__()
        self.halve, self.first = halve, first
        self.conv1, self.conv2 = Conv3x3(inputs, outputs), Conv3x3(outputs, outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if halve or inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """float [B, inputs, H, W] -> [B, outputs, H, W], or half as high and wide."""
        out: Tensor = F.relu(self.conv1(x if self.first else F.relu(x)))
        out = pooled_conv(out, self.conv2) if self.halve else self.conv2(out)
        x = F.avg_pool2d(x, 2) if self.halve else x
        shortcut: Tensor = self.shortcut(x)
        return out + shortcut


def initialise_resnet(network: nn.Module, init: Any) -> None:
    """`initialise`, with the gain sqrt(2) (he, xavier) on the 3x3 convolutions of the blocks."""
    initialise(network, init)
    for block in network.modules():
        if isinstance(block, (UpBlock, DownBlock)):
            for conv in (block.conv1, block.conv2):
                initialise(conv, init, gain=2**0.5)


class Generator(nn.Module):
    """Latents float [B, latent_dim] -> images float [B, channels, size, size] in [-1, 1]."""

    def __init__(self, config: ResnetGenerator, size: int, channels: int, num_classes: int = 0) -> None:
        super().__init__()
        self.conditional = config.condition == "batch_norm"
        self.base, doublings = base_size(size)
        widths = [min(config.width << left, config.max_width) for left in range(doublings, -1, -1)]
        norm: Callable[[int], nn.Module] = partial(norm_layer, config.norm)
        if self.conditional:
            norm = partial(ConditionalBatchNorm, num_classes=num_classes)
        self.linear = nn.Linear(config.latent_dim, widths[0] * self.base**2)
        self.blocks = nn.ModuleList(UpBlock(a, b, config.upsample, norm) for a, b in pairwise(widths))
        self.attention = attention_layers(
            widths[1:], [self.base << i for i in range(1, doublings + 1)], config.attention
        )
        self.norm = norm_layer(config.norm, widths[-1])
        self.conv = nn.Conv2d(widths[-1], channels, 3, padding=1)
        initialise_resnet(self, config.init)
        if config.spectral_norm:
            add_spectral_norm(self)

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """float [B, latent_dim], labels int64 [B] if conditional -> float [B, channels, size, size] in [-1, 1]."""
        assert not self.conditional or labels is not None, "a conditional generator needs labels"
        x = self.linear(latents).unflatten(1, (-1, self.base, self.base))
        x = x.contiguous(memory_format=torch.channels_last)
        for block, attention in zip(self.blocks, self.attention, strict=True):
            x = attention(block(x, labels if self.conditional else None))
        images: Tensor = torch.tanh(self.conv(F.relu(self.norm(x))))
        return images


def attention_layers(widths: list[int], sizes: list[int], wanted: int | None) -> nn.ModuleList:
    """For feature maps of `widths` channels and `sizes` pixels: self-attention at the wanted size, or the identity."""
    pairs = zip(widths, sizes, strict=True)
    return nn.ModuleList(SelfAttention(width) if size == wanted else nn.Identity() for width, size in pairs)


class Discriminator(nn.Module):
    """Images float [B, channels, size, size] in [-1, 1] -> logits float [B], positive for real."""

    def __init__(self, config: ResnetDiscriminator, size: int, channels: int, num_classes: int = 0) -> None:
        super().__init__()
        halvings = resnet_halvings(size)
        widths = [min(config.width << i, config.max_width) for i in range(halvings)]
        stages = []
        attention = attention_layers(widths, [size >> i for i in range(1, halvings + 1)], config.attention)
        for i, (a, b) in enumerate(pairwise([channels, *widths])):
            stages += [DownBlock(a, b, halve=True, first=i == 0), attention[i]]
        stages += [DownBlock(widths[-1], widths[-1], halve=False) for _ in range(2)]
        self.body = nn.Sequential(*stages, nn.ReLU())
        self.pool = torch.sum if config.pool == "sum" else torch.mean
        self.linear = Head(widths[-1], config.condition, num_classes)
        initialise_resnet(self, config.init)
        if config.spectral_norm:
            add_spectral_norm(self)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Any:
        """float [B, channels, size, size] in [-1, 1] -> what `Head` gives."""
        return self.linear(self.pool(self.body(images), dim=(2, 3)), labels)
