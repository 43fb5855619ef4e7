"""What training changes: two networks, their optimizers, the averaged generator, the step. A checkpoint holds it all.

There is no random state and no loader state: both are functions of the step (see `randomness`).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from gantool import models, optimizers
from gantool.config.base import Ramp
from gantool.config.objective import (
    AdaAugment,
    AdamConfig,
    AdamWConfig,
    AnyOptimizer,
    LeCamPenalty,
    RmspropConfig,
)
from gantool.config.schema import RunConfig
from gantool.data.ada import Ada
from gantool.errors import GantoolError
from gantool.models.layers import has_spectral_norm, iterate_spectral_norms
from gantool.penalties import LeCam


class State:
    """The state of a run at `step` generator updates, on a device."""

    def __init__(self, config: RunConfig, device: torch.device, num_classes: int = 0) -> None:
        self.config = config
        self.step = 0
        self.generator = _place(models.build_generator(config, num_classes), device)
        self.discriminator = _place(models.build_discriminator(config, num_classes), device)
        self.ema = copy.deepcopy(self.generator).requires_grad_(False).eval()
        self.optimizers = {
            "generator": _optimizer(config.optimizer.generator, self.generator),
            "discriminator": _optimizer(config.optimizer.discriminator, self.discriminator),
        }
        self.pending: list[Tensor] = []  # the numbers of each step since the last report, float32, see players.SCALARS
        self.ada = Ada(config.augment, config.batch, device) if isinstance(config.augment, AdaAugment) else None
        self.lecam = LeCam(config.penalty, device) if isinstance(config.penalty, LeCamPenalty) else None
        live, average = dict(self.generator.named_buffers()), dict(self.ema.named_buffers())
        # Running moments of batch normalisation are averaged like weights, over the same window; other buffers copied.
        running = {name for name in live if name.endswith(("running_mean", "running_var"))}
        self._averaged = (
            [*self.ema.parameters(), *(average[name] for name in sorted(running))],
            [*self.generator.parameters(), *(live[name] for name in sorted(running))],
        )
        others = sorted(live.keys() - running)
        self._copied = [average[name] for name in others], [live[name] for name in others]

    @torch.no_grad()
    def update_ema(self) -> None:
        """ema <- decay ema + (1 - decay) generator, with the decay of the current step."""
        settings = self.config.ema
        decay = min(settings.decay, (1 + self.step) / (10 + self.step)) if settings.warmup else settings.decay
        averages, values = self._averaged
        torch._foreach_lerp_(averages, [value.detach() for value in values], 1 - decay)
        if self._copied[0]:
            torch._foreach_copy_(*self._copied)

    def averaged_generator(self) -> nn.Module:
        """The averaged generator, to sample; spectral norms are those of the averaged weights."""
        if not has_spectral_norm(self.ema):
            return self.ema
        generator = copy.deepcopy(self.ema)
        for _ in range(5):
            iterate_spectral_norms(generator)
        return generator

    def finite(self) -> bool:
        """Whether all weights of the networks are finite numbers."""
        weights = [*self.ema.parameters(), *self.generator.parameters(), *self.discriminator.parameters()]
        return bool(torch.stack([torch.isfinite(weight).all() for weight in weights]).all())

    def checksum(self) -> int:
        """The sum of the bits of all weights as integers: other weights have, all but certainly, another one."""
        weights = [*self.ema.parameters(), *self.generator.parameters(), *self.discriminator.parameters()]
        return int(torch.stack([weight.detach().view(torch.int32).sum() for weight in weights]).sum())

    def tensors(self) -> dict[str, Tensor]:
        """The whole state as named tensors: networks, optimizers, pending numbers."""
        named = {f"{part}.{name}": value for part in _PARTS for name, value in getattr(self, part).state_dict().items()}
        for player, optimizer in self.optimizers.items():
            for index, values in optimizer.state_dict()["state"].items():
                named |= {f"optimizer.{player}.{index}.{name}": value for name, value in values.items()}
        named |= {name: held.state for name, held in self._held().items()}
        if self.pending:
            named["pending"] = torch.stack(self.pending)
        return named

    def _held(self) -> dict[str, Ada | LeCam]:
        return {name: held for name, held in (("ada", self.ada), ("lecam", self.lecam)) if held is not None}

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
        for name, held in self._held().items():
            held.state.copy_(tensors[name])
        self.pending = list(tensors["pending"].to(device)) if "pending" in tensors else []
        self.step = step


_PARTS = ("generator", "discriminator", "ema")


def _place(network: nn.Module, device: torch.device) -> nn.Module:
    return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _optimizer(settings: AnyOptimizer, network: nn.Module) -> torch.optim.Optimizer:
    parameters = list(network.parameters())
    fused: dict[str, Any] = {"fused": True} if parameters[0].device.type in ("cpu", "cuda") else {}
    lr = _first(settings.lr)
    if isinstance(settings, (AdamConfig, AdamWConfig)):
        betas = (settings.beta1, _first(settings.beta2))
        if isinstance(settings, AdamConfig):
            return optimizers.Adam(parameters, lr, betas, settings.eps, **fused)
        return optimizers.AdamW(parameters, lr, betas, settings.eps, settings.weight_decay, **fused)
    if isinstance(settings, RmspropConfig):  # never fused; torch takes all tensors at once on GPUs, slower on CPUs
        return optimizers.RMSprop(parameters, lr, settings.alpha, settings.eps)
    return optimizers.SGD(parameters, lr, settings.momentum, **fused)


def _first(scheduled: float | Ramp) -> float:
    # torch tells a learning rate of 0 from 0.0, and wants both betas to be floats.
    return float(scheduled.start if isinstance(scheduled, Ramp) else scheduled)
