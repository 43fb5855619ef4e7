"""Building blocks the networks share: norms that agree across ranks, spectral normalisation, initialisation."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation over the global batch: with several ranks the moments are averaged over all of them, so that
    a run's numbers do not depend on the number of ranks (up to rounding). Plain `nn.BatchNorm2d` on one rank."""

    def forward(self, x: Tensor) -> Tensor:
        """float [B, C, H, W] -> the same shape."""
        if not (self.training and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(x)
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        world = dist.get_world_size()
        # Two passes: the variance around the global mean keeps float32's digits, unlike E[x^2] - E[x]^2.
        mean = _SumOverRanks.apply(x.mean(dim=(0, 2, 3))) / world
        centred = x - mean[:, None, None]
        var = _SumOverRanks.apply(centred.square().mean(dim=(0, 2, 3))) / world
        count = world * x.numel() // x.shape[1]
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / (count - 1)), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        scale = torch.rsqrt(var + self.eps) * self.weight
        out: Tensor = centred * scale[:, None, None] + self.bias[:, None, None]
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
        """The weight divided by the current estimate of its largest singular value."""
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


def add_spectral_norm(network: nn.Module) -> None:
    """Normalise the weight of each convolution and linear layer of `network`."""
    for module in list(network.modules()):
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            output_dim = 1 if isinstance(module, nn.ConvTranspose2d) else 0
            parametrize.register_parametrization(module, "weight", SpectralNorm(module.weight, output_dim))


def initialise(network: nn.Module, normalised: bool) -> None:
    """Weights of a fresh network: N(0, 0.02) where a norm follows (Radford et al., 2016), else He et al. (2015) for the
    leaky slope 0.2; biases 0."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            if normalised:
                nn.init.normal_(module.weight, 0.0, 0.02)
            else:
                fan_in = module.weight[0].numel()
                if isinstance(
                    module, nn.ConvTranspose2d
                ):  # inputs first; each output sees one of stride^2 kernel parts
                    fan_in = module.weight[:, 0].numel() // (module.stride[0] * module.stride[1])
                nn.init.normal_(module.weight, 0.0, nn.init.calculate_gain("leaky_relu", 0.2) / fan_in**0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
