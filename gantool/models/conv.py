"""The DCGAN family (Radford et al., 2016), with the switches of the ablation: how to upsample, which norm, residual
blocks (He et al., 2016, with pre-activation as in Gulrajani et al., 2017) or none, spectral normalisation.

Any image size that is a multiple of 4: the networks start (or end) at the size reached by halving as long as it stays
even and at least 4, for example 4x4 for 32 and 64, 7x7 for 28.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gantool.config.networks import ConvDiscriminator, ConvGenerator, base_size
from gantool.models.layers import (
    LEAKY_GAIN,
    Dropout,
    Head,
    activation,
    add_spectral_norm,
    initialise,
    norm_layer,
    with_class,
)
from gantool.models.resampling import Doubling, Halving, doubled_conv
from gantool.models.winograd import Conv3x3


class UpConv(nn.Module):
    """Double the size, change the channels: 4x4 transposed convolution, or nearest upsampling and a 3x3 convolution."""

    def __init__(self, kind: str, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.conv: nn.Module = Conv3x3(inputs, outputs, bias) if kind == "nearest" else Doubling(inputs, outputs, bias)

    def forward(self, x: Tensor) -> Tensor:
        """float [B, inputs, H, W] -> [B, outputs, 2H, 2W]."""
        return doubled_conv(x, self.conv) if isinstance(self.conv, nn.Conv2d) else self.conv(x)


class UpStage(nn.Sequential):
    """Plain stage of the generator: double, norm, activation."""

    def __init__(self, config: ConvGenerator, inputs: int, outputs: int) -> None:
        up = UpConv(config.upsample, inputs, outputs, bias=config.norm == "none")
        super().__init__(up, norm_layer(config.norm, outputs), activation(config.activation))


class UpBlock(nn.Module):
    """Residual stage of the generator: norm, activation, double, norm, activation, convolution, plus a 1x1 shortcut."""

    def __init__(self, config: ConvGenerator, inputs: int, outputs: int) -> None:
        super().__init__()
        bias = config.norm == "none"
        self.main = nn.Sequential(
            norm_layer(config.norm, inputs),
            activation(config.activation),
            UpConv(config.upsample, inputs, outputs, bias),
            norm_layer(config.norm, outputs),
            activation(config.activation),
            Conv3x3(outputs, outputs),
        )
        self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """float [B, inputs, H, W] -> [B, outputs, 2H, 2W]."""
        # A 1x1 convolution commutes with nearest upsampling: it is done on the small side.
        out: Tensor = self.main(x) + F.interpolate(self.shortcut(x), scale_factor=2)
        return out


class Generator(nn.Module):
    """Latents float [B, latent_dim] -> images float [B, channels, size, size] in [-1, 1]."""

    def __init__(self, config: ConvGenerator, size: int, channels: int, num_classes: int = 0) -> None:
        super().__init__()
        self.base, doublings = base_size(size)
        widths = [min(config.width << left, config.max_width) for left in range(doublings, -1, -1)]
        classes = config.condition == "concat"
        inputs = config.latent_dim * (1 + classes)
        self.stem = None
        if config.stem == "linear":
            self.linear = nn.Linear(inputs, widths[0] * self.base**2)
        else:  # one pixel becomes base x base; the stride only says so
            bias = config.residual or config.norm == "none"
            self.stem = nn.ConvTranspose2d(inputs, widths[0], self.base, stride=self.base, bias=bias)
        stage = UpBlock if config.residual else UpStage
        start = [] if config.residual else [norm_layer(config.norm, widths[0]), activation(config.activation)]
        stages = [stage(config, a, b) for a, b in pairwise(widths)]
        tail = [norm_layer(config.norm, widths[-1]), activation(config.activation)] if config.residual else []
        self.body = nn.Sequential(*start, *stages, *tail, nn.Conv2d(widths[-1], channels, 3, padding=1), nn.Tanh())
        initialise(self, config.init or default_init(config.norm), LEAKY_GAIN)
        if config.spectral_norm:
            add_spectral_norm(self)
        # N(0, 1) and without spectral norm: the vector of the class is an input beside z, not a weight.
        self.embedding = nn.Embedding(num_classes, config.latent_dim) if classes else None

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """float [B, latent_dim], labels int64 [B] if conditional -> float [B, channels, size, size] in [-1, 1]."""
        x = with_class(latents, labels, self.embedding)
        if self.stem is not None:
            x = self.stem(x[:, :, None, None])
        else:
            x = self.linear(x).unflatten(1, (-1, self.base, self.base))
        images: Tensor = self.body(x.contiguous(memory_format=torch.channels_last))
        return images


def default_init(norm: str) -> Any:
    """The initial weights that `init: null` means: small where norms follow, else scaled by the number of inputs."""
    return "he" if norm == "none" else "normal"


class DownStage(nn.Sequential):
    """Plain stage of the discriminator: 4x4 convolution with stride 2, norm (not in the first), LeakyReLU."""

    def __init__(self, config: ConvDiscriminator, inputs: int, outputs: int, first: bool) -> None:
        norm = "none" if first else config.norm
        conv = Halving(inputs, outputs, bias=norm == "none")
        super().__init__(conv, norm_layer(norm, outputs), nn.LeakyReLU(0.2))


class DownBlock(nn.Module):
    """Residual stage of the discriminator: (norm, LeakyReLU,) convolution, norm, LeakyReLU, strided convolution, plus a
    pooled 1x1 shortcut."""

    def __init__(self, config: ConvDiscriminator, inputs: int, outputs: int, first: bool) -> None:
        super().__init__()
        head: list[nn.Module] = [] if first else [norm_layer(config.norm, inputs), nn.LeakyReLU(0.2)]
        self.main = nn.Sequential(
            *head,
            Conv3x3(inputs, outputs, bias=config.norm == "none"),
            norm_layer(config.norm, outputs),
            nn.LeakyReLU(0.2),
            Halving(outputs, outputs),
        )
        self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """float [B, inputs, H, W] -> [B, outputs, H/2, W/2]."""
        # A 1x1 convolution commutes with average pooling: it is done on the small side.
        out: Tensor = self.main(x) + self.shortcut(F.avg_pool2d(x, 2))
        return out


class Discriminator(nn.Module):
    """Images float [B, channels, size, size] in [-1, 1] -> logits float [B], positive for real."""

    def __init__(self, config: ConvDiscriminator, size: int, channels: int, num_classes: int = 0) -> None:
        super().__init__()
        base, halvings = base_size(size)
        widths = [channels, *(min(config.width << i, config.max_width) for i in range(halvings))]
        stage = DownBlock if config.residual else DownStage
        stages: list[nn.Module] = []
        for i, (a, b) in enumerate(pairwise(widths)):
            stages += [stage(config, a, b, i == 0)]
            stages += [Dropout(config.dropout)] if config.dropout else []
        tail = [nn.LeakyReLU(0.2)] if config.residual else []
        self.body = nn.Sequential(*stages, *tail)
        self.pool = config.head == "pool"
        self.linear = Head(widths[-1] * (1 if self.pool else base**2), config.condition, num_classes)
        initialise(self, config.init or default_init(config.norm), LEAKY_GAIN)
        if config.spectral_norm:
            add_spectral_norm(self)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Any:
        """float [B, channels, size, size] in [-1, 1] -> what `Head` gives."""
        x = self.body(images)
        return self.linear(x.sum(dim=(2, 3)) if self.pool else x.flatten(1), labels)
