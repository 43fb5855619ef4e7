"""Statistics of the real images, computed once for each (data, split, number, extractor) and kept beside the data.

The name of the file is a digest of all that its numbers depend on, which it also carries inside. Damage shows: each
array in an npz has a checksum.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from gantool import files
from gantool.config.schema import digest_of
from gantool.data.pack import PackedDataset
from gantool.metrics.cache import once
from gantool.metrics.features import Extractor, batches, collect
from gantool.metrics.moments import Moments, Statistics
from gantool.progress import Progress

_FORMAT = 1


def real_statistics(
    data: PackedDataset,
    split: str,
    num: int | None,
    extractor: Extractor,
    data_dir: Path,
    progress: Progress,
    keep_logits: bool = False,
) -> Statistics:
    """Statistics of `num` images spread evenly over a split (None, or more than there are: all of them)."""
    images, _ = data.split(split)
    num = len(images) if num is None else min(num, len(images))
    # Evenly, not the first ones: a split may be in the order of its classes.
    indices = np.arange(num, dtype=np.int64) * len(images) // num
    key: dict[str, Any] = {
        "format": _FORMAT,
        "data": data.digest,
        "split": split,
        "num": num,
        "extractor": extractor.digest,
        "protocol": [extractor.protocol, extractor.logits_protocol],
        "logits": keep_logits,
    }
    path = data_dir / "metrics" / f"{split}-{num}-{extractor.name}-{digest_of(key)}.npz"
    what = f"features of {num} {split} images of {data.title}"
    return once(
        path,
        read=lambda path: _read(path, key, num if keep_logits else 0, extractor),
        make=lambda: collect(batches(images, indices), extractor, num, progress, what, keep_logits),
        write=lambda path, statistics: _write(path, key, statistics),
        what=f"the {what}",
        progress=progress,
    )


def _write(path: Path, key: dict[str, Any], statistics: Statistics) -> None:
    moments = statistics.moments
    with files.atomic_file(path) as file:
        np.savez(
            file,
            key=np.array(json.dumps(key, sort_keys=True)),
            count=np.array(moments.count),
            total=moments.total,
            gram=moments.gram,
            logits=statistics.logits,
        )


def _read(path: Path, key: dict[str, Any], num_logits: int, extractor: Extractor) -> Statistics | None:
    """None when the file is not there, not whole, or not of this key."""
    try:
        with np.load(path, allow_pickle=False) as found:
            if str(found["key"]) != json.dumps(key, sort_keys=True):
                return None
            moments = Moments(int(found["count"]), found["total"], found["gram"])
            statistics = Statistics(moments, found["logits"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    dim = extractor.feature_dim
    whole = (
        moments.count == key["num"]
        and moments.total.shape == (dim,)
        and moments.gram.shape == (dim, dim)
        and statistics.logits.shape == (num_logits, extractor.num_logits)
    )
    return statistics if whole else None
