"""KID: direct sums in numpy, closed forms, and a standard error that is the spread of many draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gantool.errors import GantoolError
from gantool.metrics.kernel import kid_subsets, kid_unbiased


def direct_kid(x: np.ndarray, y: np.ndarray) -> float:
    """The definition, pair by pair sums of float64 kernel matrices."""
    kernels = [
        (a.astype(np.float64) @ b.T.astype(np.float64) / x.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y))
    ]
    within = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in kernels[:2]]
    return float(within[0] + within[1] - 2 * kernels[2].mean())


def features(num: int, dim: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy((np.abs(rng.standard_normal((num, dim))) * scale).astype(np.float32))


@pytest.mark.parametrize("block", [1, 7, 64, 4096])
@pytest.mark.parametrize(("n", "m"), [(40, 61), (64, 64), (3, 30)])
def test_all_pairs_give_the_definition_at_any_block_size(n: int, m: int, block: int) -> None:
    x, y = features(n, 16, 0), features(m, 16, 1, 1.2)
    assert kid_unbiased(x, y, block).value == pytest.approx(direct_kid(x.numpy(), y.numpy()), rel=1e-11)
    turned = kid_unbiased(y, x, block)
    assert turned == pytest.approx(kid_unbiased(x, y), rel=1e-11)


@pytest.mark.parametrize(("n", "m"), [(60, 75), (700, 30)])  # all kernels at once; each subset by itself
def test_subsets_are_drawn_with_the_seed_from_the_scored_images_first(n: int, m: int) -> None:
    x, y = features(n, 12, 2), features(m, 12, 3, 1.1)
    random = np.random.RandomState(5)
    values = []
    for _ in range(9):
        first = x.numpy()[random.choice(n, 25, replace=False)]
        values.append(direct_kid(first, y.numpy()[random.choice(m, 25, replace=False)]))
    found = kid_subsets(x, y, subsets=9, size=25, seed=5)
    assert (found.mean, found.deviation) == pytest.approx((np.mean(values), np.std(values)), rel=1e-10)
    assert found.size == 25
    assert kid_subsets(x, y, subsets=9, size=25, seed=6).mean != found.mean


def test_subsets_are_no_larger_than_the_smaller_side() -> None:
    x, y = features(50, 12, 4), features(31, 12, 5)
    found = kid_subsets(x, y, subsets=3)
    assert found.size == 31 and found.deviation > 0
    whole = kid_subsets(x[:31], y, subsets=3)  # every subset is everything
    assert whole.mean == pytest.approx(direct_kid(x[:31].numpy(), y.numpy()), rel=1e-11)
    assert whole.deviation == pytest.approx(0, abs=1e-12)


def test_constant_features_have_the_closed_form() -> None:
    """x = a (1, ..., 1), y = b (1, ..., 1): (a^2 + 1)^3 + (b^2 + 1)^3 - 2 (a b + 1)^3, and nothing to be unsure of."""
    a, b = 0.5, 1.5
    x, y = torch.full((10, 8), a), torch.full((13, 8), b)
    truth = (a * a + 1) ** 3 + (b * b + 1) ** 3 - 2 * (a * b + 1) ** 3
    assert kid_unbiased(x, y) == pytest.approx((truth, 0.0), rel=1e-13, abs=1e-13)
    assert kid_subsets(x, y, 4, 6)[:2] == pytest.approx((truth, 0.0), rel=1e-13, abs=1e-13)
    assert kid_unbiased(x, x)[0] == pytest.approx(0, abs=1e-12)


def draws(scale: float, shift: float) -> tuple[np.ndarray, np.ndarray]:
    found = []
    for seed in range(400):
        rng = np.random.default_rng([seed, 9])
        x, y = rng.standard_normal((50, 6)), rng.standard_normal((80, 6)) * scale + shift
        found.append(kid_unbiased(torch.from_numpy(x), torch.from_numpy(y)))
    values, errors = np.array(found).T
    return values, errors


def test_the_standard_error_is_the_spread_of_many_draws() -> None:
    values, errors = draws(1.3, 0.4)
    assert np.sqrt((errors**2).mean()) / values.std() == pytest.approx(1.0, abs=0.1)


def test_the_standard_error_is_not_too_small_for_one_distribution_and_the_estimate_is_unbiased() -> None:
    values, errors = draws(1.0, 0.0)
    assert abs(values.mean()) < 3 * values.std() / 20
    assert 0.95 < np.sqrt((errors**2).mean()) / values.std() < 1.6


def test_float64_keeps_what_float32_kernels_lose() -> None:
    """Two sets that differ by little in features of a large mean: rounding of float32 kernels would be of that size."""
    x = features(80, 64, 7) + 20
    y = features(80, 64, 8) + 20
    assert kid_unbiased(x, y).value == pytest.approx(direct_kid(x.numpy(), y.numpy()), rel=1e-6)


def test_too_few_images_and_broken_features_are_refused() -> None:
    x = features(10, 4, 9)
    with pytest.raises(GantoolError, match="found 1 images, expected 2 or more"):
        kid_subsets(x, x[:1])
    with pytest.raises(GantoolError, match="found 2 images, expected 3 or more"):
        kid_unbiased(x[:2], x)
    broken = x.clone()
    broken[3, 1] = float("nan")
    for metric in (kid_unbiased, kid_subsets):
        with pytest.raises(GantoolError, match="not a finite number"):
            metric(broken, x)
