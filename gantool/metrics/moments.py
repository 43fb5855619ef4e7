"""Statistics of features and the distances between them. Numbers only: numpy, float64, no torch.

Features are rounded to multiples of 2^-16, so sums of features and of their products are integers in units of 2^-16
and 2^-32, kept as int64. Integer sums do not depend on the order: any batch size and any sharding give the same bits.
(The rounding moves an FID by about 2e-6, a thousandth of what separates two implementations of FID.)

Frechet distance: Heusel et al., 2017 (arXiv:1706.08500); covariance divided by n - 1 as in the authors' code (n - ddof
where another implementation is to be followed: stylegan2 and stylegan3 divide by n). The matrix root is never formed:
its trace comes from a symmetric eigenproblem, or from singular values when a covariance is singular, in float64.
Inception score: Salimans et al., 2016 (arXiv:1606.03498); 10 splits, shuffled as in torch-fidelity.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from gantool.errors import GantoolError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

UNIT = 2.0**-16
_EXACT = 2.0**53  # float64 counts integers exactly up to here
_CHUNK = 512  # rows whose products are summed in float64 before they are added as integers
_MOST_THREADS = 8  # half of the work of a symmetric eigenproblem waits for memory: more threads would only spin


@dataclass
class Moments:
    """Count, sum and Gram matrix of feature vectors of length d; `merge` of parts equals `add` of the whole exactly.

    total: int64 [d], sum of the features in units of 2^-16; gram: int64 [d, d], sum of the outer products, 2^-32.
    """

    count: int
    total: IntArray
    gram: IntArray

    @classmethod
    def empty(cls, dim: int) -> Moments:
        """The moments of no vector at all."""
        return cls(0, np.zeros(dim, np.int64), np.zeros((dim, dim), np.int64))

    def add(self, features: npt.NDArray[np.floating]) -> None:
        """Add vectors [n, d]; GantoolError when they are not finite, or too large for exact sums."""
        for start in range(0, len(features), _CHUNK):
            self._add_chunk(np.asarray(features[start : start + _CHUNK], np.float64))

    def _add_chunk(self, rows: FloatArray) -> None:
        if not np.isfinite(rows).all():
            raise GantoolError(
                "found features that are NaN or infinite", "the images or the extractor's weights are broken"
            )
        units = np.rint(rows / UNIT)
        gram = units.T @ units
        # By Cauchy-Schwarz no sum, and no partial sum, exceeds the largest entry of the diagonal.
        if float(np.max(np.diagonal(gram), initial=0.0)) >= _EXACT:
            _refuse_large(float(np.abs(rows).max()))
        self.add_sums(len(rows), units.sum(axis=0).astype(np.int64), gram.astype(np.int64))

    def add_sums(self, count: int, total: IntArray, gram: IntArray) -> None:
        """Add the sums of `count` vectors, as `total` and `gram` hold them: int64 [d] and [d, d], in their units.

        For features that were rounded to multiples of UNIT and summed elsewhere: on a device, where sums are exact in
        float64 up to 2^53, in integers up to 2^63. GantoolError when the sums of the whole would not fit.
        """
        assert total.shape == self.total.shape and gram.shape == self.gram.shape, (total.shape, gram.shape)
        assert total.dtype == gram.dtype == np.int64, (total.dtype, gram.dtype)
        largest = int(np.diagonal(gram).max(initial=0))
        assert int(np.diagonal(gram).min(initial=0)) >= 0, "sums of squares overflowed before they came here"
        if int(np.diagonal(self.gram).max(initial=0)) + largest >= 2**62:
            _refuse_large(math.sqrt(largest / count) * UNIT)
        self.count += int(count)
        self.total += total
        self.gram += gram

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets of vectors together."""
        return Moments(self.count + other.count, self.total + other.total, self.gram + other.gram)

    def without(self, part: Moments) -> Moments:
        """The moments of these vectors but those of `part`, which must be among them: exact, as integers are."""
        assert part.count <= self.count
        return Moments(self.count - part.count, self.total - part.total, self.gram - part.gram)

    def constant(self) -> bool:
        """Whether all vectors are the same."""
        squares = np.diagonal(self.gram).astype(object) * self.count
        return bool((squares == self.total.astype(object) ** 2).all())

    def mean(self) -> FloatArray:
        """float64 [d]."""
        return self.total * UNIT / self.count

    def variance(self, ddof: int = 1) -> FloatArray:
        """float64 [d], divided by count - ddof: correctly rounded, exactly 0 for a feature that never changes."""
        # Python's integers, for d numbers only: the difference of two near equal products of more than 64 bits.
        spread = np.diagonal(self.gram).astype(object) * self.count - self.total.astype(object) ** 2
        variance: FloatArray = (spread / (self.count * (self.count - ddof))).astype(np.float64) * UNIT**2
        return variance

    def covariance(self, ddof: int = 1) -> FloatArray:
        """float64 [d, d], divided by count - ddof."""
        mean, variance = self.mean(), self.variance(ddof)
        covariance = self.gram.astype(np.float64) * UNIT**2
        covariance -= np.outer(self.count * mean, mean)
        covariance /= self.count - ddof
        # A feature that never changes has no variance; the difference above leaves a rest of rounding.
        constant = variance == 0.0
        covariance[constant, :] = 0.0
        covariance[:, constant] = 0.0
        np.fill_diagonal(covariance, variance)
        return covariance


