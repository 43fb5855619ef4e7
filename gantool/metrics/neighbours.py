"""Metrics of nearest neighbours among features: precision, recall, density, coverage, authenticity, nearest images.

Precision and recall: Kynkaanniemi et al., 2019 (arXiv:1904.06991); a ball reaches to the k-th neighbour and holds its
border ('<='), as in stylegan3 and torch-fidelity. Density and coverage: Naeem et al., 2020 (arXiv:2002.09797); a ball
is without its border ('<'), as in the authors' `prdc`. Authenticity: Alaa et al., 2022 (arXiv:2102.08921).

Distances are exact. A common power of two is taken as unit, about 2^-25 of the longest feature vector, and features are
rounded to it, which is finer than float32 numbers of that length. Squared distances are then integers below 2^53, which
float64 adds and multiplies without rounding in any order: equal images are at distance 0, ties are ties, and no number
depends on the block size or the device. (The float32 distances of torch.cdist put an image up to 0.04 from itself.) No
image counts as its own neighbour, by its index; a copy of it does.
No more than `block` x `block` distances are held, and `told` is called after each such block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from gantool.errors import GantoolError

BLOCK = 2048


def precision_recall(
    scored: Tensor, reference: Tensor, k: int = 3, block: int = BLOCK, told: Callable[[], None] = lambda: None
) -> tuple[float, float]:
    """Share of the scored images within a ball of the reference, and of the reference within a ball of the scored.

    The ball of an image reaches to its k-th neighbour in its own set, border included. Features float [n, d] and
    [m, d] on one device; 0..1 each. GantoolError when a set has no k neighbours, or features that are not finite.
    """
    scored, reference, unit = _prepared(scored, reference)
    radii = [_radii(rows, k, unit, block, told=told) for rows in (scored, reference)]
    covered = [torch.zeros(len(rows), dtype=torch.bool, device=rows.device) for rows in (scored, reference)]
    for here, there, squared in _distances(scored, reference, unit, block, told):
        covered[0][here] |= (squared <= radii[1][there]).any(dim=1)
        covered[1][there] |= (squared <= radii[0][here, None]).any(dim=0)
    return _share(covered[0]), _share(covered[1])


def density_coverage(
    scored: Tensor, reference: Tensor, k: int = 5, block: int = BLOCK, told: Callable[[], None] = lambda: None
) -> tuple[float, float]:
    """Mean number of the reference's balls around a scored image, by k; share of the balls with a scored image.

    Balls as in `precision_recall`, without their border. Density is 0 or more and may exceed 1, coverage is 0..1; both
    are 0 where every ball has radius 0, as in a reference of copies. GantoolError as there.
    """
    scored, reference, unit = _prepared(scored, reference)
    radii = _radii(reference, k, unit, block, told=told)
    nearest = torch.full_like(radii, math.inf)
    within = 0
    for _, there, squared in _distances(scored, reference, unit, block, told):
        within += int((squared < radii[there]).sum())
        nearest[there] = torch.minimum(nearest[there], squared.amin(dim=0))
    return within / (k * len(scored)), _share(nearest < radii)


def num_blocks(n: int, m: int) -> tuple[int, int]:
    """How often `precision_recall` and `density_coverage` of n scored images and m others call `told`."""
    x, y = -(-n // BLOCK), -(-m // BLOCK)
    own_x, own_y = x * (x + 1) // 2, y * (y + 1) // 2  # a block and its mirror image are one
    return own_x + own_y + x * y, own_y + x * y


def authenticity(scored: Tensor, train: Tensor, block: int = BLOCK, told: Callable[[], None] = lambda: None) -> float:
    """Share (0..1) of the scored images that are no near copies of training images; AuthPct is 100 times that.

    An image is authentic when its nearest training image is nearer to another training image than to it (Alaa et al.,
    2022, section 4; strict as in dgm-eval). GantoolError with less than two training images.
    """
    scored, train, unit = _prepared(scored, train)
    indices, squared = _nearest(scored, train, 1, unit, block, told)
    # Only training images that are nearest to something are asked for their own neighbours.
    chosen, place = torch.unique(indices[:, 0], return_inverse=True)
    return _share(_radii(train, 1, unit, block, chosen, told)[place] < squared[:, 0])


def nearest(scored: Tensor, reference: Tensor, k: int = 1, block: int = BLOCK) -> tuple[Tensor, Tensor]:
    """For each scored image the k nearest of the reference, nearest first, the first of equals first.

    Indices int64 [n, k], Euclidean distances float32 [n, k]. GantoolError when there are less than k to find.
    """
    scored, reference, unit = _prepared(scored, reference)
    if not 1 <= k <= len(reference):
        raise GantoolError(f"found {len(reference)} images to find the {k} nearest among, expected {k} or more")
    indices, squared = _nearest(scored, reference, k, unit, block)
    return indices, (squared.sqrt() * unit).float()


def _prepared(scored: Tensor, reference: Tensor) -> tuple[Tensor, Tensor, float]:
    """Both sets, and the unit in which their squared distances are integers below 2^53."""
    assert scored.ndim == reference.ndim == 2 and scored.shape[1] == reference.shape[1], (scored.shape, reference.shape)
    if min(len(scored), len(reference)) < 1:
        raise GantoolError("found a set without images, expected 1 or more on each side")
    if scored.device.type == "mps":  # it has no float64
        scored, reference = scored.cpu(), reference.cpu()
    lengths = [torch.linalg.vector_norm(part, dim=1, dtype=torch.float64) for part in (scored, reference)]
    length = float(torch.cat(lengths).max())  # NaN if there is one
    if not math.isfinite(length):
        text = "found features that are NaN or infinite"
        raise GantoolError(text, "the images or the extractor's weights are broken")
    # |x| < 2^25 units, so |x - y|^2 < 2^52; what rounding adds to a length is far below the factor that is left.
    return scored, reference, 2.0 ** (math.frexp(length)[1] - 25)


def _blocks(rows: Tensor, unit: float, block: int) -> Iterator[tuple[slice, Tensor]]:
    for start in range(0, len(rows), block):
        part = slice(start, min(start + block, len(rows)))
        yield part, rows[part].double().div_(unit).round_()


def _squared(x: Tensor, y: Tensor) -> Tensor:
    """Squared distances of rows of integers: float64 [n, m], exact."""
    return torch.addmm(y.square().sum(dim=1), x, y.T, alpha=-2).add_(x.square().sum(dim=1, keepdim=True))


def _distances(
    x: Tensor, y: Tensor, unit: float, block: int, told: Callable[[], None] = lambda: None
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Every block of the matrix of squared distances: its rows, its columns, and float64 in units^2."""
    for here, a in _blocks(x, unit, block):
        for there, b in _blocks(y, unit, block):
            yield here, there, _squared(a, b)
            told()


