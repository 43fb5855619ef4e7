"""What training changes: two networks, their optimizers, the averaged generator, the step. A checkpoint holds it all.

There is no random state and no loader state: both are functions of the step (see `randomness`).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from gantool import models
from gantool.config.schema import AdamConfig, RunConfig
from gantool.errors import GantoolError
from gantool.models.layers import iterate_spectral_norms


class State:
    """The state of a run at `step` generator updates, on a device."""

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        self.config = config
        self.step = 0
        self.generator = _place(models.build_generator(config), device)
        self.discriminator = _place(models.build_discriminator(config), device)
        self.ema = copy.deepcopy(self.generator).requires_grad_(False).eval()
        self.optimizers = {
            "generator": _optimizer(config.optimizer.generator, self.generator),
            "discriminator": _optimizer(config.optimizer.discriminator, self.discriminator),
        }
        self.pending: list[Tensor] = []  # the numbers of each step since the last report, float32, see train.SCALARS
        live, average = dict(self.generator.named_buffers()), dict(self.ema.named_buffers())
        # Running moments of batch normalisation are averaged like weights, over the same window; other buffers copied.
        running = {name for name in live if name.endswith(("running_mean", "running_var"))}
        self._averaged = (
            [*self.ema.parameters(), *(average[name] for name in sorted(running))],
            [*self.generator.parameters(), *(live[name] for name in sorted(running))],
        )
        self._copied = [(average[name], live[name]) for name in live if name not in running]

    @torch.no_grad()
    def update_ema(self) -> None:
        """ema <- decay ema + (1 - decay) generator, with the decay of the current step."""
        settings = self.config.ema
        decay = min(settings.decay, (1 + self.step) / (10 + self.step)) if settings.warmup else settings.decay
        averages, values = self._averaged
        torch._foreach_lerp_(averages, [value.detach() for value in values], 1 - decay)
        for average, value in self._copied:
            average.copy_(value)

    def averaged_generator(self) -> nn.Module:
        """The averaged generator, to sample; spectral norms are those of the averaged weights."""
        if not self.config.generator.spectral_norm:
            return self.ema
        generator = copy.deepcopy(self.ema)
        for _ in range(5):
            iterate_spectral_norms(generator)
        return generator

    def finite(self) -> bool:
        """Whether all weights of the networks are finite numbers."""
        weights = [*self.ema.parameters(), *self.generator.parameters(), *self.discriminator.parameters()]
        return bool(torch.stack([torch.isfinite(weight).all() for weight in weights]).all())

    def tensors(self) -> dict[str, Tensor]:
        """The whole state as named tensors: networks, optimizers, pending numbers."""
        named = {f"{part}.{name}": value for part in _PARTS for name, value in getattr(self, part).state_dict().items()}
        for player, optimizer in self.optimizers.items():
            for index, values in optimizer.state_dict()["state"].items():
                named |= {f"optimizer.{player}.{index}.{name}": value for name, value in values.items()}
        if self.pending:
            named["pending"] = torch.stack(self.pending)
        return named

    def load(self, tensors: dict[str, Tensor], step: int) -> None:
        """Take the state from named tensors; GantoolError when they belong to other networks."""
        try:
            for part in _PARTS:
                prefix = f"{part}."
                own = {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
                getattr(self, part).load_state_dict(own)
        except RuntimeError as error:
            raise GantoolError(
                f"the checkpoint does not fit the networks: {error}", "start in a new directory"
            ) from None
        for player, optimizer in self.optimizers.items():
            prefix, values = f"optimizer.{player}.", optimizer.state_dict()
            values["state"] = {}
            parameters = list(getattr(self, player).parameters())
            for name, value in tensors.items():
                if name.startswith(prefix):
                    index, key = name[len(prefix) :].split(".", 1)
                    like = parameters[int(index)]
                    if value.shape == like.shape:
                        # The fused kernels walk through memory: moments must lie as their weight does (channels last).
                        value = torch.empty_like(like, device="cpu").copy_(value)
                    values["state"].setdefault(int(index), {})[key] = value
            optimizer.load_state_dict(values)
        device = next(self.generator.parameters()).device
        self.pending = list(tensors["pending"].to(device)) if "pending" in tensors else []
        self.step = step


_PARTS = ("generator", "discriminator", "ema")


def _place(network: nn.Module, device: torch.device) -> nn.Module:
    return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _optimizer(settings: AdamConfig, network: nn.Module) -> torch.optim.Optimizer:
    betas = (settings.beta1, settings.beta2)
    fused: dict[str, Any] = {"fused": True} if next(network.parameters()).device.type in ("cpu", "cuda") else {}
    return torch.optim.Adam(network.parameters(), settings.lr, betas, settings.eps, **fused)
