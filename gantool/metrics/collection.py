"""From images to statistics: shared by ranks, and taken up again where a killed process left it.

Images are counted off in stretches of 512. Ranks take them in turn, sums of moments are integers and every row knows
its image, so the result has the same bits for any number of ranks and in any order. Once a minute, and when it is
interrupted, a process writes what it has found since then as a part: the stretches, their moments, their rows.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from gantool import files
from gantool.config.schema import digest_of
from gantool.data.image_sets import ImageSet
from gantool.errors import GantoolError, InterruptedRun
from gantool.metrics.features import Extractor, Features
from gantool.metrics.moments import UNIT, Moments
from gantool.metrics.statistics import FloatRows, Need, Statistics
from gantool.progress import Progress

STRETCH = 512  # images; a multiple of every extractor's block and of the sampler's
SAVE_SECONDS = 60.0


class Ranks(Protocol):
    """The processes that share the work; `runtime.Runtime` is one."""

    rank: int
    num_ranks: int

    def sum(self, array: np.ndarray) -> None:
        """Replace an array by its sum over the ranks."""
        ...

    def highest(self, value: int) -> int:
        """The highest `value` of all ranks."""
        ...


class Alone:
    """One process."""

    rank = 0
    num_ranks = 1

    def sum(self, array: np.ndarray) -> None:
        """Nothing to add."""

    def highest(self, value: int) -> int:
        """Itself."""
        return value


@dataclass(frozen=True)
class Work:
    """How the statistics are computed, which changes no bit of them."""

    progress: Progress
    ranks: Ranks = field(default_factory=Alone)
    parts: Path | None = None  # below it stays what interrupted processes have found; None: nothing is kept
    stop: Callable[[], bool] = lambda: False  # asked between stretches

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that gets the results."""
        return self.ranks.rank == 0

    def at(self, parts: Path | None) -> Work:
        """The same with its parts in that folder."""
        return Work(self.progress, self.ranks, parts, self.stop)


def collect(images: ImageSet, extractor: Extractor, need: Need, work: Work, what: str) -> Statistics:
    """Statistics of all `images`, on every rank.

    InterruptedRun when `work.stop()` says so; GantoolError when features are not finite.
    """
    need = Need(need.logits and extractor.num_logits > 0, need.features, need.spatial and extractor.spatial_dim > 0)
    key = f"{key_of(images, extractor)} {need}"
    work = work.at(work.parts / digest_of(key) if work.parts else None)
    found = _Found(images.num, extractor, need)
    if work.is_main and work.parts:
        for path in sorted(work.parts.glob("part-*.npz")):
            found.read(path, key)
    done = found.stretches.astype(np.int64)
    work.ranks.sum(done)
    left = np.flatnonzero(done == 0)[work.ranks.rank :: work.ranks.num_ranks]
    failure: Exception | None = None
    try:
        _go_through(left, images, extractor, found, key, work, what)
    except Exception as error:
        failure = error
    # All ranks end alike: one that raised alone would leave the others waiting for it.
    worst = work.ranks.highest(2 if failure else int(found.stopped))
    if worst == 2:
        if isinstance(failure, GantoolError):
            raise type(failure)(f"{what}: {failure.message}", failure.hint) from failure
        raise failure or GantoolError("another rank failed", "its message says why")
    if worst == 1:
        raise InterruptedRun(f"stopped while computing {what}", "run the same command again to go on")
    for array in found.arrays():
        work.ranks.sum(array)
    if work.is_main and work.parts:
        shutil.rmtree(work.parts, ignore_errors=True)
        with contextlib.suppress(OSError):  # there, and empty
            work.parts.parent.rmdir()
    moments, *spatial = [Moments(images.num, m.total, m.gram) for m in found.moments]
    if any(int(np.diagonal(m.gram).min()) < 0 for m in (moments, *spatial)):
        raise GantoolError(f"{what}: the sums are too large for exact integers", "scale the extractor's features")
    rows = found.rows
    return Statistics(
        extractor.protocol,
        moments,
        rows.get("logits"),
        rows.get("features"),
        spatial[0] if spatial else None,
        images.labels,
        extractor.ddof,
    )


def _go_through(
    stretches: np.ndarray, images: ImageSet, extractor: Extractor, found: _Found, key: str, work: Work, what: str
) -> None:
    fresh: list[int] = []
    saved_at = time.monotonic()
    done, share = 0, sum(len(range(*_images(s, images.num).indices(images.num))) for s in stretches.tolist())
    work.progress.step(what, 0, share)
    try:
        for stretch in stretches.tolist():
            features = []
            for start, stop in _pieces(_images(stretch, images.num), extractor):
                found.stopped = found.stopped or work.stop()
                if found.stopped:
                    break
                features.append(extractor(images.part(start, stop)))
                done += stop - start
                work.progress.step(what, done, share)
            if found.stopped:
                break
            found.add(stretch, _joined(features))
            fresh.append(stretch)
            if time.monotonic() - saved_at > SAVE_SECONDS:
                found.write(work.parts, fresh, key, work.progress)
                fresh, saved_at = [], time.monotonic()
    except (InterruptedRun, KeyboardInterrupt):
        if not found.adding:  # else the stretch may be half in the sums
            found.write(work.parts, fresh, key, work.progress)
        raise
    if found.stopped:
        found.write(work.parts, fresh, key, work.progress)


def _pieces(images: slice, extractor: Extractor) -> Iterator[tuple[int, int]]:
    """A stretch in pieces: whole for an accelerator, 64 images a thread for a CPU, which shows progress oftener."""
    size = STRETCH if extractor.device.type == "cuda" else min(STRETCH, 64 * torch.get_num_threads())
    for start in range(images.start, images.stop, size):
        yield start, min(images.stop, start + size)


