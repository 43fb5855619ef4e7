"""Images a second of the data path alone, on one core: gather, mirror, shift and scale here; torchvision's PIL,
ToTensor and Normalize in a DataLoader without workers.

    python tests/benchmarks/data_path.py [--batch 64] [--rounds 5] [--batches 24]

They take turns; a ratio is of one round, against torchvision without a flip and with one.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from torchvision import transforms
from trainers import Pictures

from gantool.config.objective import AdvancedAugment, BasicAugment, NoAugment
from gantool.config.schema import DataConfig
from gantool.data.loader import RealImages
from gantool.data.pack import ensure_packed
from gantool.progress import Silent


def main() -> None:
    parser = argparse.ArgumentParser(description="Images a second of the data path alone.")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=24)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        images, _ = ensure_packed(DataConfig(name="shapes"), Path(folder), Silent()).split("train")
        contenders: dict[str, Callable[[int], object]] = {}
        for name, settings in (("none", NoAugment()), ("basic", BasicAugment()), ("advanced", AdvancedAugment())):
            contenders[f"gantool, {name}"] = RealImages(images, settings, 0, given.batch, torch.device("cpu")).batch
        flips = Pictures(images)
        flips.change = transforms.Compose([transforms.RandomHorizontalFlip(), flips.change])
        for name, pictures in (("no augmentation", Pictures(images)), ("mirrored", flips)):
            feed = iter(DataLoader(pictures, given.batch, shuffle=True, drop_last=True))
            contenders[f"torchvision, {name}"] = lambda _, feed=feed: next(feed)
        speeds: dict[str, list[float]] = {name: [] for name in contenders}
        assert len(images) >= given.batch * given.batches * (given.rounds + 1), "more rounds than images"
        for number in range(given.rounds + 1):
            for name, draw in contenders.items():
                began = time.perf_counter()
                for index in range(given.batches // 2):
                    draw(number * given.batches + index)
                if number:
                    speeds[name].append(given.batch * (given.batches // 2) / (time.perf_counter() - began))
    print(f"{'':32} {'images/s':>10}   times no augmentation   times mirrored")
    for name, found in speeds.items():
        spreads = []
        for peer in ("torchvision, no augmentation", "torchvision, mirrored"):
            ratios = [ours / theirs for ours, theirs in zip(found, speeds[peer], strict=True)]
            spreads.append(f"{statistics.median(ratios):6.1f} ({min(ratios):.1f} to {max(ratios):.1f})")
        print(f"{name:32} {statistics.median(found):10.0f}   {'   '.join(spreads)}")


if __name__ == "__main__":
    main()