def _refuse_large(size: float) -> NoReturn:
    text = f"found features as large as {size:.3g}, too large for exact sums"
    raise GantoolError(text, "scale the extractor's features so that their mean square is below 4000")


def frechet_distance(
    a: Moments,
    b: Moments,
    ddof: int = 1,
    rows_a: npt.NDArray[np.floating] | None = None,
    rows_b: npt.NDArray[np.floating] | None = None,
) -> float:
    """Squared Frechet distance of the Gaussians with the moments of `a` and `b`: >= 0, symmetric up to rounding.

    Covariances are divided by count - ddof. `rows_a`, `rows_b`: the vectors [count, d] themselves, where they are at
    hand. When there are no more of them than dimensions, the covariance is singular and they are a square root of it:
    tr (A B)^(1/2) is then the nuclear norm of a product of two such roots, exact and, for few vectors, faster.
    GantoolError when one side has less than two vectors.
    """
    if min(a.count, b.count) < 2:
        raise GantoolError(f"found {min(a.count, b.count)} images, expected 2 or more on each side for a distance")
    roots = _root_of_few(a, rows_a, ddof), _root_of_few(b, rows_b, ddof)
    if roots[0] is None and roots[1] is None:
        return gaussian_distance(a.mean(), a.covariance(ddof), b.mean(), b.covariance(ddof))
    with _blas_threads():
        root_a = _root(a.covariance(ddof)) if roots[0] is None else roots[0]
        root_b = _root(b.covariance(ddof)) if roots[1] is None else roots[1]
        root = _nuclear_norm(root_a, root_b)
    return _distance(a.mean() - b.mean(), float(a.variance(ddof).sum() + b.variance(ddof).sum()), root)


