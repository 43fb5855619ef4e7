"""What a GPU makes of a training, in one call; each line is printed and written to --out as soon as it is known.

    python tests/benchmarks/on_gpu.py [--rounds 5] [--steps 50] [--minutes 10] [--out gpu.json] [--device cuda]

What matters most comes first, and what --minutes have no room for is left out: the tests that need a GPU (recorded
updates have the bits of others, no step waits for the device); the loops that people use (see trainers.py), where their
packages are installed; four recipes, plain (float32, nothing recorded), with all settings, and with each alone, with
how far each is from the arithmetic and the traffic of memory; eight runs at once; single convolutions; the start.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CONFIGS = HERE.parents[1] / "configs"
RECIPES = {
    "SNGAN-ResNet-32, batch 64, n_dis 5": ("sngan_resnet_32.yaml",),
    "DCGAN-32, batch 64": ("cifar10_dcgan.yaml", "batch=64"),
    "WGAN-GP-32": ("wgan_gp_resnet_32.yaml",),
    "R3GAN-32": ("r3gan_32.yaml",),
}
PLAIN = {"precision": "float32", "runtime.rewrites": "false", "runtime.cuda_graphs": "false"}
ALL = {"precision": "bfloat16", "runtime.cuda_graphs": "true"}
# What is no setting yet, for want of a measurement: done to gantool before it runs.
REWRITES = "from gantool.models import resampling; resampling._pays = lambda conv, size, least=16: size >= least"
TRIALS = """\
import torch
flags = torch.backends.cudnn.flags
torch.backends.cudnn.flags = lambda *_, **options: flags(**options | {"benchmark": True, "deterministic": False})
"""
KINDS: dict[str, tuple[dict[str, str], str]] = {
    "plain": ({}, ""),
    "bfloat16, graphs": (ALL, ""),
    "tf32": ({"precision": "tf32"}, ""),
    "bfloat16": ({"precision": "bfloat16"}, ""),
    "graphs": ({"runtime.cuda_graphs": "true"}, ""),
    "tf32, graphs": (ALL | {"precision": "tf32"}, ""),
    "strided forms": ({"runtime.rewrites": "true"}, REWRITES),
    "bfloat16, graphs, strided forms": (ALL | {"runtime.rewrites": "true"}, REWRITES),
    "bfloat16, graphs, cuDNN's trials": (ALL, TRIALS),
}


class Run:
    """Commands, until the time is over."""

    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes

    def __call__(self, *words: object) -> tuple[str | None, str]:
        """(what a Python with these words printed, or None where it failed; in words, how it ended)."""
        left = self.end - time.monotonic()
        if left < 1:
            return None, "no time left"
        command = [sys.executable, *map(str, words)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        try:
            told, _ = process.communicate(timeout=left)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with its own processes, which would disturb what comes next
            process.communicate()
            return None, "no time left"
        last = ([line for line in told.splitlines() if line.strip()] or [""])[-1].strip("= ")
        return (told, last) if process.returncode == 0 else (None, f"failed: {last or 'see above'}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed on a GPU.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--device", default="cuda")
    given = parser.parse_args()
    run = Run(given.minutes)
    found: dict[str, Any] = {}
    length = ("--rounds", given.rounds, "--steps", given.steps)

    def note(name: str, value: Any, line: str) -> None:
        found[name] = value
        given.out.write_text(json.dumps(found, indent=1) + "\n")
        print(line, flush=True)

    told, how = run("-m", "pytest", "-o", "addopts=", HERE.parent / "test_graphs.py", "-k", "cuda or gpu")
    note("tests", told or how, f"tests: {how}")
    for what in ("dcgan", "sngan"):
        told, how = run(HERE / "trainers.py", what, *length, "--device", given.device)
        note(what, told, f"\n{told or f'{what}: without the loop of others (see trainers.py): {how}'}")
    with tempfile.TemporaryDirectory() as folder:
        common = {"data": "{name: shapes}", "eval": "null", "runtime.data_dir": folder, "runtime.device": given.device}
        run("-m", "gantool", "--quiet", "prepare", "--dataset", "shapes", "--set", f"runtime.data_dir={folder}")

        def bench(recipe: tuple[str, ...], changes: dict[str, str], before: str, *more: object) -> Any:
            sets = [*recipe[1:], *(f"{key}={value}" for key, value in (common | PLAIN | changes).items())]
            words = ["--quiet", "bench", CONFIGS / recipe[0], "-f", "json", *length, *more]
            words += [word for one in sets for word in ("--set", one)]
            told, how = run("-c", f"{before}\nfrom gantool.cli import main\nmain()", *words)
            return json.loads(told) if told else how

        plain: dict[str, float] = {}
        for kinds in (["plain", "bfloat16, graphs"], ["8 at once"], [*KINDS][2:]):
            for name, recipe in RECIPES.items():
                print(f"\n{name}", flush=True)
                for kind in kinds:
                    changes, before = KINDS.get(kind, (ALL, ""))
                    result = bench(recipe, changes, before, *(("--packed", 8) if kind not in KINDS else ()))
                    line = result if isinstance(result, str) else _line(result, plain.get(name))
                    if kind == "plain" and not isinstance(result, str):
                        plain[name] = result["steps_per_second"]["median"]
                    note(f"{name}: {kind}", result, f"  {kind:32} {line}")
    for script in ("convolutions.py", "start_up.py"):
        told, how = run(HERE / script, "--device", given.device)
        note(script, told, f"\n{told or f'{script}: {how}'}")


def _line(result: dict[str, Any], plain: float | None) -> str:
    if "ratio" in result:
        return f"{result['ratio']:.2f} times the images of one"
    speed = result["steps_per_second"]
    line = f"{speed['median']:8.1f} steps/s ({speed['least']:.1f} to {speed['most']:.1f})"
    if plain:
        line += f"  {speed['median'] / plain:5.2f} times plain"
    floor = 1 / speed["median"] / result["floor_seconds"]
    line += f"  {100 * result['share_of_ceiling']:5.1f} % of the arithmetic  {floor:5.1f} times the floor"
    return f"{line}  {result['peak_megabytes']:6.0f} MB"


if __name__ == "__main__":
    main()
