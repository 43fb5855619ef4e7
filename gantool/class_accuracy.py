"""How often the discriminator is right, class by class: on real images it was not trained on, and on generated ones.

Measured when a snapshot is written, from the networks as they are then, and kept in the snapshot's facts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from gantool import losses
from gantool.config.schema import RunConfig
from gantool.data.loader import to_float
from gantool.data.pack import PackedDataset
from gantool.progress import Progress, told
from gantool.sample import Snapshot, generate_with, labels_in_turn
from gantool.state import State

_MOST = 2000  # images of each kind, over all classes


@torch.no_grad()
def class_accuracies(
    config: RunConfig, state: State, loss: losses.Loss, data: PackedDataset, progress: Progress
) -> dict[str, Any]:
    """For each class of `data.classes`: accuracy_real, accuracy_fake (shares in [0, 1], None without images) of the
    discriminator in eval mode, on `num` images each: of the test split (`split`; train where there is none), and of the
    averaged generator. With a loss without boundary both are the share of pairs in the right order.
    """
    split = "test" if "test" in data.splits else "train"
    images, labels = data.split(split)
    num_classes = len(data.classes)
    num = max(1, min(100, _MOST // num_classes))
    generator, discriminator = state.averaged_generator(), state.discriminator
    device = next(discriminator.parameters()).device
    rows: dict[str, list[float | None]] = {"accuracy_real": [], "accuracy_fake": []}
    training = discriminator.training
    discriminator.eval()
    for label in told(range(num_classes), "accuracy by class", progress):
        chosen = np.flatnonzero(labels == label)[:num]
        if not len(chosen):
            rows["accuracy_real"].append(None)
            rows["accuracy_fake"].append(None)
            continue
        real = torch.from_numpy(np.ascontiguousarray(images[chosen]))
        latent_dim, of_class = config.generator.latent_dim, labels_in_turn([label])
        parts = generate_with(generator, latent_dim, 0, len(chosen), config.seed, of_class)
        logits = [_logits(discriminator, batch.to(device), label) for batch in (real, torch.cat(list(parts)))]
        for key, value in zip(rows, losses.accuracies(loss, *logits), strict=True):
            rows[key].append(round(float(value), 4))
    discriminator.train(training)
    return {**rows, "num": num, "split": split}


def _logits(discriminator: torch.nn.Module, images: Tensor, label: int) -> Tensor:
    found = []
    for part in torch.split(images, 64):
        out = discriminator(to_float(part), torch.full((len(part),), label, device=part.device))
        found.append(out[0] if isinstance(out, tuple) else out)
    return torch.cat(found)


def accuracies_by_class(snapshot: Snapshot) -> dict[str, dict[str, float]]:
    """The accuracies that training measured for the snapshot, by class; {} for unconditional networks."""
    facts = snapshot.accuracy or {}
    rows: dict[str, dict[str, float]] = {}
    for number, name in enumerate(snapshot.data["classes"] if facts else ()):
        found = {key: facts[key][number] for key in ("accuracy_real", "accuracy_fake")}
        rows[str(name)] = {key: float(value) for key, value in found.items() if value is not None}
    return rows


def accuracy_protocol(snapshot: Snapshot) -> str | None:
    """On which images they were measured."""
    facts = snapshot.accuracy
    return f"accuracy|discriminator|eval|n={facts['num']}/class|real={facts['split']}" if facts else None
