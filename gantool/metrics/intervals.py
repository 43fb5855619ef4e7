"""How sure an FID is: its bias in the number of scored images, and an interval. Numbers only: numpy, no torch.

The FID of n images lies above that of endlessly many by about c / n (Chong and Forsyth, 2020, arXiv:1911.07023, who
fit a line through 15 of them). Halves have twice that bias, which removes c from three distances (Quenouille, 1949).
The interval is the delete-a-group jackknife with Student's t (Tukey, 1958; Shao and Tu, 1995, section 2.3). Halves and
groups are drawn at random with a fixed seed: generated classes come in turn, so that any regular pattern would give a
part some classes more often than others.

Both speak of the scored images; the reference is taken as it is, with what bias and chance there are in it.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gantool.errors import GantoolError
from gantool.metrics.moments import Moments, frechet_distance
from gantool.progress import Progress, Silent, told

Rows = npt.NDArray[np.floating]
SEED = 2020


class Interval(NamedTuple):
    """Where a value lies."""

    standard_error: float
    low: float
    high: float


def debiased_fid(
    rows: Rows,
    reference: Moments,
    ddof: int = 1,
    reference_rows: Rows | None = None,
    value: float | None = None,
    progress: Progress | None = None,
) -> float:
    """2 FID(all) - mean of the FIDs of two random halves: the FID without the part of its bias that goes as 1 / n.

    rows: float [n, d], the features of the scored images. reference_rows: those of the reference, should they be no
    more than d (see `frechet_distance`). value: FID(all), where it is known. May come out below 0 for sets of one
    distribution. The law needs n well above d; below that, what is removed is only a part. GantoolError below 4 images.
    """
    if len(rows) < 4:
        raise GantoolError(f"found {len(rows)} images, expected 4 or more for two halves")
    order = _order(len(rows))
    halves = told([rows[order[0::2]], rows[order[1::2]]], "FID without bias", progress or Silent())
    whole, parts = Moments.empty(rows.shape[1]), list[float]()
    for half in halves:
        moments = _moments(half)
        whole = whole.merge(moments)
        parts.append(_distance(half, moments, reference, ddof, reference_rows))
    if value is None:
        value = _distance(rows, whole, reference, ddof, reference_rows)
    return 2.0 * value - sum(parts) / 2.0


def fid_interval(
    rows: Rows,
    reference: Moments,
    ddof: int = 1,
    reference_rows: Rows | None = None,
    value: float | None = None,
    groups: int = 20,
    progress: Progress | None = None,
) -> Interval:
    """Standard error and 95 % interval of the FID of n scored images; arguments as in `debiased_fid`.

    `groups` + 1 distances. The interval is one for the FID of n images, with its bias: it says what another n images of
    the same generator would give. GantoolError when there are fewer images than groups.
    """
    if len(rows) < max(groups, 4):
        raise GantoolError(f"found {len(rows)} images, expected {max(groups, 4)} or more for an interval")
    progress = progress or Silent()
    whole = _moments(rows)
    if value is None:
        value = _distance(rows, whole, reference, ddof, reference_rows)
    left_out = []
    order = _order(len(rows))
    for group in range(groups):
        part = order[group::groups]
        others = whole.without(_moments(rows[part]))  # exact, and a twentieth of the work of summing the others
        kept = np.delete(rows, part, axis=0) if others.count <= rows.shape[1] else rows
        left_out.append(_distance(kept, others, reference, ddof, reference_rows))
        progress.step("interval", group + 1, groups)
    return jackknife(value, left_out)


def jackknife(value: float, left_out: Sequence[float], confidence: float = 0.95) -> Interval:
    """Interval of any smooth statistic around its `value`, from its values without each of G groups.

    Standard error ((G - 1) / G sum (left_out - mean)^2)^(1/2); quantiles of Student's t with G - 1 degrees of freedom.
    """
    count = len(left_out)
    assert count >= 2
    error = math.sqrt((count - 1) * float(np.var(left_out)))
    quantile = float(importlib.import_module("scipy.special").stdtrit(count - 1, (1.0 + confidence) / 2.0))
    return Interval(error, value - quantile * error, value + quantile * error)


def _order(num: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng(SEED).permutation(num)


def _moments(rows: Rows) -> Moments:
    moments = Moments.empty(rows.shape[1])
    moments.add(rows)
    return moments


def _distance(rows: Rows, moments: Moments, reference: Moments, ddof: int, reference_rows: Rows | None) -> float:
    return frechet_distance(moments, reference, ddof, rows, reference_rows)
