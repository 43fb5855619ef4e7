"""The networks of R3GAN (Huang et al., 2024): residual inverted bottlenecks with grouped convolutions and no norm.

Agrees with the authors' CIFAR-10 preset (20.78 and 21.28 million weights), in float32 throughout. Other image sizes
start (or end) at the size that `base_size` gives, and not always at 4x4.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gantool.config.networks import R3ganDiscriminator, R3ganGenerator, base_size
from gantool.models.layers import Head, with_class

SLOPE = 0.2
LAYERS_OF_A_BLOCK = 3


def _draw(layer: nn.Module, gain: float = 1.0) -> None:
    """Weights N(0, gain / sqrt(inputs)), biases 0. The inputs of an embedding are its one-hot classes."""
    assert isinstance(layer, (nn.Conv2d, nn.Linear, nn.Embedding))
    inputs = layer.num_embeddings if isinstance(layer, nn.Embedding) else layer.weight[0].numel()
    nn.init.normal_(layer.weight, 0.0, gain / inputs**0.5)
    if getattr(layer, "bias", None) is not None:
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]


class Block(nn.Module):
    """x + C3 lrelu(C2 lrelu(C1 x)): 1x1 to twice the channels, grouped 3x3, 1x1 back, which starts at 0."""

    def __init__(self, width: int, group: int, num_blocks: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(width, 2 * width, 1)
        self.conv = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width // group)
        self.reduce = nn.Conv2d(2 * width, width, 1, bias=False)
        # Fix-up scaling by the depth of the whole network (Zhang et al., 2019).
        gain = nn.init.calculate_gain("leaky_relu", SLOPE) * num_blocks ** (-1 / (2 * LAYERS_OF_A_BLOCK - 2))
        for layer, factor in ((self.expand, gain), (self.conv, gain), (self.reduce, 0.0)):
            _draw(layer, factor)

    def forward(self, x: Tensor) -> Tensor:
        """float [B, width, H, W] -> the same shape."""
        out: Tensor = F.leaky_relu(self.expand(x), SLOPE)
        out = self.reduce(F.leaky_relu(self.conv(out), SLOPE))
        return x + out


class Up(nn.Module):
    """Upsampling by zeros between and around the pixels and the filter [1, 3, 3, 1] / 4 along both axes."""

    def forward(self, x: Tensor) -> Tensor:
        """float [B, C, H, W] -> [B, C, 2H, 2W]."""
        # [1, 3, 3, 1] is [1, 1] three times: repeated pixels and two boxes.
        return F.avg_pool2d(F.avg_pool2d(F.interpolate(x, scale_factor=2), 2, stride=1, padding=1), 2, stride=1)


class Down(nn.Module):
    """Downsampling by the filter [1, 3, 3, 1] / 8 along both axes, with zeros around the image."""

    def forward(self, x: Tensor) -> Tensor:
        """float [B, C, H, W] -> [B, C, H/2, W/2]."""
        return F.avg_pool2d(F.avg_pool2d(F.avg_pool2d(x, 2, stride=1, padding=1), 2, stride=1), 2)


class Generator(nn.Module):
    """Latents float [B, latent_dim] -> images float [B, channels, size, size], about [-1, 1] (there is no tanh)."""

    def __init__(self, config: R3ganGenerator, size: int, channels: int, num_classes: int = 0) -> None:
        super().__init__()
        base, doublings = base_size(size)
        classes = config.condition == "concat"
        num_blocks = (doublings + 1) * config.blocks
        self.embedding = nn.Embedding(num_classes, config.embedding_dim) if classes else None
        self.basis = nn.Parameter(torch.randn(config.width, base, base))
        inputs = config.latent_dim + (config.embedding_dim if classes else 0)
        self.linear = nn.Linear(inputs, config.width, bias=False)
        layers: list[nn.Module] = []
        for stage in range(doublings + 1):
            layers += [Up()] if stage else []
            layers += [Block(config.width, config.group, num_blocks) for _ in range(config.blocks)]
        self.body = nn.Sequential(*layers)
        self.to_image = nn.Conv2d(config.width, channels, 1, bias=False)
        for layer in filter(None, (self.embedding, self.linear, self.to_image)):
            _draw(layer)

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """float [B, latent_dim], labels int64 [B] if conditional -> float [B, channels, size, size]."""
        weights = self.linear(with_class(latents, labels, self.embedding))
        x = self.basis * weights[:, :, None, None]
        images: Tensor = self.to_image(self.body(x.contiguous(memory_format=torch.channels_last)))
        return images


class Discriminator(nn.Module):
    """Images float [B, channels, size, size] in [-1, 1] -> logits float [B], positive for real."""

    def __init__(self, config: R3ganDiscriminator, size: int, channels: int, num_classes: int = 0) -> None:
        super().__init__()
        base, halvings = base_size(size)
        num_blocks = (halvings + 1) * config.blocks
        width = config.width
        self.from_image = nn.Conv2d(channels, width, 1, bias=False)
        layers: list[nn.Module] = []
        for stage in range(halvings + 1):
            layers += [Down()] if stage else []
            layers += [Block(width, config.group, num_blocks) for _ in range(config.blocks)]
        self.body = nn.Sequential(*layers)
        self.basis = nn.Conv2d(width, width, base, groups=width, bias=False)
        drawn: list[nn.Module] = [self.from_image, self.basis]
        # A projection takes the place of the linear logit: the inner product with the vector of the class is the logit.
        self.embedding = nn.Embedding(num_classes, width) if config.condition.kind == "projection" else None
        if self.embedding is not None:
            self.linear: nn.Module = nn.Linear(width, width, bias=False)
            _draw(self.embedding, width**-0.5)
            drawn.append(self.linear)
        else:
            self.linear = Head(width, config.condition, num_classes, bias=False)
            drawn += filter(None, (self.linear, self.linear.classes))
        for layer in drawn:
            _draw(layer)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Any:
        """float [B, channels, size, size] in [-1, 1] -> what `Head` gives."""
        features = self.basis(self.body(self.from_image(images))).flatten(1)
        if self.embedding is None:
            return self.linear(features)
        assert labels is not None, "a projection discriminator needs labels"
        return (self.linear(features) * self.embedding(labels)).sum(1)
