"""Kernel distance of two sets of features: KID, the squared maximum mean discrepancy with a cubic kernel.

Binkowski et al., 2018 (arXiv:1801.01401): k(x, y) = (x.y / d + 1)^3 for features of length d. Unlike FID it has no bias
in the number of images, and may come out below 0 for two sets of one distribution.

`kid_subsets` draws the subsets of torch-fidelity (same generator, same order) and so gives its numbers, but for the
rounding: kernels are float64 here and float32 there, which moves a KID by about 1e-7 / KID of its size.
`kid_unbiased` uses every pair once, so that nothing is drawn, and knows its standard error. Both call `told` after each
part of the work, of which there are `num_parts`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gantool.errors import GantoolError


class SubsetKid(NamedTuple):
    """KID over random subsets."""

    mean: float
    deviation: float  # of the subsets around the mean (ddof 0); no standard error: the subsets overlap
    size: int  # images of each side in a subset


class FullKid(NamedTuple):
    """KID over all pairs."""

    value: float
    standard_error: float


def kid_subsets(
    scored: Tensor, reference: Tensor, subsets: int = 100, size: int = 1000, seed: int = 2020,
    told: Callable[[], None] = lambda: None,
) -> SubsetKid:  # fmt: skip
    """Mean and deviation of the KID of `subsets` random subsets of `size` images of each side, without replacement.

    scored [n, d], reference [m, d]: features on one device; kernels are float64. The size is at most min(n, m), as in
    clean-fid and stylegan3 (torch-fidelity refuses). GantoolError with less than two images on a side.
    """
    scored, reference = _checked(scored, reference, 2)
    size = min(size, len(scored), len(reference))
    # The legacy generator on purpose: it is what torch-fidelity draws with, from the scored images first.
    random = np.random.RandomState(seed)
    drawn = [[random.choice(len(rows), size, replace=False) for rows in (scored, reference)] for _ in range(subsets)]
    # Where it is less work, the kernels of all pairs are computed once for all subsets together.
    dim = scored.shape[1]
    together = max(len(scored), len(reference)) ** 2 * (dim + subsets) <= subsets * size**2 * dim
    parts = [drawn] if together else [[subset] for subset in drawn]
    found = []
    for part in parts:
        found.append(_kid_of_subsets(scored, reference, part))
        told()
    values = np.concatenate(found)
    return SubsetKid(_finite(float(values.mean())), float(values.std()), size)


def kid_unbiased(
    scored: Tensor, reference: Tensor, block: int = 2048, told: Callable[[], None] = lambda: None
) -> FullKid:
    """The unbiased estimate from all pairs (Gretton et al., 2012, eq. (3)), and its standard error.

    scored [n, d], reference [m, d]: features on one device; kernels are float64, `block` x `block` of them at a time.
    The standard error is the delete-one jackknife of a two-sample U-statistic (Arvesen, 1969), in closed form from the
    sums of the rows of the kernel matrices. It is right when the distributions differ and, as Efron and Stein (1981)
    show, too large on average when they are the same (by up to the root of 2), never too small.
    GantoolError with less than three images on a side.
    """
    scored, reference = _checked(scored, reference, 3)
    n, m = len(scored), len(reference)
    within_x, within_y = _sums_within(scored, block, told), _sums_within(reference, block, told)
    across_x, across_y = _sums_across(scored, reference, block, told)
    across = float(across_x.sum())
    mean_x, mean_y = float(within_x.sum()) / (n * (n - 1)), float(within_y.sum()) / (m * (m - 1))
    value = mean_x + mean_y - 2.0 * across / (n * m)
    # The estimate without image i, up to what does not depend on i.
    without_x = -2.0 * within_x / ((n - 1) * (n - 2)) + 2.0 * across_x / ((n - 1) * m)
    without_y = -2.0 * within_y / ((m - 1) * (m - 2)) + 2.0 * across_y / ((m - 1) * n)
    variance = (n - 1) * float(without_x.var(correction=0)) + (m - 1) * float(without_y.var(correction=0))
    return FullKid(_finite(value), math.sqrt(variance))


def num_parts(n: int, m: int, subsets: int = 100, block: int = 2048) -> int:
    """How often the two functions together call `told`, at most, for n scored images and m of the reference in
    `kid_unbiased`."""
    x, y = -(-n // block), -(-m // block)
    return subsets + x * (x + 1) // 2 + y * (y + 1) // 2 + x * y


def _checked(scored: Tensor, reference: Tensor, least: int) -> tuple[Tensor, Tensor]:
    assert scored.ndim == reference.ndim == 2 and scored.shape[1] == reference.shape[1], (scored.shape, reference.shape)
    found = min(len(scored), len(reference))
    if found < least:
        raise GantoolError(f"found {found} images, expected {least} or more on each side for a kernel distance")
    if scored.device.type == "mps":  # it has no float64
        return scored.cpu(), reference.cpu()
    return scored, reference


def _finite(value: float) -> float:
    if not math.isfinite(value):
        hint = "features are NaN, infinite or too large: the images or the extractor's weights are broken"
        raise GantoolError("the kernel distance is not a finite number", hint)
    return value


def _kid_of_subsets(
    scored: Tensor, reference: Tensor, drawn: list[list[npt.NDArray[np.int64]]], block: int = 2048
) -> npt.NDArray[np.float64]:
    """The KID of each subset, given as its row numbers on either side."""
    (x, in_x), (y, in_y) = (
        _members(rows, [subset[side] for subset in drawn]) for side, rows in enumerate((scored, reference))
    )
    size = len(drawn[0][0])
    within = sum(
        _sums_of_subsets(rows, rows, members, members, block) - members.T @ _own_kernels(rows, block)
        for rows, members in ((x, in_x), (y, in_y))
    )
    across = _sums_of_subsets(x, y, in_x, in_y, block)
    values: npt.NDArray[np.float64] = (within / (size * (size - 1)) - 2.0 * across / size**2).cpu().numpy()
    return values


def _members(rows: Tensor, subsets: list[npt.NDArray[np.int64]]) -> tuple[Tensor, Tensor]:
    """The rows [n, d] that are in some subset, and 1 where row i is in subset j, else 0: float64 [n, subsets]."""
    used, place = np.unique(np.stack(subsets, axis=1), return_inverse=True)
    members = torch.zeros((len(used), len(subsets)), dtype=torch.float64)
    members.scatter_(0, torch.from_numpy(place.reshape(-1, len(subsets))), 1.0)
    return rows[torch.from_numpy(used).to(rows.device)], members.to(rows.device)


def _sums_of_subsets(x: Tensor, y: Tensor, in_x: Tensor, in_y: Tensor, block: int) -> Tensor:
    """float64 [subsets]: the sum of the kernels between the members of each subset on both sides."""
    sums = torch.zeros(in_x.shape[1], dtype=torch.float64, device=x.device)
    for here, a in _blocks(x, block):
        for there, b in _blocks(y, block):
            sums += (in_x[here] * (_kernel(a, b) @ in_y[there])).sum(dim=0)
    return sums


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """float64 [n, m] of float64 [n, d] and [m, d]."""
    return _cube(torch.addmm(x.new_ones(1), x, y.T, alpha=1.0 / x.shape[1]))


def _own_kernels(rows: Tensor, block: int) -> Tensor:
    """float64 [n]: the kernel of each row with itself."""
    return torch.cat([_cube(part.square().mean(dim=1) + 1) for _, part in _blocks(rows, block)])


def _cube(values: Tensor) -> Tensor:
    return values.square().mul_(values)  # several times faster than pow(3)


def _blocks(rows: Tensor, block: int) -> Iterator[tuple[slice, Tensor]]:
    for start in range(0, len(rows), block):
        part = slice(start, min(start + block, len(rows)))
        yield part, rows[part].double()


def _sums_within(rows: Tensor, block: int, told: Callable[[], None]) -> Tensor:
    """float64 [n]: for each row i the sum of k(i, j) over j != i. Blocks below the diagonal come by symmetry."""
    sums = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    for here, x in _blocks(rows, block):
        for there, y in _blocks(rows[here.start :], block):
            there = slice(there.start + here.start, there.stop + here.start)
            kernel = _kernel(x, y)
            if here == there:
                kernel.fill_diagonal_(0.0)
            else:
                sums[there] += kernel.sum(dim=0)
            sums[here] += kernel.sum(dim=1)
            told()
    return sums


def _sums_across(scored: Tensor, reference: Tensor, block: int, told: Callable[[], None]) -> tuple[Tensor, Tensor]:
    """float64 [n] and [m]: the sums of the rows and of the columns of the kernel matrix between the sets."""
    rows = torch.zeros(len(scored), dtype=torch.float64, device=scored.device)
    columns = torch.zeros(len(reference), dtype=torch.float64, device=scored.device)
    for here, x in _blocks(scored, block):
        for there, y in _blocks(reference, block):
            kernel = _kernel(x, y)
            rows[here] += kernel.sum(dim=1)
            columns[there] += kernel.sum(dim=0)
            told()
    return rows, columns
