"""The DCGAN family (Radford et al., 2016), with the switches of the ablation: how to upsample, which norm, residual
blocks (He et al., 2016, with pre-activation as in Gulrajani et al., 2017) or none, spectral normalisation.

Any image size that is a multiple of 4: the networks start (or end) at the size reached by halving as long as it stays
even and at least 4, for example 4x4 for 32 and 64, 7x7 for 28.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gantool.config.schema import ConvDiscriminator, ConvGenerator
from gantool.models.layers import add_spectral_norm, initialise, norm_layer


def base_size(size: int) -> tuple[int, int]:
    """(smallest side, number of doublings) for images of `size` pixels: 32 -> (4, 3), 28 -> (7, 2)."""
    doublings = 0
    while size % 2 == 0 and size // 2 >= 4:
        size //= 2
        doublings += 1
    return size, doublings


class UpConv(nn.Module):
    """Double the size, change the channels: 4x4 transposed convolution, or nearest upsampling and a 3x3 convolution."""

    def __init__(self, kind: str, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.nearest = kind == "nearest"
        self.conv: nn.Module = (
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)
            if self.nearest
            else nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1, bias=bias)
        )

    def forward(self, x: Tensor) -> Tensor:
        """float [B, inputs, H, W] -> [B, outputs, 2H, 2W]."""
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2) if self.nearest else x)
        return out


class UpStage(nn.Sequential):
    """Plain stage of the generator: double, norm, ReLU."""

    def __init__(self, config: ConvGenerator, inputs: int, outputs: int) -> None:
        up = UpConv(config.upsample, inputs, outputs, bias=config.norm == "none")
        super().__init__(up, norm_layer(config.norm, outputs), nn.ReLU())


class UpBlock(nn.Module):
    """Residual stage of the generator: norm, ReLU, double, norm, ReLU, convolution, plus a 1x1 shortcut."""

    def __init__(self, config: ConvGenerator, inputs: int, outputs: int) -> None:
        super().__init__()
        bias = config.norm == "none"
        self.main = nn.Sequential(
            norm_layer(config.norm, inputs),
            nn.ReLU(),
            UpConv(config.upsample, inputs, outputs, bias),
            norm_layer(config.norm, outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1),
        )
        self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """float [B, inputs, H, W] -> [B, outputs, 2H, 2W]."""
        # A 1x1 convolution commutes with nearest upsampling: it is done on the small side.
        out: Tensor = self.main(x) + F.interpolate(self.shortcut(x), scale_factor=2)
        return out


class Generator(nn.Module):
    """Latents float [B, latent_dim] -> images float [B, channels, size, size] in [-1, 1]."""

    def __init__(self, config: ConvGenerator, size: int, channels: int) -> None:
        super().__init__()
        self.base, doublings = base_size(size)
        widths = [min(config.width << left, config.max_width) for left in range(doublings, -1, -1)]
        self.linear = nn.Linear(config.latent_dim, widths[0] * self.base**2)
        stage = UpBlock if config.residual else UpStage
        head: list[nn.Module] = [] if config.residual else [norm_layer(config.norm, widths[0]), nn.ReLU()]
        stages = [stage(config, a, b) for a, b in pairwise(widths)]
        tail = [norm_layer(config.norm, widths[-1]), nn.ReLU()] if config.residual else []
        self.body = nn.Sequential(*head, *stages, *tail, nn.Conv2d(widths[-1], channels, 3, padding=1), nn.Tanh())
        initialise(self, normalised=config.norm != "none")
        if config.spectral_norm:
            add_spectral_norm(self)

    def forward(self, latents: Tensor) -> Tensor:
        """float [B, latent_dim] -> float [B, channels, size, size] in [-1, 1]."""
        x = self.linear(latents).unflatten(1, (-1, self.base, self.base))
        images: Tensor = self.body(x.contiguous(memory_format=torch.channels_last))
        return images


class DownStage(nn.Sequential):
    """Plain stage of the discriminator: 4x4 convolution with stride 2, norm (not in the first), LeakyReLU."""

    def __init__(self, config: ConvDiscriminator, inputs: int, outputs: int, first: bool) -> None:
        norm = "none" if first else config.norm
        conv = nn.Conv2d(inputs, outputs, 4, stride=2, padding=1, bias=norm == "none")
        super().__init__(conv, norm_layer(norm, outputs), nn.LeakyReLU(0.2))


class DownBlock(nn.Module):
    """Residual stage of the discriminator: (norm, LeakyReLU,) convolution, norm, LeakyReLU, strided convolution, plus a
    pooled 1x1 shortcut."""

    def __init__(self, config: ConvDiscriminator, inputs: int, outputs: int, first: bool) -> None:
        super().__init__()
        head: list[nn.Module] = [] if first else [norm_layer(config.norm, inputs), nn.LeakyReLU(0.2)]
        self.main = nn.Sequential(
            *head,
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=config.norm == "none"),
            norm_layer(config.norm, outputs),
            nn.LeakyReLU(0.2),
            nn.Conv2d(outputs, outputs, 4, stride=2, padding=1),
        )
        self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """float [B, inputs, H, W] -> [B, outputs, H/2, W/2]."""
        # A 1x1 convolution commutes with average pooling: it is done on the small side.
        out: Tensor = self.main(x) + self.shortcut(F.avg_pool2d(x, 2))
        return out


class Discriminator(nn.Module):
    """Images float [B, channels, size, size] in [-1, 1] -> logits float [B], positive for real."""

    def __init__(self, config: ConvDiscriminator, size: int, channels: int) -> None:
        super().__init__()
        base, halvings = base_size(size)
        widths = [channels, *(min(config.width << i, config.max_width) for i in range(halvings))]
        stage = DownBlock if config.residual else DownStage
        stages = [stage(config, a, b, i == 0) for i, (a, b) in enumerate(pairwise(widths))]
        tail = [nn.LeakyReLU(0.2)] if config.residual else []
        self.body = nn.Sequential(*stages, *tail)
        self.linear = nn.Linear(widths[-1] * base**2, 1)
        initialise(self, normalised=config.norm != "none")
        if config.spectral_norm:
            add_spectral_norm(self)

    def forward(self, images: Tensor) -> Tensor:
        """float [B, channels, size, size] in [-1, 1] -> float [B]."""
        logits: Tensor = self.linear(self.body(images).flatten(1)).squeeze(1)
        return logits
