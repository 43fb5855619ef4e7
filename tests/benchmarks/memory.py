"""Peak memory of scores of many images with 2,048 features, or of a training, over what the imports take.

    python tests/benchmarks/memory.py [--num 50000] [--metrics fid,is,kid]
    python tests/benchmarks/memory.py --train CONFIG [--set KEY=VALUE ...]

Of a training: the peak of its process, less that of one that only imports the modules it had in the end. Of scores: a
cheap network stands for Inception, with as many features and logits, so that the numbers of an evaluation are there
without its time. The real images are another set of the same size; nothing is cached before.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from gantool import evaluate
from gantool.config.evaluation import EvalConfig
from gantool.data.image_sets import ImageSet
from gantool.metrics.collection import Work
from gantool.metrics.features import Extractor
from gantool.metrics.reference import Reference
from gantool.progress import Silent
from gantool.runtime import return_large_blocks

SIDE = 8


def noise(num: int, seed: int) -> ImageSet:
    """Images that are a function of their number alone."""

    def part(start: int, stop: int) -> torch.Tensor:
        rng = np.random.Generator(np.random.Philox(key=seed, counter=start))
        return torch.from_numpy(rng.integers(0, 256 - seed, (stop - start, SIDE, SIDE, 3), dtype=np.uint8))

    return ImageSet(f"noise {seed}", f"{seed}" * 64, num, (SIDE, SIDE, 3), part)


def extractor() -> Extractor:
    rng = torch.Generator().manual_seed(0)
    first = torch.randn(SIDE * SIDE * 3, 2048, generator=rng) / 14
    last = torch.randn(2048, 1008, generator=rng) / 45

    def network(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pooled = torch.relu(images.reshape(len(images), -1).float() / 128 - 1) @ first
        return pooled, pooled @ last

    cpu = torch.device("cpu")
    return Extractor("cheap", "0" * 64, "cheap|2048", "cheap|logits", 2048, 1008, 64, cpu, network)


class Told(Silent):
    """Says the memory in use whenever an activity ends."""

    def step(self, what: str, done: int, total: int | None, detail: str = "", left: float | None = None) -> None:
        if done == total:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            print(f"  {what}: {pages * resource.getpagesize() / 2**20:.0f} MB in use, peak {peak_mb():.0f} MB")


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


TRAINING = """
import pathlib, sys
from gantool.cli import main
try:
    main()
finally:
    pathlib.Path({modules!r}).write_text("\\n".join(sys.modules))
"""
IMPORTS = """
import contextlib, importlib, pathlib
for name in pathlib.Path({modules!r}).read_text().split("\\n"):
    with contextlib.suppress(Exception):
        importlib.import_module(name)
"""


def peak_of(code: str, *words: str) -> float:
    """The most memory that a Python with this code had, in MB."""
    process = subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{words}: failed")
    return used.ru_maxrss / 1024


def of_training(config: str, sets: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = {"modules": f"{folder}/modules"}
        changes = [word for one in (f"runtime.runs_dir={folder}/runs", *sets) for word in ("--set", one)]
        peak = peak_of(TRAINING.format(**place), "--quiet", "train", config, *changes)
        imports = peak_of(IMPORTS.format(**place))
    print(f"imports {imports:.0f} MB, peak {peak:.0f} MB, over the imports {peak - imports:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", metavar="CONFIG")
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--num", type=int, default=50_000)
    parser.add_argument("--metrics", default="fid,is")
    args = parser.parse_args()
    if args.train:
        of_training(args.train, args.sets)
        return
    return_large_blocks()
    network = extractor()
    network(noise(64, 0).part(0, 64))
    before, start = peak_mb(), time.perf_counter()
    settings = EvalConfig(metrics=tuple(args.metrics.split(",")), num=args.num)
    evaluate._open = lambda *_: network  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        reference = Reference(noise(args.num, 1), None, Path(folder))
        found = evaluate.evaluate_images(noise(args.num, 2), reference, settings, torch.device("cpu"), Work(Told()))
    assert found is not None
    words = ", ".join(f"{name} {value:.4g}" for name, value in found.score.values.items())
    print(f"{args.num} + {args.num} images, {args.metrics}: {words}")
    print(f"imports {before:.0f} MB, peak {peak_mb():.0f} MB, over the imports {peak_mb() - before:.0f} MB, ", end="")
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
