"""The interval and the bias of an FID: closed forms, every left-out distance from scratch, and many draws."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from gantool.errors import GantoolError
from gantool.metrics.intervals import SEED, debiased_fid, fid_interval, jackknife
from gantool.metrics.moments import UNIT, Moments, gaussian_distance
from gantool.progress import Silent


def moments_of(features: np.ndarray) -> Moments:
    moments = Moments.empty(features.shape[1])
    moments.add(features)
    return moments


def plain_fid(x: np.ndarray, y: np.ndarray, ddof: int = 1) -> float:
    """From numpy's covariances and scipy's matrix root."""
    cov_x, cov_y = (np.cov(rows, rowvar=False, ddof=ddof) for rows in (x, y))
    root = np.real(scipy.linalg.sqrtm(cov_x @ cov_y))
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(cov_x + cov_y - 2 * root))


def rounded(features: np.ndarray) -> np.ndarray:
    return np.rint(features / UNIT) * UNIT


def test_the_jackknife_of_a_mean_is_the_interval_of_student() -> None:
    values = np.random.default_rng(0).standard_normal(20) * 3 + 1
    left_out = [float(np.delete(values, i).mean()) for i in range(20)]
    found = jackknife(float(values.mean()), left_out)
    error = values.std(ddof=1) / np.sqrt(20)
    low, high = scipy.stats.t.interval(0.95, 19, values.mean(), error)
    assert found == pytest.approx((error, low, high), rel=1e-12)
    assert jackknife(0.0, left_out, 0.5).high == pytest.approx(error * scipy.stats.t.ppf(0.75, 19), rel=1e-10)


@pytest.mark.parametrize("ddof", [0, 1])
def test_the_interval_is_the_jackknife_over_random_groups(ddof: int) -> None:
    rng = np.random.default_rng(1)
    x, y = rounded(rng.standard_normal((103, 5)) * 1.3), rounded(rng.standard_normal((500, 5)) + 0.2)
    value = plain_fid(x, y, ddof)
    order = np.random.default_rng(SEED).permutation(103)
    left_out = [plain_fid(np.delete(x, order[group::10], axis=0), y, ddof) for group in range(10)]
    found = fid_interval(x.astype(np.float32), moments_of(y), ddof, groups=10)
    assert found == pytest.approx(jackknife(value, left_out), rel=1e-7)
    halves = [plain_fid(x[order[i::2]], y, ddof) for i in (0, 1)]
    steps: list[tuple[str, int, int | None]] = []

    class Told(Silent):
        def step(self, what: str, done: int, total: int | None, *rest: object) -> None:
            steps.append((what, done, total))

    debiased = debiased_fid(x.astype(np.float32), moments_of(y), ddof, progress=Told())
    assert steps == [("FID without bias", done, 2) for done in range(3)]
    assert debiased == pytest.approx(2 * value - sum(halves) / 2, rel=1e-8)
    # A value that is known is not computed again, but taken.
    assert debiased_fid(x, moments_of(y), ddof, value=value + 1) == pytest.approx(debiased + 2, rel=1e-8)
    shifted = fid_interval(x, moments_of(y), ddof, value=value + 1, groups=10)
    assert shifted == pytest.approx((found[0], found[1] + 1, found[2] + 1), rel=1e-8)


@pytest.mark.parametrize("reference_num", [30, 400])
def test_fewer_images_than_dimensions(reference_num: int) -> None:
    """The exact route with the vectors at hand, for left-out sets and halves too, agrees with that of covariances."""
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((50, 64)), rng.standard_normal((reference_num, 64)) * 1.5
    x, y = x.astype(np.float32), y.astype(np.float32)
    wide = [np.concatenate([rows, np.zeros_like(rows[:, :1])], axis=1) for rows in (x, y)]
    for function in (fid_interval, debiased_fid):
        found = function(x, moments_of(y), 1, y)
        assert found == pytest.approx(function(x, moments_of(y)), rel=1e-7)
        assert found == pytest.approx(function(wide[0], moments_of(wide[1])), rel=1e-7)  # a feature that is always 0


def draw(seed: int, num: int) -> np.ndarray:
    return np.random.default_rng([seed, 77]).standard_normal((num, 6)) * np.linspace(0.7, 1.4, 6)


REFERENCE = np.random.default_rng(3).standard_normal((5000, 6)) @ np.diag(np.linspace(1.3, 0.8, 6)) + 0.1


def test_halves_take_most_of_the_bias_away() -> None:
    reference = moments_of(REFERENCE)
    truth = gaussian_distance(
        np.zeros(6), np.diag(np.linspace(0.7, 1.4, 6) ** 2), reference.mean(), reference.covariance()
    )
    plain, debiased = [], []
    for seed in range(60):
        x = draw(seed, 120)
        plain.append(plain_fid(x, REFERENCE))
        debiased.append(debiased_fid(x, reference, value=plain[-1]))
    bias = np.mean(plain) - truth
    assert bias > 5 * np.std(plain) / np.sqrt(60)  # there is one to speak of
    assert abs(np.mean(debiased) - truth) < bias / 5


def test_the_interval_covers_the_mean_of_many_draws_and_its_error_is_their_spread() -> None:
    reference = moments_of(REFERENCE)
    expected = [plain_fid(draw(seed, 150), REFERENCE) for seed in range(1000, 1400)]
    found = []
    for seed in range(120):
        x = draw(seed, 150)
        found.append(fid_interval(x, reference, value=plain_fid(x, REFERENCE)))
    covered = np.mean([low <= np.mean(expected) <= high for _, low, high in found])
    assert 0.90 <= covered <= 0.99
    errors = np.array([error for error, _, _ in found])
    assert np.sqrt((errors**2).mean()) / np.std(expected) == pytest.approx(1.0, abs=0.2)


@pytest.mark.parametrize("order", ["classes in turn", "one class after the other"])
def test_the_order_of_the_classes_changes_nothing_but_chance(order: str) -> None:
    x = draw(0, 400)
    x[:, 0] += np.tile([-3, -1, 1, 3], 100) if order == "classes in turn" else np.repeat([-3, -1, 1, 3], 100)
    shuffled = np.random.default_rng(4).permutation(x)
    errors = [fid_interval(rows, moments_of(REFERENCE)).standard_error for rows in (x, shuffled)]
    assert 0.6 < errors[0] / errors[1] < 1.4
    debiased = [debiased_fid(rows, moments_of(REFERENCE)) for rows in (x, shuffled)]
    assert debiased[0] == pytest.approx(debiased[1], abs=0.25)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(GantoolError, match="found 19 images, expected 20 or more"):
        fid_interval(draw(0, 19), moments_of(REFERENCE))
    with pytest.raises(GantoolError, match="found 3 images, expected 4 or more for two halves"):
        debiased_fid(draw(0, 3), moments_of(REFERENCE))
    assert fid_interval(draw(0, 20), moments_of(REFERENCE)).standard_error > 0
