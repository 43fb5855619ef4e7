"""The convolutional discriminator of SNGAN (Miyato et al., 2018, table 3), for any image size that is a multiple of 4.

Agrees with pytorch-gan-collections' Discriminator32 and, at width 64 and size 32, has its 5.86 million weights.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from gantool.config.networks import SnganCnnDiscriminator, base_size
from gantool.models.layers import Head, add_spectral_norm, initialise
from gantool.models.resampling import Halving
from gantool.models.winograd import Conv3x3

SLOPE = 0.1


class Discriminator(nn.Module):
    """Images float [B, channels, size, size] in [-1, 1] -> logits float [B], positive for real."""

    def __init__(self, config: SnganCnnDiscriminator, size: int, channels: int, num_classes: int = 0) -> None:
        super().__init__()
        base, halvings = base_size(size)
        widths = [min(config.width << i, config.max_width) for i in range(halvings + 1)]
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(pairwise(widths)):
            layers += [Conv3x3(a if i else channels, a), nn.LeakyReLU(SLOPE)]
            layers += [Halving(a, b), nn.LeakyReLU(SLOPE)]
        layers += [Conv3x3(widths[-1], widths[-1]), nn.LeakyReLU(SLOPE)]
        self.body = nn.Sequential(*layers)
        self.linear = Head(widths[-1] * base**2, config.condition, num_classes)
        initialise(self, "normal" if config.spectral_norm else "he", nn.init.calculate_gain("leaky_relu", SLOPE))
        if config.spectral_norm:
            add_spectral_norm(self)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Any:
        """float [B, channels, size, size] in [-1, 1] -> what `Head` gives."""
        return self.linear(self.body(images).flatten(1), labels)
