"""Building blocks the networks share: norms that agree across ranks, spectral normalisation, self-attention, dropout as
a pure function, the discriminators' last layer, initialisation."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gantool.config.networks import AuxiliaryClassifier, Init, Projection, Unconditional

Weighted = nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.Embedding
LEAKY_GAIN = nn.init.calculate_gain("leaky_relu", 0.2)
_WEYL = 0x9E3779B97F4A7C15 - 2**64  # the golden ratio times 2^64


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation over the global batch: with several ranks the moments are averaged over all of them, so that
    a run's numbers do not depend on the number of ranks (up to rounding). Torch's own on one rank."""

    def _check_input_dim(self, input: Tensor) -> None:
        assert input.ndim >= 2, f"found shape {tuple(input.shape)}, expected [B, C, ...]"

    def forward(self, x: Tensor) -> Tensor:
        """float [B, C] or [B, C, H, W] -> the same shape."""
        if not (self.training and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(x)
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        world, x = dist.get_world_size(), x.float()
        others = [0, *range(2, x.ndim)]
        shape = (-1, *[1] * (x.ndim - 2))
        # Two passes: the variance around the global mean keeps float32's digits, unlike E[x^2] - E[x]^2.
        mean = _SumOverRanks.apply(x.mean(dim=others)) / world
        centred = x - mean.view(shape)
        var = _SumOverRanks.apply(centred.square().mean(dim=others)) / world
        count = world * x.numel() // x.shape[1]
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / (count - 1)), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        scale = torch.rsqrt(var + self.eps)
        if self.affine:
            scale = scale * self.weight
        out: Tensor = centred * scale.view(shape)
        return out + self.bias.view(shape) if self.affine else out


class ConditionalBatchNorm(nn.Module):
    """Batch normalisation with a scale (at first N(1, 0.02)) and a shift (at first 0) for each class (Dumoulin et al.,
    2017; Miyato & Koyama, 2018). Agrees with mimicry's ConditionalBatchNorm2d."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.norm = BatchNorm(channels, affine=False)
        # A table and no nn.Embedding: like the weight of a norm it is no matter of init and spectral_norm.
        self.scale_and_shift = nn.Parameter(torch.zeros(num_classes, 2 * channels))
        nn.init.normal_(self.scale_and_shift[:, :channels], 1.0, 0.02)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """float [B, C, H, W], labels int64 [B] -> float [B, C, H, W]."""
        scale, shift = F.embedding(labels, self.scale_and_shift)[:, :, None, None].chunk(2, dim=1)
        out: Tensor = self.norm(x) * scale + shift
        return out


class _SumOverRanks(torch.autograd.Function):
    """The sum of a tensor over all ranks; gradients, of any order, flow back to every rank."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total: Tensor = _SumOverRanks.apply(gradient)
        return total


def norm_layer(kind: str, channels: int) -> nn.Module:
    """`batch`, `instance` (with a learned scale and shift) or `none`, for float [B, channels, H, W]."""
    if kind == "batch":
        return BatchNorm(channels)
    return nn.InstanceNorm2d(channels, affine=True) if kind == "instance" else nn.Identity()


def activation(kind: str) -> nn.Module:
    """`relu` or `leaky_relu` (slope 0.2)."""
    return nn.ReLU() if kind == "relu" else nn.LeakyReLU(0.2)


def with_class(latents: Tensor, labels: Tensor | None, embedding: nn.Module | None) -> Tensor:
    """Latents float [B, latent_dim], followed by the vectors of their labels int64 [B] if there is an embedding."""
    if embedding is None:
        return latents
    assert labels is not None, "a conditional generator needs labels"
    return torch.cat([latents, embedding(labels)], dim=1)


