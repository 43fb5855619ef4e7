"""Given the same features, the numbers of the other packages: torch-fidelity, pytorch-fid, clean-fid, torchmetrics.

Where a package is known to be off, the test says by how much and why, and checks its formula in float64 as well.
"""

from __future__ import annotations

import importlib
from types import ModuleType

import numpy as np
import pytest
import scipy
import torch

from gantool.metrics.kernel import kid_subsets, kid_unbiased
from gantool.metrics.moments import Moments, frechet_distance, inception_score
from gantool.metrics.neighbours import precision_recall

HAS_DISP = tuple(int(part) for part in scipy.__version__.split(".")[:2]) < (1, 18)
NEEDS_DISP = pytest.mark.skipif(not HAS_DISP, reason="calls scipy.linalg.sqrtm(disp=False), gone from SciPy 1.18 on")


def peer(name: str) -> ModuleType:
    pytest.importorskip(name.split(".")[0])
    return importlib.import_module(name)


def features(num: int, seed: int, dim: int = 64) -> np.ndarray:
    """Pooled features as Inception's: not negative, correlated, means of about 0.4."""
    rng = np.random.default_rng([seed, dim])
    mixing = np.random.default_rng(dim).standard_normal((dim, dim)) / np.sqrt(dim)
    rows = np.maximum(rng.standard_normal((num, dim)) @ mixing * (0.5 + 0.1 * seed) + 0.3, 0.0)
    return rows.astype(np.float32)


def fid(x: np.ndarray, y: np.ndarray, with_rows: bool) -> float:
    sides = []
    for rows in (x, y):
        moments = Moments.empty(rows.shape[1])
        moments.add(rows)
        sides.append(moments)
    return frechet_distance(sides[0], sides[1], 1, *((x, y) if with_rows else (None, None)))


PAIRS = pytest.mark.parametrize(("n", "m"), [(300, 1200), (1000, 1000)])


@PAIRS
def test_fid_of_torch_fidelity(n: int, m: int) -> None:
    """Its mean is summed in float32, which moves an FID by about 5e-7 of its size."""
    package = peer("torch_fidelity.metric_fid")
    x, y = features(n, 0), features(m, 1)
    theirs = package.fid_statistics_to_metric(
        *(package.fid_features_to_statistics(torch.from_numpy(rows)) for rows in (x, y)), verbose=False
    )
    assert fid(x, y, False) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-5)


@NEEDS_DISP
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "package", ["pytorch_fid.fid_score.calculate_frechet_distance", "cleanfid.fid.frechet_distance"]
)
@PAIRS
def test_fid_of_pytorch_fid_and_clean_fid(package: str, n: int, m: int) -> None:
    """Both take scipy's sqrtm of the product of the covariances."""
    module, _, function = package.rpartition(".")
    x, y = features(n, 0), features(m, 1)
    statistics = [(rows.mean(axis=0, dtype=np.float64), np.cov(rows, rowvar=False)) for rows in (x, y)]
    theirs = getattr(peer(module), function)(*statistics[0], *statistics[1])
    assert fid(x, y, False) == pytest.approx(theirs, rel=1e-5)


@PAIRS
def test_fid_of_torchmetrics(n: int, m: int) -> None:
    """Its formula in float64; the metric itself returns the result as float32."""
    package = peer("torchmetrics.image.fid")
    x, y = features(n, 0), features(m, 1)
    pairs = [torch.from_numpy(rows).double() for rows in (x, y)]
    theirs = package._compute_fid(pairs[0].mean(0), pairs[0].T.cov(), pairs[1].mean(0), pairs[1].T.cov())
    assert fid(x, y, False) == pytest.approx(float(theirs), rel=1e-5)


@NEEDS_DISP
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_fid_of_fewer_images_than_features() -> None:
    """The others take roots of the rounding errors of a singular product. That is 2e-7 of the distance with these 64
    features; with 512 images and 2048 features of Inception it has been seen to be 0.004 to 0.008."""
    x, y = features(40, 0), features(50, 1)
    exact = fid(x, y, True)
    assert fid(x, y, False) == pytest.approx(exact, rel=1e-9)
    statistics = [(rows.mean(axis=0, dtype=np.float64), np.cov(rows, rowvar=False)) for rows in (x, y)]
    package = peer("torch_fidelity.metric_fid")
    theirs = package.fid_statistics_to_metric(
        *({"mu": mean, "sigma": covariance} for mean, covariance in statistics), verbose=False
    )
    assert theirs["frechet_inception_distance"] == pytest.approx(exact, rel=1e-5)
    pytorch_fid = peer("pytorch_fid.fid_score").calculate_frechet_distance(*statistics[0], *statistics[1])
    assert pytorch_fid == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("num", [300, 1203])