def gaussian_distance(mean_a: FloatArray, cov_a: FloatArray, mean_b: FloatArray, cov_b: FloatArray) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) for covariances A, B (float64 [d, d]); Heusel et al., eq. (6)."""
    return _distance(mean_a - mean_b, float(np.trace(cov_a) + np.trace(cov_b)), _trace_of_root(cov_a, cov_b))


def _distance(difference: FloatArray, traces: float, root: float) -> float:
    distance = float(difference @ difference) + traces - 2.0 * root
    if not math.isfinite(distance):
        raise GantoolError("the distance is not a finite number", "the features of one side are too large")
    return max(0.0, distance)


def _trace_of_root(a: FloatArray, b: FloatArray) -> float:
    """tr (a b)^(1/2): the sum of the roots of the eigenvalues of a b, which are those of L^T a L, where b = L L^T.

    When either matrix is singular to working precision, the nuclear norm of F_a^T F_b instead, where a = F_a F_a^T by
    eigendecomposition: slower, but it takes no root of a rounding error.
    """
    # Loaded before the threads are set, which reaches only the BLAS libraries that are there already; and here, because
    # programs that compute no distance need not wait for it.
    linalg = importlib.import_module("scipy.linalg")
    with _blas_threads():
        with contextlib.suppress(np.linalg.LinAlgError):
            values = linalg.eigh(a, b, type=2, driver="gv", eigvals_only=True, check_finite=False)
            if values[0] > 100 * len(a) * np.finfo(np.float64).eps * values[-1]:
                return float(np.sqrt(values).sum())
        return _nuclear_norm(_factor(a), _factor(b))


def _nuclear_norm(root_a: FloatArray, root_b: FloatArray) -> float:
    """The sum of the singular values of root_a^T root_b: tr (A B)^(1/2) where root root^T is the covariance."""
    return float(np.linalg.svd(root_a.T @ root_b, compute_uv=False).sum())


def _root_of_few(moments: Moments, rows: npt.NDArray[np.floating] | None, ddof: int) -> FloatArray | None:
    """F with F F^T = covariance, float64 [d, count]: the centred vectors, rounded as the moments are; None for many."""
    if rows is None or moments.count > len(moments.total):
        return None
    units = np.rint(np.asarray(rows, np.float64) / UNIT)
    assert np.array_equal(units.sum(axis=0).astype(np.int64), moments.total), "not the vectors of these moments"
    centred: FloatArray = np.asarray(units * UNIT - moments.mean(), np.float64)
    return np.asarray(centred.T / math.sqrt(moments.count - ddof), np.float64)


def _root(covariance: FloatArray) -> FloatArray:
    """F with F F^T = covariance: by Cholesky, or, when it is singular to working precision, by eigendecomposition."""
    with contextlib.suppress(np.linalg.LinAlgError):
        root = np.asarray(np.linalg.cholesky(covariance), np.float64)
        pivots = np.diagonal(root) ** 2
        if pivots.min() > 100 * len(root) * np.finfo(np.float64).eps * pivots.max():
            return root
    return _factor(covariance)


def _factor(covariance: FloatArray) -> FloatArray:
    """F with F F^T = covariance, without the directions of zero variance: float64 [d, rank]."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > len(values) * np.finfo(np.float64).eps * max(values[-1], 0.0)
    factor: FloatArray = vectors[:, kept] * np.sqrt(values[kept])
    return factor


def inception_score(
    logits: npt.NDArray[np.floating], splits: int = 10, shuffle_seed: int | None = 2020
) -> tuple[float, float]:
    """Mean and standard deviation (ddof 0) over `splits` parts of exp E_x KL(p(y|x) || p(y)); logits [N, C].

    Part i holds images i*N//splits .. (i+1)*N//splits of the order given by `shuffle_seed` (None: as they come; classes
    in order would then lower the score). Fewer images than parts: one part for each image.
    """
    num = len(logits)
    splits = min(splits, num)
    # The legacy generator on purpose: it is what torch-fidelity shuffles with.
    order = np.arange(num) if shuffle_seed is None else np.random.RandomState(shuffle_seed).permutation(num)
    scores = []
    for i in range(splits):
        part = np.asarray(logits[order[i * num // splits : (i + 1) * num // splits]], np.float64)
        shifted = part - part.max(axis=1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        p = np.exp(log_p)
        marginal = p.mean(axis=0)
        log_marginal = np.log(np.where(marginal > 0, marginal, 1.0))  # where it is 0, every p is 0 as well
        scores.append(float(np.exp((p * (log_p - log_marginal)).sum(axis=1).mean())))
    return float(np.mean(scores)), float(np.std(scores))


def _blas_threads() -> contextlib.AbstractContextManager[object]:
    """Keep numpy's and scipy's BLAS to the CPUs that this process was given.

    Threads of a BLAS wait for each other by spinning: more of them than free CPUs are ten times slower than one, while
    two free CPUs are at best twice as fast. So what Slurm, OMP_NUM_THREADS or a CPU mask allot is used; where nothing
    says that the CPUs are this process's own (a laptop, a shared login node), it is one thread.
    """
    limits = importlib.import_module("threadpoolctl").threadpool_limits
    context: contextlib.AbstractContextManager[object] = limits(allotted_threads(), user_api="blas")
    return context


def allotted_threads() -> int:
    """Number of BLAS threads for the Frechet distance, 1..8."""
    machine = os.cpu_count() or 1
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else machine
    names = ("OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE")
    allotted = [int(os.environ[name]) for name in names if os.environ.get(name, "").isdigit()]
    if not allotted and cpus == machine:
        return 1
    return max(1, min([cpus, _MOST_THREADS, *allotted]))
