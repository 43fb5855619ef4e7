"""What a GPU makes of a training, in one call; each line is printed and written to --out as soon as it is known.

    python tests/benchmarks/on_gpu.py [--rounds 5] [--steps 50] [--minutes 10] [--out gpu.json] [--device cuda]

First the tests that need a GPU: recorded updates have the bits of others, and no step waits for the device. Then four
recipes: plain (float32, nothing recorded), with each setting alone, and with all; how far each is from the arithmetic
and the traffic of memory; eight runs at once; and the loops that people use (see trainers.py), where their packages are
installed. What --minutes have no room for is left out.
"""

from __future__ import annotations

import argparse
import json
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
ALONE = {
    "tf32": {"precision": "tf32"},
    "bfloat16": {"precision": "bfloat16"},
    "graphs": {"runtime.cuda_graphs": "true"},
    "tf32, graphs": {"precision": "tf32", "runtime.cuda_graphs": "true"},
    "bfloat16, graphs": {"precision": "bfloat16", "runtime.cuda_graphs": "true"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed on a GPU.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--device", default="cuda")
    given = parser.parse_args()
    end = time.monotonic() + 60 * given.minutes
    found: dict[str, Any] = {}

    def run(words: list[str]) -> str | None:
        """The output of a command; None where it failed, or where there was no time left."""
        if time.monotonic() > end:
            return None
        try:
            command = [sys.executable, *words]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=end - time.monotonic())
        except subprocess.TimeoutExpired:
            return None
        return done.stdout if done.returncode == 0 else None

    def note(name: str, value: Any, line: str) -> None:
        found[name] = value
        given.out.write_text(json.dumps(found, indent=1) + "\n")
        print(line, flush=True)

    told = run(["-m", "pytest", "-o", "addopts=", str(HERE.parent / "test_graphs.py"), "-k", "cuda or gpu"])
    note("tests", told, f"tests: {told.strip().splitlines()[-1].strip('= ') if told else 'FAILED'}")
    with tempfile.TemporaryDirectory() as folder:
        common = {"data": "{name: shapes}", "eval": "null", "runtime.data_dir": folder, "runtime.device": given.device}

        def bench(recipe: tuple[str, ...], changes: dict[str, str], *more: str) -> dict[str, Any] | None:
            sets = [*recipe[1:], *(f"{key}={value}" for key, value in (common | changes).items())]
            words = ["-m", "gantool", "--quiet", "bench", str(CONFIGS / recipe[0]), "-f", "json", *more]
            words += ["--rounds", str(given.rounds), "--steps", str(given.steps)]
            told = run(words + [word for one in sets for word in ("--set", one)])
            return json.loads(told) if told else None

        run(["-m", "gantool", "--quiet", "prepare", "--dataset", "shapes", "--set", f"runtime.data_dir={folder}"])
        for name, recipe in RECIPES.items():
            print(f"\n{name}", flush=True)
            plain: float | None = None
            for kind, changes in {"plain": {}, **ALONE}.items():
                result = bench(recipe, PLAIN | changes)
                if result is None:
                    note(f"{name}: {kind}", None, f"  {kind:16} failed, or no time left")
                    continue
                speed = result["steps_per_second"]
                plain = plain or speed["median"]
                line = f"  {kind:16} {speed['median']:8.1f} steps/s ({speed['least']:.1f} to {speed['most']:.1f})"
                line += (
                    f"  {speed['median'] / plain:5.2f} times plain  {100 * result['share_of_ceiling']:5.1f} % of the"
                )
                line += f" arithmetic  {1 / speed['median'] / result['floor_seconds']:5.1f} times the floor"
                note(f"{name}: {kind}", result, f"{line}  {result['peak_megabytes']:6.0f} MB")
            packed = bench(recipe, PLAIN | ALONE["bfloat16, graphs"], "--packed", "8")
            ratio = f"{packed['ratio']:.2f} times the images of one" if packed else "failed, or no time left"
            note(f"{name}: packed", packed, f"  8 at once        {ratio}")
    for what in ("dcgan", "sngan"):
        words = [str(HERE / "trainers.py"), what, "--rounds", str(given.rounds), "--steps", str(given.steps)]
        told = run([*words, "--device", given.device])
        note(what, told, f"\n{told or f'{what}: without the loop of others (see trainers.py)'}")


if __name__ == "__main__":
    main()
