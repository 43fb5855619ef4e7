"""FID of two folders of PNG files: time and peak memory here and with the packages that people use, side by side.

    python tests/benchmarks/evaluators.py [--num 512] [--rounds 1] [--threads 2] [--peers torch-fidelity pytorch-fid]

Every measurement is a process of its own; imports are not part of its time. All read the same files and the same random
weights, which cost as much as the real ones. In each round they follow each other, so that a busy machine is busy for
all; a ratio is of one round. The seconds of CPU include imports. FIDs of random weights mean nothing, but they must
agree.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

OURS = "gantool"
PEERS = ("torch-fidelity", "pytorch-fid", "clean-fid", "torchmetrics")


def make_inputs(folder: Path, num: int) -> None:
    """Two folders of 32x32 pictures with some structure, and the weights under the names the packages look for."""
    import numpy as np
    import torch
    from PIL import Image

    sys.path.insert(0, str(Path(__file__).parent.parent))
    from test_metrics_inception import random_state, scripted_network

    from gantool.metrics.inception_weights import FILE_NAMES, SCRIPTED

    rng = np.random.default_rng(0)
    for name, shift in (("a", 0), ("b", 30)):
        (folder / name).mkdir()
        for number in range(num):
            coarse = Image.fromarray(rng.integers(0, 226, (6, 6, 3), dtype=np.uint8) + np.uint8(shift))
            smooth = np.asarray(coarse.resize((32, 32), Image.Resampling.BICUBIC), np.float64)
            pixels = (smooth + rng.normal(0, 12, smooth.shape)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:05}.png")
    hub = folder / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    state = {k: torch.ones_like(v) if k.endswith("bn.weight") else v for k, v in random_state().items()}
    torch.save(state, hub / FILE_NAMES[0])
    (hub / FILE_NAMES[1]).symlink_to(hub / FILE_NAMES[0])
    scripted_network(state).save(folder / SCRIPTED)


def gantool(folder: Path, threads: int) -> tuple[float, float]:
    import torch

    from gantool.config.evaluation import EvalConfig
    from gantool.data.image_sets import open_images
    from gantool.evaluate import evaluate_images
    from gantool.metrics.collection import Work
    from gantool.metrics.reference import Reference
    from gantool.progress import Silent
    from gantool.runtime import set_threads

    set_threads(threads)
    start = time.perf_counter()
    progress = Silent()
    with tempfile.TemporaryDirectory() as empty:
        reference = Reference(open_images(folder / "b", progress), None, Path(empty))
        settings = EvalConfig(extractor="inception", metrics=("fid",))
        found = evaluate_images(
            open_images(folder / "a", progress), reference, settings, torch.device("cpu"), Work(progress),
            allow_unknown_weights=True,
        )  # fmt: skip
    assert found is not None
    return time.perf_counter() - start, found.score.values["fid"]


def torch_fidelity(folder: Path, threads: int) -> tuple[float, float]:
    import torch
    import torch_fidelity as package

    torch.set_num_threads(threads)
    start = time.perf_counter()
    found = package.calculate_metrics(
        input1=str(folder / "a"), input2=str(folder / "b"), fid=True, cuda=False, verbose=False, cache=False,
        batch_size=64,
    )  # fmt: skip
    return time.perf_counter() - start, found["frechet_inception_distance"]


def pytorch_fid(folder: Path, threads: int) -> tuple[float, float]:
    import torch
    from pytorch_fid.fid_score import calculate_fid_given_paths

    torch.set_num_threads(threads)
    start = time.perf_counter()
    fid = calculate_fid_given_paths([str(folder / "a"), str(folder / "b")], 50, "cpu", 2048, num_workers=0)
    return time.perf_counter() - start, float(fid)


def clean_fid(folder: Path, threads: int) -> tuple[float, float]:
    import torch
    from cleanfid import features, fid

    torch.set_num_threads(threads)
    start = time.perf_counter()
    extract = features.feature_extractor(name="torchscript_inception", device=torch.device("cpu"), resize_inside=False)
    found = fid.compare_folders(
        str(folder / "a"), str(folder / "b"), extract, mode="clean", num_workers=0, batch_size=32,
        device=torch.device("cpu"), verbose=False,
    )  # fmt: skip
    return time.perf_counter() - start, float(found)


def torchmetrics(folder: Path, threads: int) -> tuple[float, float]:
    import numpy as np
    import torch
    from PIL import Image
    from torchmetrics.image.fid import FrechetInceptionDistance

    torch.set_num_threads(threads)
    start = time.perf_counter()
    metric = FrechetInceptionDistance(feature=2048)
    for name in ("a", "b"):
        files = sorted((folder / name).glob("*.png"))
        for first in range(0, len(files), 64):
            batch = np.stack([np.asarray(Image.open(path)) for path in files[first : first + 64]])
            metric.update(torch.from_numpy(batch).permute(0, 3, 1, 2), real=name == "b")
    return time.perf_counter() - start, float(metric.compute())


def measured(name: str, folder: Path, threads: int) -> dict[str, float]:
    """One evaluator in a fresh process."""
    command = [sys.executable, __file__, "--one", name, "--folder", str(folder), "--threads", str(threads)]
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    env = os.environ | {name: str(threads) for name in names} | {"TORCH_HOME": str(folder), "TMPDIR": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def one(name: str, folder: Path, threads: int) -> None:
    warnings.simplefilter("ignore")
    seconds, fid = globals()[name.replace("-", "_")](folder, threads)
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu = used.ru_utime + used.ru_stime
    print(json.dumps({"seconds": seconds, "cpu": cpu, "fid": fid, "peak_mb": used.ru_maxrss / 1024}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=512, help="images in each folder")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=PEERS)
    parser.add_argument("--one", choices=(OURS, *PEERS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        one(args.one, args.folder, args.threads)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_inputs(folder, args.num)
        rounds = [{who: measured(who, folder, args.threads) for who in (OURS, *args.peers)} for _ in range(args.rounds)]
    print(f"{args.num} + {args.num} PNG files of 32x32, {args.threads} threads, {args.rounds} rounds")
    for who in (OURS, *args.peers):
        ratios = [found[OURS]["seconds"] / found[who]["seconds"] for found in rounds]
        seconds = [found[who]["seconds"] for found in rounds]
        cpu = statistics.median(found[who]["cpu"] for found in rounds)
        print(
            f"{who:15} {statistics.median(seconds):7.1f} s   gantool / it {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f})   cpu {cpu:.1f} s   "
            f"peak {max(f[who]['peak_mb'] for f in rounds):.0f} MB   fid {rounds[0][who]['fid']:.6f}"
        )


if __name__ == "__main__":
    main()
