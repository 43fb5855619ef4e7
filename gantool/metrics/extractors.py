"""The feature extractors by the name they have in a config."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from gantool.data.pack import PackedDataset
from gantool.metrics.classifier import open_classifier
from gantool.metrics.features import Extractor
from gantool.metrics.inception import open_inception
from gantool.progress import Progress


class Setting(NamedTuple):
    """What an extractor may depend on."""

    data: PackedDataset
    data_dir: Path
    device: torch.device
    weights: Path | None  # file or folder, from the command line
    allow_unknown_weights: bool
    progress: Progress


EXTRACTORS: dict[str, Callable[[Setting], Extractor]] = {
    "classifier": lambda s: open_classifier(s.data, s.data_dir, s.device, s.progress),
    "inception": lambda s: open_inception(s.device, s.data.images.shape[3], s.weights, s.allow_unknown_weights),
}
