"""What training costs as the work grows: batch, processes, size of the dataset, runs packed on one device.

    python tests/benchmarks/scaling.py [CONFIG] [--rounds 3] [--steps 5] [--threads 2]

Each line is a `gantool bench` of its own, one after the other; compare on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CONFIGS = Path(__file__).parents[2] / "configs"


def main() -> None:
    parser = argparse.ArgumentParser(description="What training costs as the work grows.")
    parser.add_argument("config", nargs="?", type=Path, default=CONFIGS / "bench.yaml")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    folder = tempfile.TemporaryDirectory()

    def bench(*words: str, threads: int = given.threads) -> dict[str, Any]:
        command = [sys.executable, "-m", "gantool", "--quiet", "bench", str(given.config), "--format", "json", *words]
        command += ["--rounds", str(given.rounds), "--steps", str(given.steps)]
        command += ["--set", f"runtime.threads={threads}", "--set", f"runtime.data_dir={folder.name}"]
        found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        return found

    def line(name: str, found: dict[str, Any]) -> None:
        speed, memory = found["images_per_second"]["median"], found["peak_megabytes"]
        print(f"{name:28} {speed:8.0f} images/s {memory:8.0f} MB over the imports", flush=True)

    for batch in (16, 64, 256, 512):
        line(f"batch {batch}", bench("--set", f"batch={batch}"))
    for ranks in (1, 2):
        threads = max(1, given.threads // ranks)
        line(f"{ranks} processes, {threads} threads", bench("--ranks", str(ranks), threads=threads))
    for number in (1_000, 10_000, 50_000, 200_000):
        name = f"noise{number}"
        _write(Path(folder.name) / name, number)
        source = f"runtime.source={folder.name}/{name}"
        command = [sys.executable, "-m", "gantool", "--quiet", "prepare", "--dataset", name, "--size", "32"]
        command += ["--source", f"{folder.name}/{name}", "--set", f"runtime.data_dir={folder.name}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        found = bench("--set", f"data={{name: {name}, size: 32}}", "--set", source)
        line(f"{number} images ({number * 3072 / 2**20:.0f} MB)", found)
    for packed in (2, 3):
        found = bench("--packed", str(packed), threads=1)
        speed, ratio = found["images_per_second"], found["ratio"]
        print(f"{packed} runs packed, 1 thread each {speed:6.0f} images/s, {ratio:.2f} of one alone", flush=True)
    folder.cleanup()


def _write(path: Path, number: int) -> None:
    """A folder of `number` PNG files; more than a thousand are names of the same ones."""
    rng = np.random.default_rng(0)
    path.mkdir()
    for part in range(number):
        file = path / f"{part:06}.png"
        if part < 1_000:
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file, compress_level=0)
        else:
            file.hardlink_to(path / f"{part % 1_000:06}.png")


if __name__ == "__main__":
    main()
