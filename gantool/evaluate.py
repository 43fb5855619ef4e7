"""The verb `eval`: images from a snapshot to features to scores, against the real training images.

Nothing touches the disk but the statistics of the real images, which are kept beside the data. Every score comes with
the same scores of real test images: what a generator that reproduces the data would get.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import gantool
from gantool.config.schema import DataConfig, EvalConfig
from gantool.data.pack import PackedDataset, check_digest, ensure_packed
from gantool.errors import GantoolError, UsageError
from gantool.metrics.extractors import EXTRACTORS, Setting
from gantool.metrics.features import Extractor, collect
from gantool.metrics.moments import Statistics
from gantool.metrics.reference import real_statistics
from gantool.metrics.scores import METRICS, Facts, Score, class_rows, score_rows, write_score
from gantool.progress import Progress
from gantool.sample import Snapshot, generate

__all__ = ["Score", "class_rows", "evaluate", "score_images", "score_rows", "write_score"]

_ENOUGH = 10_000  # images; below, the bias of FID is larger than most differences


def evaluate(
    snapshot: Snapshot,
    settings: EvalConfig,
    data_dir: Path,
    seed: int,
    progress: Progress,
    weights: Path | None = None,
    allow_unknown_weights: bool = False,
) -> Score:
    """Score images 0..num-1 of the sample `seed` of a snapshot, on the device of its generator.

    weights: of the inception extractor (see `metrics.inception.find_weights`). UsageError when the packed data are not
    those of the snapshot, or the extractor cannot be had; GantoolError when the generator's numbers are not finite.
    """
    began = time.monotonic()
    data = ensure_packed(snapshot.config.data, data_dir, progress)
    check_digest(data)
    _check(snapshot, data)
    device = next(snapshot.generator.parameters()).device
    extractor = EXTRACTORS[settings.extractor](
        Setting(data, data_dir, device, weights, allow_unknown_weights, progress)
    )
    reference = real_statistics(data, "train", None, extractor, data_dir, progress)
    images = generate(snapshot, 0, settings.num, seed)
    values, warnings = score_images(images, settings.num, extractor, reference, settings.metrics, progress)
    real = _real_scores(data, extractor, reference, settings, data_dir, progress)
    if snapshot.num_classes and _unbalanced(data):
        text = "the training images are not evenly spread over the classes, the generated ones are"
        warnings.append(text)
    per_class = _per_class(snapshot)
    for key in ("accuracy_real", "accuracy_fake"):
        found = [row[key] for row in per_class.values() if key in row]
        if found:
            values[key] = round(sum(found) / len(found), 6)
    return Score(
        snapshot=str(snapshot.path),
        snapshot_digest=snapshot.digest,
        step=snapshot.step,
        ema=snapshot.ema,
        seed=seed,
        num=settings.num,
        data_title=data.title,
        data_digest=data.digest,
        extractor=extractor.name,
        extractor_digest=extractor.digest,
        values=values,
        protocol=_protocols(data, extractor, settings.num, reference, settings.metrics),
        real=real[0] if real else None,
        real_protocol=real[1] if real else None,
        per_class=per_class,
        accuracy_protocol=_accuracy_protocol(snapshot),
        warnings=tuple(warnings),
        versions={
            "gantool": gantool.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        device=device.type,
        seconds=round(time.monotonic() - began, 3),
    )


def stage(wanted: DataConfig, settings: EvalConfig, data_dir: Path, device: torch.device, progress: Progress) -> None:
    """Make and keep all that `evaluate` needs beside a generator: the extractor, the statistics of the real images."""
    data = ensure_packed(wanted, data_dir, progress)
    extractor = EXTRACTORS[settings.extractor](Setting(data, data_dir, device, None, False, progress))
    reference = real_statistics(data, "train", None, extractor, data_dir, progress)
    _real_scores(data, extractor, reference, settings, data_dir, progress)


def score_images(
    images: Iterable[Tensor],
    num: int,
    extractor: Extractor,
    reference: Statistics,
    metrics: Iterable[str],
    progress: Progress,
) -> tuple[dict[str, float], list[str]]:
    """(values, warnings) of `num` images, given as uint8 tensors [n, H, W, C] of any n, against the reference."""
    metrics = tuple(metrics)
    variety = _Variety()
    scored = collect(
        variety.watch(images), extractor, num, progress, "features of the generated images", "is" in metrics
    )
    warnings = list(extractor.notes)
    if variety.constant:
        warnings.append(f"all {num} images are the same: the generator has collapsed")
    if "fid" in metrics and num < _ENOUGH:
        text = f"FID of {num} images is biased upwards: compare it with FIDs of {num} images only"
        dim = extractor.feature_dim
        if num <= dim:
            text += f"; more than {dim} are needed for the covariance of {dim} features"
        warnings.append(text)
    return _values(scored, reference, metrics), warnings


def _unbalanced(data: PackedDataset) -> bool:
    labels = data.split("train")[1]
    counts = np.bincount(labels[labels >= 0], minlength=len(data.classes))
    return bool(counts.max() > 1.1 * counts.min())


def _per_class(snapshot: Snapshot) -> dict[str, dict[str, float]]:
    """The accuracies that training measured for the snapshot, by class; {} for unconditional networks."""
    facts = snapshot.accuracy or {}
    rows: dict[str, dict[str, float]] = {}
    for number, name in enumerate(snapshot.data["classes"] if facts else ()):
        found = {key: facts[key][number] for key in ("accuracy_real", "accuracy_fake")}
        rows[str(name)] = {key: float(value) for key, value in found.items() if value is not None}
    return rows


def _accuracy_protocol(snapshot: Snapshot) -> str | None:
    facts = snapshot.accuracy
    return f"accuracy|discriminator|eval|n={facts['num']}/class|real={facts['split']}" if facts else None


def _check(snapshot: Snapshot, data: PackedDataset) -> None:
    trained_on = snapshot.data["digest"]
    if data.digest != trained_on:
        raise UsageError(
            f"{data.path}: these are not the data of {snapshot.path}: found {data.title} with digest "
            f"{data.digest[:12]}, expected {snapshot.data['title']} with digest {trained_on[:12]}",
            "give the folder of the data it was trained on, or pack the same files again",
        )
    for name, tensor in snapshot.generator.state_dict().items():
        if not torch.isfinite(tensor).all():
            text = f"{snapshot.path}: weights of the generator are NaN or infinite (the first: {name})"
            raise GantoolError(text, "score an earlier snapshot")


def _real_scores(
    data: PackedDataset,
    extractor: Extractor,
    reference: Statistics,
    settings: EvalConfig,
    data_dir: Path,
    progress: Progress,
) -> tuple[dict[str, float], dict[str, str]] | None:
    """(values, protocols) of as many real test images as were generated, or of all there are."""
    if "test" not in data.splits or len(data.split("test")[0]) < 2:
        return None
    found = real_statistics(data, "test", settings.num, extractor, data_dir, progress, keep_logits=True)
    protocols = _protocols(data, extractor, found.count, reference, settings.metrics)
    return _values(found, reference, settings.metrics), protocols


def _values(scored: Statistics, reference: Statistics, metrics: Iterable[str]) -> dict[str, float]:
    return {key: value for name in metrics for key, value in METRICS[name].values(scored, reference).items()}


def _protocols(
    data: PackedDataset, extractor: Extractor, num: int, reference: Statistics, metrics: Iterable[str]
) -> dict[str, str]:
    source = f"{data.title.replace('|', '/')}:train:{data.digest[:8]}"
    facts = Facts(extractor.protocol, extractor.logits_protocol, num, reference.count, source)
    return {name: METRICS[name].protocol(facts) for name in metrics}


class _Variety:
    """Looks at passing images: are they all the same?"""

    def __init__(self) -> None:
        self.constant = True
        self._first: Tensor | None = None

    def watch(self, images: Iterable[Tensor]) -> Iterator[Tensor]:
        for part in images:
            if self._first is None:
                self._first = part[0]
            self.constant = self.constant and bool((part == self._first).all())
            yield part
