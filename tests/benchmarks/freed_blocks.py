"""Time of a training step on the CPU with freed memory kept, as the trainer does, and given back, as glibc does.

    python tests/benchmarks/freed_blocks.py [--rounds 15] [--steps 3] [--threads 2] [CONFIG] [--set KEY=VALUE ...]

Both take turns in one process, so that what was kept serves both: the ratio is a lower bound. A fault is a page of
memory that the kernel clears. Memory is the peak of all so far.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from pathlib import Path

import torch
from trainers import COMMON, CONFIGS, as_glibc_does, trainer

from gantool.config.loader import load_run_config
from gantool.data.pack import ensure_packed
from gantool.progress import Silent
from gantool.runtime import keep_freed_blocks


def main() -> None:
    parser = argparse.ArgumentParser(description="A training step with freed memory kept and given back.")
    parser.add_argument("config", nargs="?", type=Path, default=CONFIGS / "cifar10_dcgan.yaml")
    parser.add_argument("--set", action="append", default=[], dest="changes")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sets = [*COMMON, f"runtime.threads={given.threads}", f"runtime.runs_dir={folder}", f"runtime.data_dir={folder}"]
        config = load_run_config(given.config, [*sets, *given.changes])
        step = trainer(config, ensure_packed(config.data, Path(folder), Silent()), Path(folder) / "run")
        torch.set_num_threads(given.threads)
        seconds: dict[str, list[float]] = {"kept": [], "given back": []}
        faults, peak = dict.fromkeys(seconds, 0), dict.fromkeys(seconds, 0.0)
        for _ in range(given.rounds):
            for name, choose in (("given back", as_glibc_does), ("kept", keep_freed_blocks)):
                choose()
                step()
                before, began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
                for _ in range(given.steps):
                    step()
                seconds[name].append((time.perf_counter() - began) / given.steps)
                faults[name] += resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
                peak[name] = peak[name] or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    for name, values in seconds.items():
        number, speed = faults[name] / given.rounds / given.steps, 1000 * statistics.median(values)
        print(f"{name:10} {speed:8.1f} ms and {number:8.0f} faults a step, {peak[name]:6.0f} MB")
    ratios = [back / kept for kept, back in zip(seconds["kept"], seconds["given back"], strict=True)]
    print(f"times as fast, kept: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
