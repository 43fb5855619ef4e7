"""What a reader of a score must be told: too few images, a collapsed generator, numbers that are not equal."""

from __future__ import annotations

import numpy as np

from gantool.config.evaluation import EvalConfig
from gantool.data.image_sets import ImageSet
from gantool.data.pack import PackedDataset
from gantool.metrics.features import Extractor
from gantool.metrics.reference import RealStatistics, Reference
from gantool.metrics.statistics import Statistics
from gantool.metrics.table import SUBSET_SIZE

_ENOUGH = 10_000  # images; below, the bias of FID is larger than most differences


def cautions(
    images: ImageSet,
    generated: bool,
    scored: Statistics,
    real: RealStatistics,
    reference: Reference,
    extractor: Extractor,
    settings: EvalConfig,
) -> list[str]:
    """The warnings that go with a score. generated: whether a generator of gantool made the images, classes in turn."""
    warnings = [*extractor.notes, *images.notes]
    if scored.moments.constant():
        warnings.append(f"all {images.num} images are the same to the extractor: the generator has collapsed")
    if "fid" in settings.metrics and images.num < _ENOUGH:
        text = f"FID of {images.num} images is biased upwards: compare it with FIDs of {images.num} images only"
        if images.num <= extractor.feature_dim:
            text += (
                f"; more than {extractor.feature_dim} are needed for the covariance of {extractor.feature_dim} features"
            )
        warnings.append(text)
    if real.test is not None and real.test.count != images.num:
        text = f"the scores of real images are those of all {real.test.count} test images, not of {images.num}"
        warnings.append(text)
    size = min(images.num, real.train.count)
    if "kid" in settings.metrics and size < SUBSET_SIZE:
        warnings.append(f"KID from subsets of {size} images, {SUBSET_SIZE} is usual")
    if settings.per_class and images.labels is not None:
        least = min(int((images.labels == label).sum()) for label in set(images.labels[images.labels >= 0].tolist()))
        if least <= extractor.feature_dim:
            text = (
                f"FID of a class: {least} images in the smallest one, more than {extractor.feature_dim} are needed for"
            )
            warnings.append(f"{text} the covariance of {extractor.feature_dim} features: compare equal numbers only")
    if generated and images.labels is not None and reference.data is not None and _unbalanced(reference.data):
        warnings.append("the training images are not evenly spread over the classes, the generated ones are")
    return warnings


def _unbalanced(data: PackedDataset) -> bool:
    labels = data.split("train")[1]
    counts = np.bincount(labels[labels >= 0], minlength=len(data.classes))
    return bool(len(counts) and counts.max() > 1.1 * counts.min())
