"""Time of the trace term of the Frechet distance, tr (A B)^(1/2), here and by scipy's matrix root.

    python tests/benchmarks/trace_term.py [--dim 2048] [--num 6000] [--rounds 3]

Both get the same two covariances in each round, one after the other, so that a busy machine is busy for both. Ratios
are of one round each; the smallest times of all rounds are those of the quietest moment.
"""

from __future__ import annotations

import argparse
import platform
import time
import warnings
from collections.abc import Callable

import numpy as np
import scipy
import scipy.linalg

from gantool.metrics.moments import allotted_threads, gaussian_distance


def covariance(seed: int, dim: int, num: int) -> np.ndarray:
    """Of `num` correlated features with a spectrum that falls over about four orders of magnitude, as Inception's."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((num, dim)) * np.exp(-np.arange(dim) * (5.0 + seed) / dim) + 0.01
    basis, _ = np.linalg.qr(rng.standard_normal((dim, dim)))
    return np.cov(rows @ basis, rowvar=False)


def ours(a: np.ndarray, b: np.ndarray) -> float:
    zero = np.zeros(len(a))
    return (np.trace(a) + np.trace(b) - gaussian_distance(zero, a, zero, b)) / 2


def scipys(a: np.ndarray, b: np.ndarray) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(np.trace(scipy.linalg.sqrtm(a @ b)).real)


def timed(function: Callable[[np.ndarray, np.ndarray], float], a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    start = time.perf_counter()
    value = function(a, b)
    return time.perf_counter() - start, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--num", type=int, default=6000, help="images behind each covariance")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print(f"python {platform.python_version()}, numpy {np.__version__}, scipy {scipy.__version__}")
    print(f"d={args.dim} n={args.num}, {allotted_threads()} BLAS threads here, what the environment says for scipy")
    a, b = covariance(0, args.dim, args.num), covariance(1, args.dim, args.num)
    ours(np.eye(3), np.eye(3))  # imports are not part of it
    times = []
    for number in range(args.rounds):
        (here, value), (there, root) = timed(ours, a, b), timed(scipys, a, b)
        times.append((here, there))
        difference = abs(value - root) / root
        print(
            f"round {number + 1}: gantool {here:.2f} s, scipy sqrtm {there:.2f} s, ratio {there / here:.1f}, "
            f"traces differ by {difference:.1e}"
        )
    best = np.min(times, axis=0)
    middle = float(np.median([there / here for here, there in times]))
    print(f"smallest: gantool {best[0]:.2f} s, scipy sqrtm {best[1]:.2f} s; median ratio {middle:.1f}")


if __name__ == "__main__":
    main()