def test_inception_score_of_torch_fidelity(num: int) -> None:
    package = peer("torch_fidelity.metric_isc")
    logits = np.random.default_rng(num).standard_normal((num, 100)).astype(np.float32) * 2
    theirs = package.isc_features_to_metric(torch.from_numpy(logits), splits=10, shuffle=True, rng_seed=2020)
    found = inception_score(logits)
    assert found[0] == pytest.approx(theirs["inception_score_mean"], rel=1e-12)
    assert found[1] == pytest.approx(theirs["inception_score_std"], rel=1e-9)


def test_inception_score_of_torchmetrics() -> None:
    """It shuffles with torch's global generator and divides the deviation by splits - 1, in float32: equal in one
    split, or in splits of the order that the generator gives, with that divisor."""
    package = peer("torchmetrics.image.inception")
    num, splits = 1000, 10
    logits = np.random.default_rng(0).standard_normal((num, 100)).astype(np.float32) * 2
    for parts in (1, splits):
        metric = package.InceptionScore(feature=torch.nn.Flatten(), splits=parts)
        metric.update(torch.from_numpy(logits))
        torch.manual_seed(3)
        mean, deviation = metric.compute()
        torch.manual_seed(3)
        order = torch.randperm(num).numpy()
        found = inception_score(logits[order], parts, shuffle_seed=None)
        assert found[0] == pytest.approx(float(mean), rel=1e-6)
        if parts > 1:
            assert found[1] * np.sqrt(parts / (parts - 1)) == pytest.approx(float(deviation), rel=1e-4)


def test_kid_of_torch_fidelity() -> None:
    """The same subsets. Given float64 features, it computes the same numbers; as it runs, its features and kernels are
    float32, whose rounding alone moves this KID of 0.006 by 1e-7 (2e-5 of its size; smaller KIDs by as much)."""
    package = peer("torch_fidelity.metric_kid")
    x, y = (torch.from_numpy(features(num, seed)) for num, seed in ((900, 0), (700, 1)))
    options = {"kid_subsets": 20, "kid_subset_size": 300, "rng_seed": 2020, "verbose": False}
    found = kid_subsets(x, y, 20, 300)
    exact = package.kid_features_to_metric(x.double(), y.double(), **options)
    assert found.mean == pytest.approx(exact["kernel_inception_distance_mean"], rel=1e-10)
    assert found.deviation == pytest.approx(exact["kernel_inception_distance_std"], rel=1e-10)
    as_it_runs = package.kid_features_to_metric(x, y, **options)
    assert found.mean == pytest.approx(as_it_runs["kernel_inception_distance_mean"], rel=0, abs=1e-6)


def test_kid_of_torchmetrics_and_clean_fid() -> None:
    """Both draw without a seed; a subset of all images leaves nothing to draw. torchmetrics computes in float32."""
    x, y = (torch.from_numpy(features(400, seed)) for seed in (0, 1))
    found = kid_subsets(x, y, 1, 400)
    mmd = peer("torchmetrics.image.kid").poly_mmd
    assert found.mean == pytest.approx(float(mmd(y.double(), x.double())), rel=1e-10)
    assert found.mean == pytest.approx(float(mmd(y, x)), rel=1e-4)
    theirs = peer("cleanfid.fid").kernel_distance(x.double().numpy(), y.double().numpy(), 1, 400)
    assert found.mean == pytest.approx(theirs, rel=1e-10)
    assert kid_unbiased(x, y).value == pytest.approx(found.mean, rel=1e-10)


@pytest.mark.parametrize("save_memory", [False, True])
@pytest.mark.parametrize("dim", [4, 64])
def test_precision_and_recall_of_torch_fidelity(dim: int, save_memory: bool) -> None:
    """Its input 1 is the scored one (0.4.0-beta had precision and recall exchanged). Its distances are float32."""
    package = peer("torch_fidelity.metric_prc")
    x, y = (torch.from_numpy(features(num, seed, dim)) for num, seed in ((500, 1), (600, 0)))
    options = {"prc_neighborhood": 3, "prc_batch_size": 200, "save_cpu_ram": save_memory, "verbose": False}
    theirs = package.prc_features_to_metric(x.double(), y.double(), **options)
    found = precision_recall(x, y)
    assert 0.02 < min(found) < max(found) < 0.999
    assert found == pytest.approx((theirs["precision"], theirs["recall"]), abs=1e-6)
    as_it_runs = package.prc_features_to_metric(x, y, **options)
    assert found == pytest.approx((as_it_runs["precision"], as_it_runs["recall"]), abs=1.01 / 500)
