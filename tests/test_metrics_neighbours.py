"""Neighbours among features: hand-made cases, the formulas in numpy, exact distances at any block size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from gantool.errors import GantoolError
from gantool.metrics.neighbours import authenticity, density_coverage, nearest, precision_recall


def distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sqrt(((x[:, None].astype(np.float64) - y[None].astype(np.float64)) ** 2).sum(-1))


def radii(x: np.ndarray, k: int) -> np.ndarray:
    own = distances(x, x)
    return np.array([np.sort(np.delete(row, i))[k - 1] for i, row in enumerate(own)])


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None]


def pair(seed: int, n: int = 130, m: int = 170, dim: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((n, dim)) * 1.2, rng.standard_normal((m, dim)) + 0.3
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y.astype(np.float32))


@pytest.mark.parametrize("block", [13, 64, 4096])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_all_metrics_are_their_formulas_at_any_block_size(k: int, block: int) -> None:
    x, y = pair(k)
    across = distances(x.numpy(), y.numpy())
    of_x, of_y = radii(x.numpy(), k), radii(y.numpy(), k)
    truth = (across <= of_y).any(1).mean(), (across <= of_x[:, None]).any(0).mean()
    assert precision_recall(x, y, k, block) == pytest.approx(truth, abs=1e-12)
    truth = (across < of_y).sum() / (k * len(x)), (across.min(0) < of_y).mean()
    assert density_coverage(x, y, k, block) == pytest.approx(truth, abs=1e-12)
    truth = (radii(y.numpy(), 1)[across.argmin(1)] < across.min(1)).mean()
    assert 0 < truth < 1
    assert authenticity(x, y, block) == pytest.approx(truth, abs=1e-12)
    indices, found = nearest(x, y, k, block)
    assert indices.dtype == torch.int64 and found.dtype == torch.float32
    np.testing.assert_array_equal(indices.numpy(), across.argsort(1, kind="stable")[:, :k])
    np.testing.assert_allclose(found.numpy(), np.sort(across, 1)[:, :k], rtol=2e-7)


def test_the_border_belongs_to_the_ball_of_precision_and_not_to_that_of_density() -> None:
    reference = column(0, 1, 10)  # nearest neighbours at 1, 1, 9
    scored = column(-1, 2, 19.5)
    # -1 and 2 are on the borders of the balls of 0 and 1; 2 is within that of 10, 19.5 outside of it.
    assert precision_recall(scored, reference, 1)[0] == pytest.approx(2 / 3)
    density, coverage = density_coverage(scored, reference, 1)
    assert density == pytest.approx(1 / 3) and coverage == pytest.approx(1 / 3)


def test_recall_is_precision_with_the_sides_exchanged() -> None:
    x, y = pair(20)
    assert precision_recall(x, y) == tuple(reversed(precision_recall(y, x)))


@pytest.mark.parametrize("block", [1, 2, 3, 4096])
def test_copies_of_an_image_are_neighbours_at_distance_zero(block: int) -> None:
    """Three equal reference images have balls of radius 0 (k = 2), which hold their copies, border included."""
    reference = column(5, 5, 5, 7, 100)  # radii 0, 0, 0, 2, 95
    scored = column(5, 6, 300, 300)
    assert precision_recall(scored, reference, 2, block)[0] == pytest.approx(2 / 4)
    density, coverage = density_coverage(scored, reference, 2, block)
    # Strictly within: 6 in the ball of 7, 6 in that of 100 (94 < 95); 5 lies on the borders of all five.
    assert density == pytest.approx(2 / (2 * 4))
    assert coverage == pytest.approx(2 / 5)


def test_equal_images_are_at_distance_zero_far_from_the_origin() -> None:
    """2048 features of mean 30: the float32 expansion of |x - y|^2 would leave a rest."""
    rng = np.random.default_rng(0)
    train = torch.from_numpy((rng.standard_normal((60, 2048)) + 30).astype(np.float32))
    indices, found = nearest(train, train)
    assert found.abs().max() == 0 and torch.equal(indices[:, 0], torch.arange(60))
    _, near = nearest(train, train, 2)
    rows = train.numpy().astype(np.float64)
    np.testing.assert_allclose(near[:, 1].numpy(), radii(rows, 1), rtol=1e-6)
    assert authenticity(train, train) == 0.0
    assert precision_recall(train, train, 1) == (1.0, 1.0)


def test_block_size_and_scale_do_not_change_one_bit() -> None:
    x, y = pair(21, 200, 190, 300)
    expected = nearest(x, y, 4)
    for block in (19, 77):
        found = nearest(x, y, 4, block)
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    for scale in (2.0**-30, 2.0**20):
        found = nearest(x * scale, y * scale, 4)
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1] * scale)


def test_the_first_of_equally_near_images_is_named_first() -> None:
    indices, found = nearest(column(0, 0), column(3, 1, -1, 1, 2), 4, block=2)
    assert indices.tolist() == [[1, 2, 3, 4]] * 2 and found.tolist() == [[1, 1, 1, 2]] * 2


def test_near_copies_of_training_images_are_not_authentic() -> None:
    train = column(0, 1, 3, 7)  # at 1, 1, 2, 4 from each other's nearest
    assert authenticity(column(0.25, 3.5, 9), train) == 0.0
    assert authenticity(column(-1.5, 30), train) == 1.0
    assert authenticity(column(-1, 1, -1.5, 12), train) == 0.5  # at just the distance of 1 from 0: a copy


def test_sets_apart_and_sets_alike() -> None:
    x, _ = pair(22)
    assert precision_recall(x, x + 1000) == (0.0, 0.0)
    assert density_coverage(x, x + 1000) == (0.0, 0.0)
    assert precision_recall(x, x) == (1.0, 1.0)
    density, coverage = density_coverage(x, x)
    # Each ball holds its own centre and the neighbours before the k-th.
    assert density == 1.0 and coverage == 1.0


def test_features_that_are_all_zero() -> None:
    zero = torch.zeros(9, 3)
    assert precision_recall(zero, zero) == (1.0, 1.0)
    assert density_coverage(zero, zero) == (0.0, 0.0)
    assert authenticity(zero, zero) == 0.0


METRICS: list[Callable[[torch.Tensor, torch.Tensor], object]] = [
    precision_recall,
    density_coverage,
    authenticity,
    nearest,
]


@pytest.mark.parametrize("metric", METRICS)
def test_broken_features_and_empty_sets_are_refused(metric: Callable[[torch.Tensor, torch.Tensor], object]) -> None:
    x, y = pair(23)
    with pytest.raises(GantoolError, match="without images"):
        metric(x, y[:0])
    for bad in (float("nan"), float("inf")):
        y[5, 2] = bad
        with pytest.raises(GantoolError, match="NaN or infinite"):
            metric(x, y)


def test_more_neighbours_than_images_are_refused() -> None:
    x, y = pair(24)
    with pytest.raises(GantoolError, match="found 3 images, expected 4 or more on each side"):
        precision_recall(x[:3], y, 3)
    with pytest.raises(GantoolError, match="found 5 images, expected 6 or more"):
        density_coverage(x, y[:5])
    with pytest.raises(GantoolError, match="found 1 images, expected 2 or more"):
        authenticity(x, y[:1])
    with pytest.raises(GantoolError, match="found 4 images to find the 5 nearest among"):
        nearest(x, y[:4], 5)
    assert len(density_coverage(x, y[:6])) == 2
