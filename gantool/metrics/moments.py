"""Statistics of features and the distances between them. Numbers only: numpy, float64, no torch.

Features are rounded to multiples of 2^-16, so sums of features and of their products are integers in units of 2^-16
and 2^-32, kept as int64. Integer sums do not depend on the order: any batch size and any sharding give the same bits.
(The rounding moves an FID by about 2e-6, a thousandth of what separates two implementations of FID.)

Frechet distance: Heusel et al., 2017 (arXiv:1706.08500); covariance divided by n - 1 as in the authors' code.
Inception score: Salimans et al., 2016 (arXiv:1606.03498); 10 splits, shuffled as in torch-fidelity.
"""

from __future__ import annotations

import contextlib
import importlib
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gantool.errors import GantoolError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

UNIT = 2.0**-16
_EXACT = 2.0**53  # float64 counts integers exactly up to here
_CHUNK = 512  # rows whose products are summed in float64 before they are added as integers


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
        # By Cauchy-Schwarz no partial sum of any entry exceeds the largest entry of the diagonal.
        largest = float(np.max(np.diagonal(gram), initial=0.0))
        if largest >= _EXACT or float(np.max(np.diagonal(self.gram), initial=0)) + largest >= 2.0**62:
            text = f"found features as large as {np.abs(rows).max():.3g}, too large for exact sums of {_CHUNK}"
            raise GantoolError(text, "scale the extractor's features so that their mean square is below 4000")
        self.count += len(rows)
        self.total += units.sum(axis=0).astype(np.int64)
        self.gram += gram.astype(np.int64)

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets of vectors together."""
        return Moments(self.count + other.count, self.total + other.total, self.gram + other.gram)

    def mean(self) -> FloatArray:
        """float64 [d]."""
        return self.total * UNIT / self.count

    def covariance(self) -> FloatArray:
        """float64 [d, d], divided by count - 1."""
        mean = self.mean()
        covariance: FloatArray = (self.gram * UNIT**2 - self.count * np.outer(mean, mean)) / (self.count - 1)
        # A feature that never changes has no variance; the difference above leaves a rest of rounding.
        constant = np.diagonal(self.gram).astype(object) * self.count == self.total.astype(object) ** 2
        covariance[constant, :] = 0.0
        covariance[:, constant] = 0.0
        return covariance


@dataclass
class Statistics:
    """What the scores of a set of images are computed from."""

    moments: Moments  # of the pooled features
    logits: npt.NDArray[np.float32]  # [n, num_logits], in the order of the images; [0, num_logits] when not kept

    @property
    def count(self) -> int:
        """Number of images."""
        return self.moments.count


def frechet_distance(a: Moments, b: Moments) -> float:
    """Squared Frechet distance of the Gaussians with the moments of `a` and `b`: >= 0, symmetric up to rounding.

    GantoolError when one of them has less than two vectors.
    """
    if min(a.count, b.count) < 2:
        raise GantoolError(f"found {min(a.count, b.count)} images, expected 2 or more on each side for a distance")
    with _one_thread():
        return gaussian_distance(a.mean(), a.covariance(), b.mean(), b.covariance())


def gaussian_distance(mean_a: FloatArray, cov_a: FloatArray, mean_b: FloatArray, cov_b: FloatArray) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) for covariances A, B (float64 [d, d]); Heusel et al., eq. (6)."""
    difference = mean_a - mean_b
    root = _trace_of_root(cov_a, cov_b)
    distance = float(difference @ difference + np.trace(cov_a) + np.trace(cov_b) - 2.0 * root)
    if not math.isfinite(distance):
        raise GantoolError("the distance is not a finite number", "the features of one side are too large")
    return max(0.0, distance)


def _trace_of_root(a: FloatArray, b: FloatArray) -> float:
    """tr (a b)^(1/2): the sum of the roots of the eigenvalues of L^T a L, where b = L L^T.

    When either matrix is singular to working precision, the nuclear norm of F_a^T F_b instead, where a = F_a F_a^T by
    eigendecomposition: slower, but it takes no root of a rounding error.
    """
    with contextlib.suppress(np.linalg.LinAlgError):
        factor = np.linalg.cholesky(b)
        values = np.linalg.eigvalsh(factor.T @ a @ factor)
        if values[0] > 100 * len(a) * np.finfo(np.float64).eps * values[-1]:
            return float(np.sqrt(values).sum())
    return float(np.linalg.svd(_factor(a).T @ _factor(b), compute_uv=False).sum())


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


def _one_thread() -> contextlib.AbstractContextManager[object]:
    """Keep numpy's BLAS to one thread, where threadpoolctl is installed. Several are at best twice as fast on these
    problems and, when other processes use the CPUs too, ten times slower: they wait for each other by spinning."""
    try:
        limits = importlib.import_module("threadpoolctl").threadpool_limits
    except ImportError:
        return contextlib.nullcontext()
    context: contextlib.AbstractContextManager[object] = limits(1, user_api="blas")
    return context
