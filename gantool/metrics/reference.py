"""The real images that scores are measured against, and their statistics: computed once for each (images, number,
extractor) and kept beside the data.

So are the scores of real test images, the yardstick. The name of a file is a digest of all that its numbers depend on,
which it also carries inside. Damage shows: each array in an npz has a checksum, and scores have a digest.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gantool import files
from gantool.config.evaluation import EvalConfig
from gantool.config.schema import digest_of
from gantool.data.image_sets import ImageSet, packed_set
from gantool.data.pack import PackedDataset
from gantool.errors import UsageError
from gantool.metrics.cache import once
from gantool.metrics.collection import Work, collect, key_of, whole_npz
from gantool.metrics.features import Extractor
from gantool.metrics.moments import Moments
from gantool.metrics.statistics import Need, Statistics
from gantool.metrics.table import METRICS, need_of
from gantool.progress import Progress


class Reference(NamedTuple):
    """The real images that scores are measured against."""

    images: ImageSet  # all of them
    data: PackedDataset | None  # the packed dataset they belong to
    folder: Path  # of packed data; statistics are kept below it


class RealStatistics(NamedTuple):
    """All that scores need of the real images."""

    train: Statistics  # of all of them
    test: Statistics | None  # of as many test images as are scored, or of all there are; None without a test split
    keys: tuple[str, ...]  # all that either depends on


def gather(reference: Reference, extractor: Extractor, settings: EvalConfig, num: int, work: Work) -> RealStatistics:
    """What scores of `num` images by `settings` need of the real ones, from their files or computed now.

    UsageError when there are no test images and a metric needs them.
    """
    folder, metrics, data = reference.folder / "metrics", settings.metrics, reference.data
    with_rows = settings.per_class or "overfit" in metrics
    with_rows = with_rows or any(name in METRICS and METRICS[name].rows for name in metrics)
    few = reference.images.num <= extractor.feature_dim  # rows allow the exact distance then
    train = kept_statistics(
        reference.images, extractor, Need(features=with_rows or few, spatial="sfid" in metrics), folder, work
    )
    test, keys = None, [key_of(reference.images, extractor)]
    if data is not None and "test" in data.splits and len(data.split("test")[0]) >= 2:
        images = packed_set(data, "test", num)
        need = need_of(metrics) | Need(features=images.num <= extractor.feature_dim)
        test = kept_statistics(images, extractor, need, folder, work)
        keys.append(key_of(images, extractor))
    elif "overfit" in metrics:
        text = f"{reference.images.title}: there are no test images, which overfit compares with"
        raise UsageError(text, "leave overfit out, or pack the data with a test folder")
    return RealStatistics(train, test, tuple(keys))


def source(reference: Reference) -> str:
    """Which images these are, for protocol strings: title:split:digest."""
    title = reference.data.title + ":train" if reference.data else reference.images.title
    digest = reference.data.digest if reference.data else reference.images.digest
    return f"{title.replace('|', '/')}:{digest[:8]}"


def kept_values(
    reference: Reference, real: RealStatistics, protocol: str, make: Callable[[], dict[str, float]], progress: Progress
) -> dict[str, float]:
    """The values of a metric of real test images by this protocol, from their file or made now; for one process."""
    key = digest_of({"format": 1, "statistics": real.keys, "protocol": protocol})

    def read(path: Path) -> dict[str, float] | None:
        found = files.read_json(path)
        values = found.get("values") if isinstance(found, dict) else None
        return values if values and found == _with_digest(key, values) else None

    def write(path: Path, values: dict[str, float]) -> None:
        files.write_json(path, _with_digest(key, values))

    path = reference.folder / "metrics" / f"real-{key}.json"
    return once(path, read, make, write, "the score of real test images", progress)


def _with_digest(key: str, values: dict[str, float]) -> dict[str, Any]:
    return {"key": key, "values": values, "digest": digest_of([key, values])}


def kept_statistics(images: ImageSet, extractor: Extractor, need: Need, folder: Path, work: Work) -> Statistics:
    """Statistics of real images, from their file in `folder` or computed now; the same on all ranks.

    A file that lacks some of what is needed is replaced by one that has that too.
    """
    need = Need(need.logits and extractor.num_logits > 0, need.features, need.spatial and extractor.spatial_dim > 0)
    key = key_of(images, extractor)
    path = folder / f"{images.num}-{extractor.name.replace(':', '-')}-{digest_of(key)}.npz"
    what = f"features of {images.num} images of {images.title}"
    held = _needs_in(path, key) if work.is_main else Need()
    more = need | Need.from_bits(work.ranks.highest(held.bits()))  # what rank 0 saw: the file may change
    return once(
        path,
        read=lambda path: _read(path, key, images, extractor, need),
        make=lambda: collect(images, extractor, more, work.at(folder / "parts"), what),
        write=lambda path, statistics: _write(path, key, statistics),
        what=f"the {what}",
        progress=work.progress,
        highest=work.ranks.highest,
        is_main=work.is_main,
    )


def _needs_in(path: Path, key: str) -> Need:
    # Suppressed: whatever a damaged file does to the reader.
    with contextlib.suppress(Exception), np.load(path, allow_pickle=False) as found:
        if str(found["key"]) == key:
            return Need("logits" in found.files, "features" in found.files, "spatial_gram" in found.files)
    return Need()


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
    if not path.exists():
        return None
    try:
        if not whole_npz(path):
            return None
        with np.load(path, allow_pickle=False) as found:
            if str(found["key"]) != key:
                return None
            moments = Moments(images.num, found["total"], found["gram"])
            spatial = Moments(images.num, found["spatial_total"], found["spatial_gram"]) if need.spatial else None
            rows = {name: found[name] for name in ("logits", "features") if getattr(need, name)}
    except Exception:  # whatever a damaged file does to the reader: it is computed again
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