def _joined(parts: list[Features]) -> Features:
    tensors = [torch.cat(found) for found in zip(*(part.tensors() for part in parts), strict=True)]
    for tensor, name in zip(tensors, ("features", "logits"), strict=False):
        if not bool(torch.isfinite(tensor).all()):
            text = f"found {name} that are NaN or infinite"
            raise GantoolError(text, "the images or the extractor's weights are broken")
    return Features(*tensors)


class _Found:
    """The arrays that grow: sums of moments as integers, rows at their place."""

    def __init__(self, num: int, extractor: Extractor, need: Need) -> None:
        self.num = num
        self.stretches = np.zeros(-(-num // STRETCH), bool)
        self.adding = self.stopped = False
        dims = [extractor.feature_dim, *([extractor.spatial_dim] if need.spatial else [])]
        self.moments = [Moments.empty(dim) for dim in dims]
        self._since = [Moments.empty(dim) for dim in dims]  # of the stretches that no part holds yet
        self.rows: dict[str, FloatRows] = {}
        if need.logits:
            self.rows["logits"] = np.zeros((num, extractor.num_logits), np.float32)
        if need.features:
            self.rows["features"] = np.zeros((num, extractor.feature_dim), np.float32)

    def arrays(self) -> list[np.ndarray]:
        """What the ranks add up."""
        return [*(array for m in self.moments for array in (m.total, m.gram)), *self.rows.values()]

    def add(self, stretch: int, found: Features) -> None:
        """Take in the features of a stretch."""
        tensors = [found.pooled, *([found.spatial] if found.spatial is not None else [])][: len(self.moments)]
        sums = [_sums(tensor) for tensor in tensors]
        self.adding = True
        for whole, since, (total, gram) in zip(self.moments, self._since, sums, strict=True):
            whole.add_sums(len(found.pooled), total, gram)
            since.add_sums(len(found.pooled), total, gram)
        if "logits" in self.rows:
            self.rows["logits"][_images(stretch, self.num)] = found.logits.cpu().numpy()
        if "features" in self.rows:
            self.rows["features"][_images(stretch, self.num)] = found.pooled.cpu().numpy()
        self.stretches[stretch] = True
        self.adding = False

    def write(self, folder: Path | None, stretches: list[int], key: str, progress: Progress) -> None:
        """Keep what came since the last part; where the folder cannot be written, nothing is kept."""
        if folder is None or not stretches:
            return
        rows = {name: np.concatenate([array[_images(s, self.num)] for s in stretches])
                for name, array in self.rows.items()}  # fmt: skip
        arrays: dict[str, Any] = dict(rows)
        for i, moments in enumerate(self._since):
            arrays |= {f"total{i}": moments.total, f"gram{i}": moments.gram}
        try:
            with files.atomic_file(folder / f"part-{os.getpid()}-{secrets.token_hex(4)}.npz") as file:
                np.savez(file, key=np.array(key), stretches=np.array(stretches, np.int64), **arrays)
        except GantoolError as error:
            progress.say(f"a part of the work cannot be kept: {error.message}")
        self._since = [Moments.empty(len(moments.total)) for moments in self._since]

    def read(self, path: Path, key: str) -> None:
        """Take in a part; one that is damaged, of other work, or in which another part is repeated is passed over."""
        try:
            if not whole_npz(path):
                return
            with np.load(path, allow_pickle=False) as part:
                if str(part["key"]) != key:
                    return
                stretches = part["stretches"]
                arrays: dict[str, Any] = {name: part[name] for name in part.files if name not in ("key", "stretches")}
            if self.stretches[stretches].any():
                return
        except Exception:  # whatever a damaged file does to the reader: the work is done again
            return
        for i, moments in enumerate(self.moments):
            moments.add_sums(0, arrays[f"total{i}"], arrays[f"gram{i}"])
        places = np.concatenate([np.arange(self.num)[_images(s, self.num)] for s in stretches.tolist()])
        for name, rows in self.rows.items():
            rows[places] = arrays[name]
        self.stretches[stretches] = True


def whole_npz(path: Path) -> bool:
    """Whether all members have the checksums they were written with; numpy alone does not look at all bytes."""
    with zipfile.ZipFile(path) as archive:
        return archive.testzip() is None


def _sums(rows: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Exact sums of features [n <= 512, d] and of their products, in units of 2^-16 and 2^-32: int64 [d], [d, d]."""
    if rows.device.type != "cuda":
        moments = Moments.empty(rows.shape[1])
        moments.add(rows.cpu().numpy())
        return moments.total, moments.gram
    units = torch.round(rows.double() / UNIT)
    gram = units.T @ units
    if float(gram.diagonal().max()) >= 2.0**53:
        text = f"found features as large as {float(rows.abs().max()):.3g}, too large for exact sums of {len(rows)}"
        raise GantoolError(text, "scale the extractor's features so that their mean square is below 4000")
    return units.sum(0).long().cpu().numpy(), gram.long().cpu().numpy()


def key_of(images: ImageSet, extractor: Extractor) -> str:
    """All that features depend on, as text."""
    value = {
        "format": 4,
        "images": images.digest,
        "num": images.num,
        "extractor": extractor.digest,
        "protocol": [extractor.protocol, extractor.logits_protocol, extractor.spatial_protocol],
    }
    return json.dumps(value, sort_keys=True)


def _images(stretch: int, num: int) -> slice:
    return slice(stretch * STRETCH, min(num, (stretch + 1) * STRETCH))
