"""The feature extractors by the name they have in a config, and in which arithmetic they run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from gantool.data.pack import PackedDataset
from gantool.errors import UsageError
from gantool.metrics.classifier import open_classifier
from gantool.metrics.efficientnet import open_efficientnet
from gantool.metrics.features import Extractor
from gantool.metrics.inception import open_inception
from gantool.metrics.resize import PROTOCOLS
from gantool.metrics.torchvision_nets import PREFIX, open_torchvision
from gantool.progress import Progress

PRECISIONS = ("float32", "bfloat16")


class Setting(NamedTuple):
    """What an extractor may depend on."""

    data: PackedDataset | None  # the classifier is trained on them; nothing else needs them
    data_dir: Path
    device: torch.device
    channels: int  # of the images to come
    weights: Path | None  # file or folder, from the command line
    allow_unknown_weights: bool
    progress: Progress
    protocol: str = "tf1"  # of FID, with Inception
    precision: str = "float32"


def _classifier(setting: Setting) -> Extractor:
    if setting.data is None:
        text = "the extractor 'classifier' is trained on a packed dataset, and there is none here"
        raise UsageError(text, "choose inception or efficientnet-lite0")
    return open_classifier(setting.data, setting.data_dir, setting.device, setting.progress)


EXTRACTORS: dict[str, Callable[[Setting], Extractor]] = {
    "classifier": _classifier,
    "inception": lambda s: open_inception(s.device, s.channels, s.weights, s.allow_unknown_weights, s.protocol),
    "efficientnet-lite0": lambda s: open_efficientnet(s.device, s.channels),
}


def open_extractor(name: str, setting: Setting) -> Extractor:
    """The extractor `name`: one of EXTRACTORS, or 'torchvision:' and the name of a model; UsageError for another."""
    _check(name, setting)
    if name.startswith(PREFIX):
        model = name.removeprefix(PREFIX)
        extractor = open_torchvision(model, setting.device, setting.channels, setting.weights)
    else:
        extractor = EXTRACTORS[name](setting)
    return extractor if setting.precision == "float32" else _in_bfloat16(extractor)


def _check(name: str, setting: Setting) -> None:
    if name not in EXTRACTORS and not name.startswith(PREFIX):
        raise UsageError(f"found extractor '{name}', expected one of {', '.join(EXTRACTORS)}, {PREFIX}MODEL")
    if setting.protocol not in PROTOCOLS:
        raise UsageError(f"found protocol '{setting.protocol}', expected one of {', '.join(PROTOCOLS)}")
    if setting.protocol != "tf1" and name != "inception":
        text = f"{setting.protocol} is a protocol of the extractor 'inception', not of '{name}'"
        raise UsageError(text, "choose the extractor inception, or leave the protocol out")
    if setting.precision not in PRECISIONS:
        raise UsageError(f"found precision '{setting.precision}', expected one of {', '.join(PRECISIONS)}")


def _in_bfloat16(extractor: Extractor) -> Extractor:
    """The same extractor with products in bfloat16: twice as fast or more, with features off by some 8 %, so that its
    numbers are only good beside each other. Its protocol says so."""

    def network(images: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast(extractor.device.type, torch.bfloat16):
            return tuple(tensor.float() for tensor in extractor.network(images))

    return dataclasses.replace(
        extractor,
        network=network,
        protocol=f"{extractor.protocol}|bf16",
        logits_protocol=f"{extractor.logits_protocol}|bf16",
        spatial_protocol=f"{extractor.spatial_protocol}|bf16" if extractor.spatial_dim else "",
    )
