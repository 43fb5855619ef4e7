"""Any classification network of torchvision as an extractor, with weights that were staged beforehand.

Features are the input of the last linear layer, logits its output. Images are resized as a whole to the size that the
network was tested with (torchvision resizes to more and crops, which would cut square pictures), antialiased, in
floating point; interpolation, mean and deviation are those of the model's default weights.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path, PurePosixPath
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from gantool.errors import DataError, UsageError
from gantool.metrics import weights
from gantool.metrics.features import Extractor, block_of
from gantool.metrics.resize import antialiased
from gantool.without_triton import without_triton

PREFIX = "torchvision:"

# What torchvision sets itself when it loads the weights: they were made for images normalised in another way.
_BUILT_WITH: dict[str, dict[str, bool]] = {
    "googlenet": {"transform_input": True, "init_weights": False},
    "inception_v3": {"transform_input": True, "init_weights": False},
}


def open_torchvision(model: str, device: torch.device, channels: int, path: Path | None) -> Extractor:
    """The extractor `torchvision:<model>` with the weights at `path` (a file or a folder; None: see `weights.find`).

    channels: of the images to come. UsageError for a wrong name or without a file, DataError when the file holds other
    tensors than the network's.
    """
    network, defaults = _build(model)
    last = _last_linear(network)
    if last is None:
        raise UsageError(f"{PREFIX}{model}: this network has no linear layer, whose input could be the features")
    file, digest = _load(network, model, str(defaults.url), path)
    head = cast(nn.Linear, network.get_submodule(last))
    network.set_submodule(last, nn.Identity())
    network.eval().requires_grad_(False)
    network = fuse(network, inplace=True).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    head.requires_grad_(False).to(device)

    look = defaults.transforms()
    side, mode = int(look.crop_size[0]), look.interpolation.value
    assert mode in ("bilinear", "bicubic"), mode

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        features = network(antialiased(images, side, mode, look.mean, look.std))
        return features, head(features)

    notes = []
    expected = _digest_in(str(defaults.url))
    if not digest.startswith(expected):
        text = f"{file.name} is not the default file of torchvision's {model} (SHA-256 {digest[:8]}..., expected "
        notes.append(text + f"{expected}...): compare with scores of the same file only")
    if channels == 1:
        notes.append(f"grey images were repeated to RGB for {model}, which was trained on colour photographs")
    common = f"{PREFIX}{model}|{mode}-aa-{side}|u8|{{}}|w={digest[:8]}"
    return Extractor(
        name=PREFIX + model,
        digest=digest,
        protocol=common.format(f"penultimate-{head.in_features}"),
        logits_protocol=common.format(f"logits-{head.out_features}"),
        feature_dim=head.in_features,
        num_logits=head.out_features,
        block=block_of(device),
        device=device,
        network=run,
        notes=tuple(notes),
    )


def _build(model: str) -> tuple[nn.Module, Any]:
    """The network without weights, and the entry of its default ones."""
    try:
        with without_triton():
            import torchvision.models  # a second to load, and few need it
    except (ImportError, RuntimeError) as error:  # RuntimeError: it was built for another torch
        reason = (str(error).splitlines() or [""])[0]
        hint = "install the torchvision that belongs to this torch; the image for the CPU has none"
        raise UsageError(f"{PREFIX}{model}: torchvision cannot be loaded ({reason})", hint) from error

    names = torchvision.models.list_models(module=torchvision.models)
    if model not in names:
        near = difflib.get_close_matches(model, names, 4, 0.5)
        hint = f"did you mean {', '.join(near)}?" if near else f"the names are {', '.join(names)}"
        raise UsageError(f"found extractor '{PREFIX}{model}', but torchvision has no such classification model", hint)
    with torch.random.fork_rng(devices=[]):  # the initial weights, soon replaced, are drawn from the global generator
        network = torchvision.models.get_model(model, weights=None, **_BUILT_WITH.get(model, {}))
    return cast(nn.Module, network), torchvision.models.get_model_weights(model).DEFAULT


def _last_linear(network: nn.Module) -> str | None:
    """The name of the last linear layer, with which all these networks end."""
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    return names[-1] if names else None


def _load(network: nn.Module, model: str, url: str, given: Path | None) -> tuple[Path, str]:
    """Put the weights into the network; their file and its digest."""
    name = PurePosixPath(url).name
    hint = f"download {url} on a machine with internet, and give it with --weights FILE or $GANTOOL_WEIGHTS"
    hint += f", or put it into {weights.hub_folder()}"
    names = (name, f"{PurePosixPath(name).stem}.safetensors")
    path = weights.find(weights.Wanted(f"weights of {PREFIX}{model}", names, hint), given)
    state = weights.read_state(path)
    # The files of DenseNet are older than the names of its modules.
    state = {re.sub(r"(\.denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", key): state[key] for key in state}
    try:
        network.load_state_dict(state)
    except (RuntimeError, ValueError) as error:
        lines = [line.strip() for line in str(error).splitlines()]
        text = f"{path}: not the weights of torchvision's {model}: {' '.join(lines[1:2] or lines)[:300]}"
        raise DataError(text, hint) from error
    return path, weights.sha256(path)


def _digest_in(url: str) -> str:
    """The beginning of the SHA-256 that torch.hub writes into the names of its files."""
    found = re.search(r"-([0-9a-f]{8,64})\.\w+$", url)
    return found.group(1) if found else ""
