"""Moments, the Frechet distance and the inception score: exactness, closed forms, a second implementation."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import scipy.linalg
import threadpoolctl
from hypothesis import given, settings
from hypothesis import strategies as st

from gantool.errors import GantoolError
from gantool.metrics.moments import (
    UNIT,
    Moments,
    allotted_threads,
    frechet_distance,
    gaussian_distance,
    inception_score,
)


def moments_of(features: np.ndarray) -> Moments:
    moments = Moments.empty(features.shape[1])
    moments.add(features)
    return moments


def random_covariance(rng: np.random.Generator, dim: int, rank: int | None = None) -> np.ndarray:
    factor = rng.standard_normal((dim, rank or 2 * dim))
    return factor @ factor.T


@given(seed=st.integers(0, 2**32 - 1), cuts=st.lists(st.integers(0, 1500), max_size=6))
@settings(max_examples=30, deadline=None)
def test_any_order_and_any_sharding_give_the_same_bits(seed: int, cuts: list[int]) -> None:
    rng = np.random.default_rng(seed)
    features = (rng.standard_normal((1500, 7)) * rng.choice([1e-3, 1, 30], 7)).astype(np.float32)
    whole = moments_of(features)
    shuffled = features[rng.permutation(1500)]
    merged = Moments.empty(7)
    for part in np.split(shuffled, sorted(cuts)):
        merged = moments_of(part).merge(merged)
    assert merged.count == whole.count
    np.testing.assert_array_equal(merged.total, whole.total)
    np.testing.assert_array_equal(merged.gram, whole.gram)


def test_moments_are_exact_sums_of_rounded_features() -> None:
    features = np.random.default_rng(0).standard_normal((700, 3)) * 20
    units = [[round(float(value) / UNIT) for value in row] for row in features]
    moments = moments_of(features)
    for i in range(3):
        assert int(moments.total[i]) == sum(row[i] for row in units)
        for j in range(3):
            assert int(moments.gram[i, j]) == sum(row[i] * row[j] for row in units)


def test_mean_and_covariance_agree_with_numpy() -> None:
    features = np.random.default_rng(1).standard_normal((2000, 5)) * [1, 2, 3, 0.1, 10] + [0, 5, -5, 1, 40]
    rounded = np.rint(features / UNIT) * UNIT
    moments = moments_of(features)
    np.testing.assert_allclose(moments.mean(), rounded.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(moments.covariance(), np.cov(rounded, rowvar=False), rtol=1e-9, atol=1e-10)


def test_covariance_divided_by_n_is_that_of_numpy_and_of_stylegan() -> None:
    features = np.random.default_rng(1).integers(-50, 50, (300, 6)) / 16
    moments = moments_of(features)
    np.testing.assert_allclose(moments.covariance(0), np.cov(features, rowvar=False, ddof=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(moments.covariance(0) * 300 / 299, moments.covariance(), rtol=1e-14)


def test_variances_are_correctly_rounded() -> None:
    """A feature of mean 60 that changes by one unit once: all but 1 of 2^40 cancels."""
    units = np.full((400, 2), round(60 / UNIT))
    units[7, 0] += 1
    moments = moments_of(units * UNIT)
    truth = Fraction(399, 400 * 399) * Fraction(1, 2**32)
    assert moments.variance().tolist() == [float(truth), 0.0]
    assert np.diagonal(moments.covariance()).tolist() == [float(truth), 0.0]


def test_sums_made_elsewhere_are_the_same_sums() -> None:
    features = np.random.default_rng(1).standard_normal((90, 4))
    units = np.rint(features / UNIT).astype(np.int64)
    moments = moments_of(features[:30])
    moments.add_sums(60, units[30:].sum(axis=0), units[30:].T @ units[30:])
    whole = moments_of(features)
    assert moments.count == whole.count == 90
    np.testing.assert_array_equal(moments.total, whole.total)
    np.testing.assert_array_equal(moments.gram, whole.gram)
    rest = whole.without(moments_of(features[30:]))
    np.testing.assert_array_equal(rest.gram, moments_of(features[:30]).gram)
    assert rest.count == 30 and rest.covariance() == pytest.approx(moments_of(features[:30]).covariance(), abs=0)


def test_sums_that_would_overflow_are_refused_and_change_nothing() -> None:
    moments = moments_of(np.ones((3, 1)))
    with pytest.raises(GantoolError, match="too large for exact sums"):
        moments.add_sums(10**6, np.zeros(1, np.int64), np.full((1, 1), 2**62, np.int64))
    assert moments.count == 3 and moments.gram.tolist() == [[3 * 2**32]]


def test_a_constant_feature_has_no_variance_at_all() -> None:
    features = np.random.default_rng(2).standard_normal((999, 3))
    features[:, 1] = 0.1
    covariance = moments_of(features).covariance()
    assert not covariance[1].any() and not covariance[:, 1].any()
    assert covariance[0, 0] > 0.5


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(bad: float) -> None:
    features = np.ones((4, 2))
    features[3, 1] = bad
    with pytest.raises(GantoolError, match="NaN or infinite"):
        moments_of(features)


def test_features_too_large_for_exact_sums_are_refused() -> None:
    moments_of(np.full((512, 1), 63.0))
    with pytest.raises(GantoolError, match="too large for exact sums"):
        moments_of(np.full((512, 1), 64.0))


def test_distance_of_diagonal_gaussians() -> None:
    """The roots of the variances differ, nothing else does: |m|^2 + sum (s - t)^2."""
    rng = np.random.default_rng(3)
    m, s, t = rng.standard_normal(50), rng.uniform(0.1, 9, 50), rng.uniform(0.1, 9, 50)
    found = gaussian_distance(m, np.diag(s**2), np.zeros(50), np.diag(t**2))
    assert found == pytest.approx(float(m @ m + ((s - t) ** 2).sum()), rel=1e-12)


def test_distance_of_commuting_covariances() -> None:
    rng = np.random.default_rng(4)
    basis, _ = np.linalg.qr(rng.standard_normal((40, 40)))
    a, b = 10.0 ** rng.uniform(-3, 2, 40), 10.0 ** rng.uniform(-3, 2, 40)
    zero = np.zeros(40)
    found = gaussian_distance(zero, basis * a @ basis.T, zero, basis * b @ basis.T)
    assert found == pytest.approx(float(((np.sqrt(a) - np.sqrt(b)) ** 2).sum()), rel=1e-10)


@pytest.mark.parametrize("both", [False, True])
def test_distance_with_covariances_that_are_not_of_full_rank(both: bool) -> None:
    """The same directions with variance, in another basis: the closed form of the directions that have any."""
    rng = np.random.default_rng(5)
    basis, _ = np.linalg.qr(rng.standard_normal((60, 60)))
    a, b = rng.uniform(0.5, 2, 60), rng.uniform(0.5, 2, 60)
    a[25:] = 0
    if both:
        b[10:] = 0
    zero = np.zeros(60)
    truth = float(((np.sqrt(a) - np.sqrt(b)) ** 2).sum())
    covariances = basis * a @ basis.T, basis * b @ basis.T
    assert gaussian_distance(zero, covariances[0], zero, covariances[1]) == pytest.approx(truth, rel=1e-10)
    assert gaussian_distance(zero, covariances[1], zero, covariances[0]) == pytest.approx(truth, rel=1e-10)


def test_distance_agrees_with_the_matrix_root_of_scipy() -> None:
    rng = np.random.default_rng(6)
    a, b = random_covariance(rng, 30), random_covariance(rng, 30)
    mean_a, mean_b = rng.standard_normal(30), rng.standard_normal(30)
    root = np.real(scipy.linalg.sqrtm(a @ b))
    truth = ((mean_a - mean_b) ** 2).sum() + np.trace(a + b - 2 * root)
    assert gaussian_distance(mean_a, a, mean_b, b) == pytest.approx(truth, rel=1e-9)


def test_distance_of_few_vectors_agrees_with_the_nuclear_norm() -> None:
    """Fewer vectors than dimensions: tr (A B)^(1/2) is the nuclear norm of X Y^T / sqrt((n - 1) (m - 1))."""
    rng = np.random.default_rng(7)
    x, y = rng.standard_normal((20, 64)), rng.standard_normal((30, 64)) + 0.5
    x, y = np.rint(x / UNIT) * UNIT, np.rint(y / UNIT) * UNIT
    xc, yc = x - x.mean(0), y - y.mean(0)
    root = np.linalg.svd(xc @ yc.T, compute_uv=False).sum() / np.sqrt(19 * 29)
    truth = ((x.mean(0) - y.mean(0)) ** 2).sum() + (xc**2).sum() / 19 + (yc**2).sum() / 29 - 2 * root
    assert frechet_distance(moments_of(x), moments_of(y)) == pytest.approx(truth, rel=1e-10)


@pytest.mark.parametrize("num", [50, 1000])  # fewer and more than there are dimensions
def test_a_set_is_at_distance_zero_from_itself_shifted_and_scaled_sets_are_not(num: int) -> None:
    features = np.random.default_rng(8).standard_normal((num, 100))
    features = np.rint(features / UNIT) * UNIT  # multiples of the unit, so that shifting and doubling are exact
    own = moments_of(features)
    assert frechet_distance(own, own) < 1e-9
    assert frechet_distance(own, moments_of(features + 0.25)) == pytest.approx(100 * 0.25**2, rel=1e-9)
    centred = (features.mean(0) ** 2).sum() + np.trace(own.covariance())
    assert frechet_distance(own, moments_of(2 * features)) == pytest.approx(centred, rel=1e-9)


def test_distance_to_a_constant_set_is_all_that_the_other_set_has() -> None:
    features = np.random.default_rng(9).standard_normal((300, 10))
    constant = moments_of(np.full((50, 10), 0.5))
    other = moments_of(features)
    truth = ((other.mean() - 0.5) ** 2).sum() + np.trace(other.covariance())
    assert frechet_distance(constant, other) == pytest.approx(truth, rel=1e-12)
    assert frechet_distance(other, constant) == pytest.approx(truth, rel=1e-12)
    assert frechet_distance(constant, constant) == 0.0


def crosses(radii: np.ndarray) -> np.ndarray:
    """Rows +r and -r on each axis with a radius: mean 0, covariance diag(2 r^2) / (n - ddof)."""
    axes = np.diag(radii)[radii > 0]
    return np.concatenate([axes, -axes])


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("shared", [0, 5, 12])
def test_vectors_fewer_than_dimensions_have_the_closed_form(ddof: int, shared: int) -> None:
    """12 axes of 32 on one side and 14 or all on the other, some of them the same."""
    rng = np.random.default_rng(shared)
    a, b, full = np.zeros(32), np.zeros(32), rng.integers(1, 64, 32) / 8
    a[:12], b[12 - shared : 26 - shared] = rng.integers(1, 64, 12) / 8, rng.integers(1, 64, 14) / 8
    for second, rows_are_known in ((b, True), (b, False), (full, False)):
        x, y = crosses(a), crosses(second)
        spread = [np.sqrt(2 * r**2 / (2 * (r > 0).sum() - ddof)) for r in (a, second)]
        truth = float(((spread[0] - spread[1]) ** 2).sum())
        found = frechet_distance(moments_of(x), moments_of(y), ddof, x, y if rows_are_known else None)
        assert found == pytest.approx(truth, rel=1e-12)
        turned = frechet_distance(moments_of(y), moments_of(x), ddof, y if rows_are_known else None, x)
        assert turned == pytest.approx(found, rel=1e-12)


@pytest.mark.parametrize("num", [10, 38, 39, 40, 41, 42, 60])  # below, at and above the 40 dimensions
@pytest.mark.parametrize("other", [25, 400])
def test_all_routes_to_the_distance_agree(num: int, other: int) -> None:
    rng = np.random.default_rng(num)
    x = (rng.standard_normal((num, 40)) * rng.uniform(0.2, 3, 40)).astype(np.float32)
    y = (rng.standard_normal((other, 40)) @ rng.standard_normal((40, 40)) / 6).astype(np.float32)
    a, b = moments_of(x), moments_of(y)
    found = frechet_distance(a, b)
    for rows in ((x, None), (None, y), (x, y)):
        assert frechet_distance(a, b, 1, *rows) == pytest.approx(found, rel=1e-10)
        assert frechet_distance(b, a, 1, *reversed(rows)) == pytest.approx(found, rel=1e-10)
    # tr (A B)^(1/2) by another way: the eigenvalues of A^(1/2) B A^(1/2), a hundredth as exact where A is singular.
    rounded = [np.rint(rows.astype(np.float64) / UNIT) * UNIT for rows in (x, y)]
    cov_x, cov_y = (np.cov(rows, rowvar=False) for rows in rounded)
    values, vectors = np.linalg.eigh(cov_x)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    trace = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_y @ root), 0)).sum()
    truth = ((rounded[0].mean(0) - rounded[1].mean(0)) ** 2).sum() + np.trace(cov_x + cov_y) - 2 * trace
    assert found == pytest.approx(truth, rel=1e-6)


@pytest.mark.parametrize("num", [2, 30, 64])
def test_few_vectors_are_at_distance_zero_from_themselves(num: int) -> None:
    features = np.random.default_rng(num).standard_normal((num, 64)).astype(np.float32)
    own = moments_of(features)
    assert frechet_distance(own, own, 1, features, features) < 1e-9
    assert frechet_distance(own, own, 1, features) < 1e-9


def test_vectors_of_other_moments_are_not_taken() -> None:
    features = np.random.default_rng(12).standard_normal((5, 8))
    with pytest.raises(AssertionError, match="not the vectors"):
        frechet_distance(moments_of(features), moments_of(-features), 1, -features)


def test_one_image_has_no_covariance() -> None:
    one, many = moments_of(np.zeros((1, 2))), moments_of(np.eye(2))
    with pytest.raises(GantoolError, match="found 1 images, expected 2 or more"):
        frechet_distance(one, many)


def test_inception_score_of_logits_that_say_nothing_is_one() -> None:
    assert inception_score(np.zeros((50, 7), np.float32)) == pytest.approx((1.0, 0.0), abs=1e-12)


def test_inception_score_of_certain_and_even_classes_is_their_number() -> None:
    logits = np.where(np.eye(8), 1000.0, 0.0).astype(np.float32)
    logits = np.tile(logits, (40, 1))
    assert inception_score(logits, shuffle_seed=None) == pytest.approx((8.0, 0.0), abs=1e-9)
    assert inception_score(logits, splits=1) == pytest.approx((8.0, 0.0), abs=1e-9)


def test_inception_score_of_images_in_the_order_of_their_classes_needs_the_shuffling() -> None:
    logits = np.repeat(np.where(np.eye(10), 50.0, 0.0), 100, axis=0).astype(np.float32)
    assert inception_score(logits, shuffle_seed=None)[0] == pytest.approx(1.0, abs=1e-6)
    assert inception_score(logits)[0] > 9


def test_inception_score_agrees_with_a_direct_computation() -> None:
    logits = np.random.default_rng(10).standard_normal((203, 12)) * 3
    shuffled = logits[np.random.RandomState(2020).permutation(203)]
    scores = []
    for i in range(10):
        p = scipy.special.softmax(shuffled[i * 203 // 10 : (i + 1) * 203 // 10], axis=1)
        scores.append(np.exp(scipy.special.rel_entr(p, p.mean(0)).sum(1).mean()))
    assert inception_score(logits) == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-12)


@pytest.mark.parametrize("num", [2, 9, 11])
def test_inception_score_of_very_few_images_is_a_number(num: int) -> None:
    mean, deviation = inception_score(np.random.default_rng(11).standard_normal((num, 3)))
    assert 1 - 1e-12 <= mean < 3 and deviation >= 0


@pytest.mark.parametrize(
    ("environment", "mask", "expected"),
    [
        ({}, 16, 1),  # nothing says that the machine is ours
        ({}, 4, 4),
        ({"OMP_NUM_THREADS": "3"}, 16, 3),
        ({"SLURM_CPUS_PER_TASK": "6", "OMP_NUM_THREADS": "2"}, 16, 2),
        ({"SLURM_CPUS_ON_NODE": "12", "SLURM_CPUS_PER_TASK": "64"}, 16, 8),
        ({"SLURM_CPUS_PER_TASK": "32"}, 5, 5),
        ({"OMP_NUM_THREADS": "4,2"}, 16, 1),
    ],
)
def test_threads_are_those_that_were_allotted(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], mask: int, expected: int
) -> None:
    for name in ("OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(mask)), raising=False)
    assert allotted_threads() == expected


def test_every_blas_is_kept_to_the_allotted_threads_during_the_distance_only(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    eigh = scipy.linalg.eigh

    def watched(*arguments: object, **options: object) -> object:
        seen.extend(pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas")
        return eigh(*arguments, **options)

    monkeypatch.setattr(scipy.linalg, "eigh", watched)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def threads() -> list[int]:
        return [pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]

    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        before = threads()
        gaussian_distance(np.zeros(3), np.eye(3), np.zeros(3), np.eye(3))
        after = threads()
    assert set(seen) == {1} and after == before
