"""The real images that scores are measured against, and their statistics: computed once for each (images, number,
extractor) and kept beside the data.

The name of the file is a digest of all that its numbers depend on, which it also carries inside. Damage shows: each
array in an npz has a checksum.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from gantool import files
from gantool.config.evaluation import EvalConfig
from gantool.config.schema import digest_of
from gantool.data.image_sets import ImageSet, packed_set
from gantool.data.pack import PackedDataset
from gantool.errors import UsageError
from gantool.metrics.cache import once
from gantool.metrics.collection import Work, collect
from gantool.metrics.features import Extractor
from gantool.metrics.moments import Moments
from gantool.metrics.statistics import Need, Statistics
from gantool.metrics.table import FEATURES, METRICS, need_of

_FORMAT = 2


class Reference(NamedTuple):
    """The real images that scores are measured against."""

    images: ImageSet  # all of them
    data: PackedDataset | None  # the packed dataset they belong to
    folder: Path  # of packed data; statistics are kept below it


@dataclass
class RealStatistics:
    """All that scores need of the real images."""

    train: Statistics  # of all of them; its rows (if any): of as many as are scored
    rows_of: ImageSet  # the images of those rows
    test: Statistics | None  # of as many test images as are scored; None without a test split
    classes: dict[int, Statistics]  # of the training images, by class; {} if not asked for


def gather(reference: Reference, extractor: Extractor, settings: EvalConfig, num: int, work: Work) -> RealStatistics:
    """What scores of `num` images by `settings` need of the real ones, from their files or computed now.

    UsageError when there are no test images and a metric needs them.
    """
    folder, metrics = reference.folder / "metrics", settings.metrics
    spatial = Need(spatial="sfid" in metrics)
    with_rows = "overfit" in metrics or any(name in METRICS and METRICS[name].rows for name in metrics)
    rows_set = spread(reference.images, num)
    if with_rows and rows_set.num == reference.images.num:
        real = kept_statistics(reference.images, extractor, spatial | FEATURES, folder, work)
    else:
        real = kept_statistics(reference.images, extractor, spatial, folder, work)
        if with_rows:
            some = kept_statistics(rows_set, extractor, FEATURES, folder, work)
            real.features, real.labels = some.features, some.labels
    test, data = None, reference.data
    if data is not None and "test" in data.splits and len(data.split("test")[0]) >= 2:
        need = need_of(metrics) | Need(logits=True)
        test = kept_statistics(packed_set(data, "test", num), extractor, need, folder, work)
    elif "overfit" in metrics:
        text = f"{reference.images.title}: there are no test images, which overfit compares with"
        raise UsageError(text, "leave overfit out, or pack the data with a test folder")
    classes = {}
    if settings.per_class:
        labels = reference.images.labels
        assert labels is not None
        for label in np.unique(labels[labels >= 0]).tolist():
            classes[label] = kept_statistics(of_class(reference.images, label), extractor, Need(), folder, work)
    return RealStatistics(real, rows_set, test, classes)


def spread(images: ImageSet, num: int) -> ImageSet:
    """`num` images spread evenly over a set (more than there are: all of them)."""
    if num >= images.num:
        return images
    # Evenly, not the first ones: a set may be in the order of its classes.
    return _chosen(images, np.arange(num, dtype=np.int64) * images.num // num, f"{num} spread", images.title)


def of_class(images: ImageSet, label: int) -> ImageSet:
    """The images with a label."""
    assert images.labels is not None
    name = images.classes[label] if images.classes else str(label)
    return _chosen(images, np.flatnonzero(images.labels == label), f"class {label}", f"{images.title}:{name}")


def _chosen(images: ImageSet, indices: np.ndarray, how: str, title: str) -> ImageSet:
    def part(start: int, stop: int) -> torch.Tensor:
        return torch.cat([images.part(int(i), int(i) + 1) for i in indices[start:stop]])

    return ImageSet(
        title=title,
        digest=digest_of([images.digest, how]),
        num=len(indices),
        shape=images.shape,
        part=part,
        labels=None if images.labels is None else images.labels[indices],
        classes=images.classes,
        notes=images.notes,
    )


def source(reference: Reference) -> str:
    """Which images these are, for protocol strings: title:split:digest."""
    title = reference.data.title + ":train" if reference.data else reference.images.title
    digest = reference.data.digest if reference.data else reference.images.digest
    return f"{title.replace('|', '/')}:{digest[:8]}"


def kept_statistics(images: ImageSet, extractor: Extractor, need: Need, folder: Path, work: Work) -> Statistics:
    """Statistics of real images, from their file in `folder` or computed now; on the ranks that computed nothing, when
    they come from the file, read there too."""
    need = Need(need.logits and extractor.num_logits > 0, need.features, need.spatial and extractor.spatial_dim > 0)
    key: dict[str, Any] = {
        "format": _FORMAT,
        "images": images.digest,
        "num": images.num,
        "extractor": extractor.digest,
        "protocol": [extractor.protocol, extractor.logits_protocol, extractor.spatial_protocol],
        "need": [need.logits, need.features, need.spatial],
    }
    text = json.dumps(key, sort_keys=True)
    name = f"{images.num}-{extractor.name.replace(':', '-')}-{digest_of(text)}"
    what = f"features of {images.num} images of {images.title}"
    return once(
        folder / f"{name}.npz",
        read=lambda path: _read(path, text, images, extractor, need),
        make=lambda: collect(images, extractor, need, work.at(folder / "parts"), what),
        write=lambda path, statistics: _write(path, text, statistics),
        what=f"the {what}",
        progress=work.progress,
        highest=work.ranks.highest,
        is_main=work.is_main,
    )


def _write(path: Path, key: str, statistics: Statistics) -> None:
    arrays: dict[str, Any] = {"total": statistics.moments.total, "gram": statistics.moments.gram}
    if statistics.spatial is not None:
        arrays |= {"spatial_total": statistics.spatial.total, "spatial_gram": statistics.spatial.gram}
    for name in ("logits", "features"):
        if getattr(statistics, name) is not None:
            arrays[name] = getattr(statistics, name)
    with files.atomic_file(path) as file:
        np.savez(file, key=np.array(key), **arrays)


def _read(path: Path, key: str, images: ImageSet, extractor: Extractor, need: Need) -> Statistics | None:
    """None when the file is not there, not whole, or not of this key."""
    try:
        with np.load(path, allow_pickle=False) as found:
            if str(found["key"]) != key:
                return None
            moments = Moments(images.num, found["total"], found["gram"])
            spatial = Moments(images.num, found["spatial_total"], found["spatial_gram"]) if need.spatial else None
            rows = {name: found[name] for name in ("logits", "features") if getattr(need, name)}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    dim, side = extractor.feature_dim, extractor.spatial_dim
    shapes = [(moments.total, (dim,)), (moments.gram, (dim, dim))]
    shapes += [(spatial.total, (side,)), (spatial.gram, (side, side))] if spatial else []
    widths = {"logits": extractor.num_logits, "features": dim}
    shapes += [(array, (images.num, widths[name])) for name, array in rows.items()]
    if any(array.shape != shape for array, shape in shapes):
        return None
    return Statistics(
        extractor.protocol,
        moments,
        rows.get("logits"),
        rows.get("features"),
        spatial,
        images.labels,
        extractor.ddof,
    )
