"""The metrics by the name they have in a config: what each needs, its values, and the protocol that goes with them.

A metric is a function of statistics, those of the scored images and those of the reference. `overfit` also needs those
of real images that were not trained on.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gantool.errors import GantoolError
from gantool.metrics import kernel, neighbours
from gantool.metrics.moments import Moments, frechet_distance, inception_score
from gantool.metrics.statistics import FloatRows, Need, Statistics, distance

SPLITS = 10
SHUFFLE_SEED = 2020
RADIUS_NEIGHBOUR = 3  # precision and recall; Kynkaanniemi et al., 2019
DENSITY_NEIGHBOUR = 5  # density and coverage; Naeem et al., 2020
SUBSETS, SUBSET_SIZE = 100, 1000  # KID as torch-fidelity computes it


Told = Callable[[int, int], None]  # (done, total) of the work of a metric that takes long


class Facts(NamedTuple):
    """What the protocol strings are made of."""

    features: str  # Extractor.protocol
    logits: str  # Extractor.logits_protocol
    spatial: str  # Extractor.spatial_protocol
    num: int  # images that are scored
    num_reference: int  # images in the moments of the reference
    num_equal: int  # images of the reference where as many as are scored are compared
    reference: str  # title:split:digest
    ddof: int

    def tail(self, num_reference: int) -> str:
        """The counts and the reference."""
        return f"n={self.num}/{num_reference}|ref={self.reference}"


class Metric(NamedTuple):
    """need: of the scored images. rows: whether features of the reference are needed one by one."""

    need: Need
    rows: bool
    values: Callable[[Statistics, Statistics, torch.device, Told], dict[str, float]]
    protocol: Callable[[Facts], str]


def _fid(scored: Statistics, reference: Statistics, *_: Any) -> dict[str, float]:
    return {"fid": distance(scored, reference)}


def _sfid(scored: Statistics, reference: Statistics, *_: Any) -> dict[str, float]:
    assert scored.spatial is not None and reference.spatial is not None
    return {"sfid": frechet_distance(scored.spatial, reference.spatial, scored.ddof)}


def _inception_score(scored: Statistics, *_: Any) -> dict[str, float]:
    if scored.logits is None:
        raise GantoolError("this extractor has no logits, which the inception score is made of", "leave `is` out")
    mean, deviation = inception_score(scored.logits, SPLITS, SHUFFLE_SEED)
    return {"is": mean, "is_std": deviation}


def _kid(scored: Statistics, reference: Statistics, device: torch.device, told: Told) -> dict[str, float]:
    a, b = _rows(scored, device), _rows(reference, device)
    count = _counted(told, kernel.num_parts(len(a), min(len(a), len(b)), SUBSETS))
    subsets = kernel.kid_subsets(a, b, SUBSETS, SUBSET_SIZE, SHUFFLE_SEED, count)
    values = {"kid": subsets.mean}
    if subsets.size < max(len(a), len(b)):  # else all subsets are the same
        values["kid_std"] = subsets.deviation
    whole = kernel.kid_unbiased(a, _equal(b, len(a)), told=count)
    return values | {"kid_full": whole.value, "kid_full_error": whole.standard_error}


def _precision_recall(scored: Statistics, reference: Statistics, device: torch.device, told: Told) -> dict[str, float]:
    a, b = _equal_sets(scored, reference, device)
    count = _counted(told, neighbours.num_blocks(len(a), len(b))[0])
    found = neighbours.precision_recall(a, b, RADIUS_NEIGHBOUR, told=count)
    return dict(zip(("precision", "recall"), found, strict=True))


def _density_coverage(scored: Statistics, reference: Statistics, device: torch.device, told: Told) -> dict[str, float]:
    a, b = _equal_sets(scored, reference, device)
    count = _counted(told, neighbours.num_blocks(len(a), len(b))[1])
    found = neighbours.density_coverage(a, b, DENSITY_NEIGHBOUR, told=count)
    return dict(zip(("density", "coverage"), found, strict=True))


def _counted(told: Told, total: int) -> Callable[[], None]:
    """What is to be called after each part of the work."""
    done = itertools.count(1)
    return lambda: told(next(done), total)


def _kid_protocol(f: Facts) -> str:
    size = min(f.num, f.num_reference, SUBSET_SIZE)
    subsets = f"subsets={SUBSETS}x{size}|seed={SHUFFLE_SEED}|full={f.num}/{f.num_equal}"
    return f"kid|{f.features}|{f.tail(f.num_reference)}|poly3|{subsets}|fp64"


FEATURES = Need(features=True)
METRICS: dict[str, Metric] = {
    "fid": Metric(Need(), False, _fid, lambda f: f"fid|{f.features}|{f.tail(f.num_reference)}|ddof{f.ddof}"),
    "is": Metric(
        Need(logits=True),
        False,
        _inception_score,
        lambda f: f"is|{f.logits}|n={f.num}|splits={min(SPLITS, f.num)}|shuffle={SHUFFLE_SEED}",
    ),
    "kid": Metric(FEATURES, True, _kid, _kid_protocol),
    "precision_recall": Metric(
        FEATURES,
        True,
        _precision_recall,
        lambda f: f"pr|{f.features}|{f.tail(f.num_equal)}|k={RADIUS_NEIGHBOUR}|closed",
    ),
    "density_coverage": Metric(
        FEATURES, True, _density_coverage, lambda f: f"dc|{f.features}|{f.tail(f.num_equal)}|k={DENSITY_NEIGHBOUR}|open"
    ),
    "sfid": Metric(
        Need(spatial=True), False, _sfid, lambda f: f"sfid|{f.spatial}|{f.tail(f.num_reference)}|ddof{f.ddof}"
    ),
}


def need_of(metrics: Iterable[str]) -> Need:
    """What the metrics need of the scored images."""
    need = Need()
    for name in metrics:
        need |= METRICS[name].need if name in METRICS else FEATURES if name == "overfit" else Need()
    return need


def overfit(
    scored: Statistics,
    train: Statistics,
    test: Statistics,
    device: torch.device,
    told: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, float]:
    """Signs of memory: FID to training and to test images from equal numbers of them, the FID between those two, and
    AuthPct (Alaa et al., 2022), the percentage of images that are no near copies of training images. `told` hears how
    much is done, and of how much."""
    rows = [side.features for side in (scored, train, test) if side.features is not None]
    num = min(map(len, rows))
    # At random: classes come in turn or one after the other, and a regular choice would favour some.
    parts = [part[np.random.default_rng(SHUFFLE_SEED).permutation(len(part))[:num]] for part in rows]
    moments = [_moments(part) for part in parts]

    blocks = 2 * -(-len(rows[0]) // neighbours.BLOCK) * -(-len(rows[1]) // neighbours.BLOCK)  # or fewer
    steps = iter(range(1, blocks + 1))
    authentic = neighbours.authenticity(
        _rows(scored, device), _rows(train, device), told=lambda: told(next(steps, blocks), blocks + 3)
    )
    distances = iter(range(blocks + 1, blocks + 4))

    def fid(a: int, b: int) -> float:
        found = frechet_distance(moments[a], moments[b], scored.ddof, parts[a], parts[b])
        told(next(distances), blocks + 3)
        return found

    values = {"fid_to_train": fid(0, 1), "fid_to_test": fid(0, 2), "fid_train_to_test": fid(1, 2)}
    return values | {"authpct": 100.0 * authentic}


def overfit_protocol(facts: Facts, num_equal: int) -> str:
    """The protocol of `overfit`'s values."""
    counts = f"n={num_equal} each|seed={SHUFFLE_SEED}|authpct={facts.num}/{facts.num_reference}"
    return f"overfit|{facts.features}|{counts}|ref={facts.reference}"


def _moments(rows: FloatRows) -> Moments:
    moments = Moments.empty(rows.shape[1])
    moments.add(rows)
    return moments


def class_moments(statistics: Statistics, label: int) -> Statistics:
    """The statistics of the images of one class, from the rows that were kept."""
    assert statistics.features is not None and statistics.labels is not None
    chosen = np.flatnonzero(statistics.labels == label)
    rows = statistics.features[chosen]
    logits = statistics.logits[chosen] if statistics.logits is not None else None
    return Statistics(statistics.protocol, _moments(rows), logits, rows, ddof=statistics.ddof)


def _equal_sets(scored: Statistics, reference: Statistics, device: torch.device) -> tuple[Tensor, Tensor]:
    """The features of the scored images, and of as many of the reference."""
    rows = _rows(scored, device)
    return rows, _equal(_rows(reference, device), len(rows))


def _equal(rows: Tensor, num: int) -> Tensor:
    """`num` rows spread evenly (more than there are: all): a set may be in the order of its classes."""
    return rows if num >= len(rows) else rows[torch.arange(num, device=rows.device) * len(rows) // num]


def _rows(statistics: Statistics, device: torch.device) -> Tensor:
    assert statistics.features is not None
    return torch.from_numpy(statistics.features).to(device)
