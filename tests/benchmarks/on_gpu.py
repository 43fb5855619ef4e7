"""Everything that can be said about speed on a GPU, in one call of some minutes.

    python tests/benchmarks/on_gpu.py [--rounds 5] [--steps 50] [--out gpu.json] [--device cuda]

First the tests of recorded updates on the device, without which the times would say nothing. Then four recipes, each
plain (float32, no rewrites), with each improvement alone, and with all; their distance from the arithmetic of the
device; eight runs at once; and the loops that people use (see trainers.py), where their packages are installed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
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
    "rewrites": {"runtime.rewrites": "true"},
    "graphs": {"runtime.cuda_graphs": "true"},
    "tf32, all": {"precision": "tf32", "runtime.rewrites": "true", "runtime.cuda_graphs": "true"},
    "bfloat16, all": {"precision": "bfloat16", "runtime.rewrites": "true", "runtime.cuda_graphs": "true"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed on a GPU.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--device", default="cuda")
    given = parser.parse_args()
    tests = [sys.executable, "-m", "pytest", "-q", "-rs", str(HERE.parent / "test_graphs.py")]
    equal = subprocess.run(tests, cwd=HERE.parents[1]).returncode == 0
    print(f"recorded updates are those of ever: {'yes' if equal else 'NO, see above'}", flush=True)
    found: dict[str, Any] = {"equal": equal}
    with tempfile.TemporaryDirectory() as folder:
        common = {"data": "{name: shapes}", "eval": "null", "runtime.data_dir": folder, "runtime.device": given.device}

        def bench(recipe: tuple[str, ...], changes: dict[str, str], *words: str) -> dict[str, Any] | None:
            sets = [*recipe[1:], *(f"{key}={value}" for key, value in (common | changes).items())]
            command = [sys.executable, "-m", "gantool", "--quiet", "bench", str(CONFIGS / recipe[0]), "-f", "json"]
            command += ["--rounds", str(given.rounds), "--steps", str(given.steps), *words]
            command += [word for one in sets for word in ("--set", one)]
            done = subprocess.run(command, stdout=subprocess.PIPE)
            return json.loads(done.stdout) if done.returncode == 0 else None

        prepare = [sys.executable, "-m", "gantool", "--quiet", "prepare", "--dataset", "shapes", "--size", "32"]
        subprocess.run([*prepare, "--set", f"runtime.data_dir={folder}"], check=True, stdout=subprocess.DEVNULL)
        for name, recipe in RECIPES.items():
            print(f"\n{name}", flush=True)
            plain: float | None = None
            for kind, changes in {"plain": {}, **ALONE}.items():
                result = bench(recipe, PLAIN | changes)
                found[f"{name}: {kind}"] = result
                if result is None:
                    print(f"  {kind:14} failed", flush=True)
                    continue
                speed = result["steps_per_second"]
                plain = plain or speed["median"]
                share = result["flop_per_step"] * speed["median"] / result["ceiling_flops"]
                print(
                    f"  {kind:14} {speed['median']:8.1f} steps/s ({speed['least']:.1f} to {speed['most']:.1f})"
                    f"  {speed['median'] / plain:5.2f} times plain  {100 * share:5.1f} % of the arithmetic"
                    f"  {result['peak_megabytes']:6.0f} MB",
                    flush=True,
                )
            packed = bench(recipe, PLAIN | ALONE["bfloat16, all"], "--packed", "8")
            found[f"{name}: packed"] = packed
            if packed:
                print(f"  8 at once      {packed['ratio']:.2f} times the images of one", flush=True)
    for what in ("dcgan", "sngan"):
        print(flush=True)
        words = ["--rounds", str(given.rounds), "--steps", str(given.steps), "--device", given.device]
        subprocess.run([sys.executable, str(HERE / "trainers.py"), what, *words])
    given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