class SpectralNorm(nn.Module):
    """W / sigma(W) with sigma estimated by power iteration (Miyato et al., 2018, algorithm 1).

    Agrees with torch.nn.utils.parametrizations.spectral_norm, but the iteration runs when `iterate` is called (once per
    optimizer step) and not at every forward pass: the same weight serves all passes of a step.
    """

    u: Tensor
    v: Tensor

    def __init__(self, weight: Tensor, output_dim: int, eps: float = 1e-12) -> None:
        super().__init__()
        self.output_dim = output_dim  # 0, but 1 for transposed convolutions
        self.eps = eps
        matrix = self._matrix(weight.detach())
        self.register_buffer("u", F.normalize(matrix.new_empty(matrix.shape[0]).normal_(), dim=0, eps=eps))
        self.register_buffer("v", F.normalize(matrix.new_empty(matrix.shape[1]).normal_(), dim=0, eps=eps))
        self.iterate(weight, 15)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight divided by the current estimate of its largest singular value; float32 also in mixed precision."""
        kind = weight.device.type
        with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else contextlib.nullcontext():
            return weight / torch.dot(self.u, torch.mv(self._matrix(weight), self.v))

    @torch.no_grad()
    def iterate(self, weight: Tensor, times: int = 1) -> None:
        """Refine the singular vectors."""
        matrix = self._matrix(weight.detach())
        for _ in range(times):
            self.u.copy_(F.normalize(torch.mv(matrix, self.v), dim=0, eps=self.eps))
            self.v.copy_(F.normalize(torch.mv(matrix.t(), self.u), dim=0, eps=self.eps))

    def _matrix(self, weight: Tensor) -> Tensor:
        return weight.transpose(0, self.output_dim).flatten(1)


@torch.no_grad()
def iterate_spectral_norms(network: nn.Module) -> None:
    """One power iteration for each spectrally normalised weight of `network`; nothing where there is none."""
    for module in network.modules():
        if isinstance(module, parametrize.ParametrizationList):
            for parametrization in module:
                if isinstance(parametrization, SpectralNorm):
                    parametrization.iterate(module.original)


def add_spectral_norm(network: nn.Module, but: nn.Module | None = None) -> None:
    """Normalise the weight of each convolution, linear layer and embedding of `network`, `but` one."""
    for module in list(network.modules()):
        if isinstance(module, Weighted) and module is not but:
            output_dim = 1 if isinstance(module, nn.ConvTranspose2d) else 0
            parametrize.register_parametrization(module, "weight", SpectralNorm(module.weight, output_dim))


def has_spectral_norm(network: nn.Module) -> bool:
    """Whether any weight of `network` is spectrally normalised."""
    return any(isinstance(module, SpectralNorm) for module in network.modules())


class SelfAttention(nn.Module):
    """Self-attention over the positions of a feature map, added with a weight gamma that starts at 0 (Zhang et al.,
    2019; with pooled keys and values as in Brock et al., 2019). Agrees with BigGAN-PyTorch's Attention."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        keys, values = max(1, channels // 8), max(1, channels // 2)
        self.theta = nn.Conv2d(channels, keys, 1, bias=False)
        self.phi = nn.Conv2d(channels, keys, 1, bias=False)
        self.g = nn.Conv2d(channels, values, 1, bias=False)
        self.o = nn.Conv2d(values, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """float [B, C, H, W], H and W at least 2 -> the same shape."""
        queries = self.theta(x).flatten(2)  # [B, C/8, HW]
        keys = F.max_pool2d(self.phi(x), 2).flatten(2)  # [B, C/8, HW/4]
        values = F.max_pool2d(self.g(x), 2).flatten(2)  # [B, C/2, HW/4]
        # Not scaled_dot_product_attention: its fast kernels have no second derivative, which gradient penalties need.
        shares = torch.softmax(queries.transpose(1, 2) @ keys, dim=-1)
        mixed = values @ shares.transpose(1, 2)
        out: Tensor = x + self.gamma * self.o(mixed.view(*mixed.shape[:2], *x.shape[2:]))
        return out


class Head(nn.Linear):
    """The last layer of a discriminator: features to one logit, and what `condition` adds to it."""

    def __init__(
        self,
        features: int,
        condition: Unconditional | Projection | AuxiliaryClassifier,
        num_classes: int,
        bias: bool = True,
    ) -> None:
        super().__init__(features, 1, bias=bias)
        self.embedding = nn.Embedding(num_classes, features) if condition.kind == "projection" else None
        self.classes = nn.Linear(features, num_classes, bias=bias) if condition.kind == "acgan" else None

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Any:
        """float [B, features], with a projection also labels int64 [B] -> logits float [B]; with an auxiliary
        classifier (logits, class logits float [B, num_classes])."""
        logits = super().forward(features).squeeze(1)
        if self.embedding is not None:
            assert labels is not None, "a projection discriminator needs labels"
            logits = logits + (self.embedding(labels) * features).sum(1)
        return logits if self.classes is None else (logits, self.classes(features))


class Dropout(nn.Module):
    """Dropout without random state: in training mode the key, the layer, the number of the sample in the global batch
    and the number of the element in the sample decide what is kept, so that resuming is exact and ranks agree. Call
    `set_dropout` before each forward pass. The identity in eval mode."""

    streams: Tensor | None = None  # int64 [B], a random start for each sample

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """float [B, ...] -> the same shape: elements are 0 with `probability`, else divided by 1 - probability."""
        if not self.training or self.probability == 0:
            return x
        assert self.streams is not None, "set_dropout(network, key, rows) comes before a forward pass in training mode"
        assert len(self.streams) == len(x), f"set_dropout had {len(self.streams)} rows, the batch has {len(x)}"
        size = x[0].numel()
        # Each hash is cut into two 32-bit numbers, one for each element.
        counter = torch.arange(1, (size + 1) // 2 + 1, device=x.device).mul_(_WEYL)
        uniform = _mix(self.streams[:, None] + counter).view(torch.int32)[:, :size]
        keep = uniform >= min(round(self.probability * 2**32) - 2**31, 2**31 - 1)
        return x * keep.reshape(x.shape).to(x.dtype).mul_(1 / (1 - self.probability))


def set_dropout(network: nn.Module, key: int | Tensor, rows: Tensor) -> None:
    """Tell the Dropout layers of `network`, if it has any, which pass comes next: `key` stands for the seed, the step
    and the pass, as a number or as its `dropout_starts` on the network's device; `rows`, int64 [B] there too, are its
    samples' numbers in the global batch."""
    starts = key if isinstance(key, Tensor) else dropout_starts(network, key).to(rows.device)
    for layer, (first, second) in zip(_dropouts(network), starts.unbind(), strict=True):
        layer.streams = _mix(_mix(rows * _WEYL + first) + second)


def dropout_starts(network: nn.Module, key: int) -> Tensor:
    """What `key` means for each Dropout layer of `network`, int64 [layers, 2]."""
    layer = torch.arange(len(_dropouts(network)))
    return _mix(torch.stack([torch.full_like(layer, (key + 2**63) % 2**64 - 2**63), layer], dim=1))


def _dropouts(network: nn.Module) -> list[Dropout]:
    return [module for module in network.modules() if isinstance(module, Dropout)]


def _mix(x: Tensor) -> Tensor:
    """The output function of splitmix64 (Steele et al., 2014, figure 16), in place: a bijection of int64."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64), (31, 1)):
        x ^= (x >> shift).bitwise_and_(2 ** (64 - shift) - 1)  # the mask makes the shift a logical one
        if factor != 1:
            x *= factor
    return x


@torch.no_grad()
def initialise(network: nn.Module, init: Init, gain: float = 1.0) -> None:
    """Weights of a fresh network, biases 0. normal: N(0, 0.02) (Radford et al., 2016); he: N(0, gain / sqrt(inputs))
    (He et al., 2015); xavier: uniform (Glorot & Bengio, 2010), times gain; orthogonal (Saxe et al., 2014)."""
    for module in network.modules():
        if not isinstance(module, Weighted):
            continue
        if init == "normal":
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif init == "he":
            nn.init.normal_(module.weight, 0.0, gain / _num_inputs(module) ** 0.5)
        elif init == "xavier":
            nn.init.xavier_uniform_(module.weight, gain)
        else:
            nn.init.orthogonal_(module.weight)
        if not isinstance(module, nn.Embedding) and module.bias is not None:
            nn.init.zeros_(module.bias)


def _num_inputs(module: Weighted) -> int:
    """How many numbers an output of the layer is a weighted sum of."""
    weight = module.weight
    if isinstance(module, nn.ConvTranspose2d):  # inputs first; each output sees one of stride^2 kernel parts
        return weight[:, 0].numel() // (module.stride[0] * module.stride[1])
    return weight[0].numel()
