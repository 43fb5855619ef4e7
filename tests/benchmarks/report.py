"""Time, memory and size of the report of a large sweep, made for it: noisy journals, grids, scores by class.

python tests/benchmarks/report.py --runs 1000
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from made_sweep import made_sweep

from gantool.manifest import load_trials
from gantool.progress import Silent
from gantool.report.page import write_page
from gantool.sweep import gather


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=3000, help="of each journal")
    parser.add_argument("--grids", type=int, default=10, help="of each run, 272x272")
    given = parser.parse_args()
    axes = {
        "a": [f"a{i}" for i in range(max(1, given.runs // 100))],
        "b": [f"b{i}" for i in range(10)],
        "c": ["x", "y"],
    }
    with tempfile.TemporaryDirectory() as folder:
        classes = [f"class {i}" for i in range(10)]
        plan = made_sweep(
            Path(folder), axes, 5, num_rows=given.rows, num_grids=given.grids, size=272, classes=classes,
            states={7: "failed", 40: "stopped"},
        )  # fmt: skip
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        began, used = time.perf_counter(), time.process_time()
        plan = load_trials(plan.folder)
        rows, _ = gather(plan, Silent())
        page = write_page(plan, rows, Silent())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        took, cpu = time.perf_counter() - began, time.process_time() - used
        print(
            f"{len(plan.trials)} runs: {took:.1f} s ({cpu:.1f} s of CPU), peak {peak:.0f} MB ({before:.0f} MB before)"
        )
        print(f"{page.stat().st_size / 1e6:.1f} MB of page")


if __name__ == "__main__":
    main()
