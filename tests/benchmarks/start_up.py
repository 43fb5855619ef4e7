"""Seconds from the command to `--help`, to the end of `import torch`, and to the first step of a training.

    python tests/benchmarks/start_up.py [--rounds 5] [--device cpu]

Real processes with an idle machine's disk cache; the data are packed before.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONFIG = """\
data: {name: shapes, size: 8}
generator: {width: 4, max_width: 8}
discriminator: {width: 4, max_width: 8}
batch: 8
steps: 100000
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds from the command to the first step.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    program = str(Path(sys.executable).with_name("gantool"))
    found: dict[str, list[float]] = {"--help": [], "import torch": [], "first step": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "run.yaml").write_text(CONFIG)
        subprocess.run([program, "--quiet", "prepare", "run.yaml"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        for number in range(given.rounds + 1):
            for what in found:
                began = time.perf_counter()
                if what == "--help":
                    subprocess.run([program, "--help"], check=True, stdout=subprocess.DEVNULL)
                elif what == "import torch":
                    subprocess.run([sys.executable, "-c", "import torch"], check=True)
                else:
                    command = [program, "--quiet", "train", "run.yaml", "--device", given.device]
                    command += ["--set", f"seed={number}", "--set", "runtime.log_every=1"]
                    process = subprocess.Popen(command, cwd=folder)
                    while not _rows(folder, number):
                        assert process.poll() is None, "the training failed"
                        time.sleep(0.005)
                if number:
                    found[what].append(time.perf_counter() - began)
                if what == "first step":
                    process.kill()
                    process.wait()
    for what, seconds in found.items():
        print(f"{what:12} {statistics.median(seconds):5.2f} s ({min(seconds):.2f} to {max(seconds):.2f})")


def _rows(folder: Path, seed: int) -> bool:
    for path in folder.glob(f"runs/*-s{seed}/journal.jsonl"):
        for line in path.read_text().splitlines():
            try:
                return bool(json.loads(line))
            except ValueError:
                pass
    return False


if __name__ == "__main__":
    main()
