"""Networks from a file of the user's own: the class is called as `gantool.config.custom` promises, and tried once on
two images, so that what does not fit is told before the training starts."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from gantool.config.custom import CustomNetwork
from gantool.config.networks import CustomDiscriminator
from gantool.custom import failure, load, words_to_stderr
from gantool.errors import UsageError
from gantool.models.layers import Dropout, set_dropout


def build(settings: CustomNetwork, size: int, channels: int, num_classes: int = 0) -> nn.Module:
    """An instance of the class that `settings` name; UsageError when its file is gone, changed or fails."""
    given: dict[str, Any] = {"size": size, "channels": channels, "num_classes": num_classes}
    if hasattr(settings, "latent_dim"):
        given["latent_dim"] = settings.latent_dim
    cls = getattr(load(settings), settings.name, None)
    where = f"{settings.file}: class {settings.name}"
    if not isinstance(cls, type):
        raise UsageError(f"{settings.file}: has no class {settings.name}", "give its name with `name`")
    if not issubclass(cls, nn.Module):
        raise UsageError(f"{where}: is no torch.nn.Module", f"class {settings.name}(torch.nn.Module): ...")
    try:
        with words_to_stderr():
            network: nn.Module = cls(**given, **settings.settings)
            found = _try_out(copy.deepcopy(network), settings, (channels, size, size))
    except (Exception, SystemExit) as error:
        raise failure(where, settings.file, error) from error
    _check_layers(network, settings, where)
    expected = (2, channels, size, size) if hasattr(settings, "latent_dim") else (2,)
    if not isinstance(found, Tensor) or tuple(found.shape) != expected:
        what = "images" if hasattr(settings, "latent_dim") else "logits"
        shape = f"of shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"in a {type(found).__name__}"
        text = f"{where}: for a batch of 2 it gives {what} {shape}, expected a tensor of shape {expected}"
        raise UsageError(text, "mend what forward returns; for logits of shape (2, 1) add .squeeze(1)")
    if found.dtype != torch.float32 or not found.requires_grad:
        state = f"{found.dtype}" if found.dtype != torch.float32 else "a tensor without gradient"
        raise UsageError(f"{where}: forward gives {state}, expected float32 with a gradient", "mend forward")
    return network


def _check_layers(network: nn.Module, settings: CustomNetwork, where: str) -> None:
    """UsageError for layers that would break what a run promises: equal after a stop, equal for any number of ranks."""
    layers = list(network.modules())
    if any(isinstance(layer, nn.modules.dropout._DropoutNd) for layer in layers):
        hint = "in a discriminator take gantool.models.layers.Dropout, which resumes exactly"
        raise UsageError(f"{where}: has a torch dropout layer, whose random state no checkpoint holds", hint)
    if not isinstance(settings, CustomDiscriminator):
        if any(isinstance(layer, Dropout) for layer in layers):
            raise UsageError(f"{where}: dropout is for discriminators", "leave it out of the generator")
        return
    if any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in layers) and not settings.batch_statistics:
        text = f"{where}: has batch normalisation, but says batch_statistics: false"
        raise UsageError(text, "set discriminator.batch_statistics to true, or take another norm")


def _try_out(network: nn.Module, settings: CustomNetwork, image_shape: tuple[int, int, int]) -> Any:
    latent_dim = getattr(settings, "latent_dim", None)
    inputs = [torch.zeros(2, latent_dim) if latent_dim else torch.zeros(2, *image_shape)]
    if settings.conditional:
        inputs.append(torch.zeros(2, dtype=torch.int64))
    with torch.no_grad():
        network.eval()(*inputs)
    set_dropout(network, 1, torch.arange(2))
    return network.train()(*inputs)