def _radii(
    rows: Tensor, k: int, unit: float, block: int, chosen: Tensor | None = None,
    told: Callable[[], None] = lambda: None,
) -> Tensor:  # fmt: skip
    """Squared distance from each row (those at the indices `chosen`) to its k-th neighbour among the others."""
    if not 1 <= k < len(rows):
        text = f"found {len(rows)} images, expected {k + 1} or more on each side for the distance to neighbour {k}"
        raise GantoolError(text, "score more images")
    num = len(rows) if chosen is None else len(chosen)
    smallest = torch.full((num, k), math.inf, dtype=torch.float64, device=rows.device)

    def merge(here: slice, squared: Tensor) -> None:
        smallest[here] = torch.cat([smallest[here], squared], dim=1).topk(k, largest=False).values

    if chosen is not None:
        for here, there, squared in _distances(rows[chosen], rows, unit, block, told):
            own = chosen[here] - there.start
            inside = torch.nonzero((own >= 0) & (own < squared.shape[1]))[:, 0]
            squared[inside, own[inside]] = math.inf
            merge(here, squared)
    else:  # the matrix is its own mirror image: half of its blocks are enough
        for here, a in _blocks(rows, unit, block):
            for there, b in _blocks(rows[here.start :], unit, block):
                squared = _squared(a, b)
                if there.start == 0:
                    merge(here, squared.fill_diagonal_(math.inf))
                else:
                    merge(here, squared)
                    merge(slice(here.start + there.start, here.start + there.stop), squared.T)
                told()
    return smallest[:, k - 1]


def _nearest(
    x: Tensor, y: Tensor, k: int, unit: float, block: int, told: Callable[[], None] = lambda: None
) -> tuple[Tensor, Tensor]:
    """Indices int64 [n, k] and squared distances float64 [n, k] of the k nearest rows of y, in order."""
    values = torch.full((len(x), k), math.inf, dtype=torch.float64, device=x.device)
    indices = torch.zeros((len(x), k), dtype=torch.int64, device=x.device)
    for here, there, squared in _distances(x, y, unit, block, told):
        columns = torch.arange(there.start, there.stop, device=x.device).expand(len(squared), -1)
        squared, columns = torch.cat([values[here], squared], dim=1), torch.cat([indices[here], columns], dim=1)
        for i in range(k):
            place = squared.argmin(dim=1, keepdim=True)  # the first of equals, which topk does not promise
            values[here, i], indices[here, i] = squared.gather(1, place)[:, 0], columns.gather(1, place)[:, 0]
            squared.scatter_(1, place, math.inf)
    return indices, values


def _share(mask: Tensor) -> float:
    return int(mask.sum()) / len(mask)
