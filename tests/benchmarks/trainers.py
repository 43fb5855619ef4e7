"""Time of a training step here and in the loops that people use, side by side: same networks, same batch, same threads.

    pip install scikit-image && pip install --no-deps torch-mimicry
    python tests/benchmarks/trainers.py dcgan|sngan [--batch 64] [--rounds 5] [--steps 10] [--threads 2] [--device cpu]

dcgan: DCGAN-32 (width 64) against the loop of PyTorch's DCGAN tutorial, with torchvision's ToTensor and Normalize in a
DataLoader of two workers; that loop makes images once for both players, as `reuse_fakes` does. sngan: SNGAN-ResNet-32
(`n_dis` 5) against torch-mimicry's networks and training steps with the same DataLoader; its logging is left out. The
contenders take turns in each round, so that a busy machine is busy for all; a ratio is of one round. A step is one
update of the generator, with what belongs to it. Freed memory is kept for this package's trainer, as it asks for, and
not for the others, which still find in the heap what it has left there.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib.metadata
import io
import statistics
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from gantool import models
from gantool.config.loader import load_run_config
from gantool.config.schema import RunConfig
from gantool.data.pack import PackedDataset, ensure_packed
from gantool.interrupts import Interrupts
from gantool.progress import Silent
from gantool.runs import RunDirectory
from gantool.runtime import Runtime, keep_freed_blocks
from gantool.train import Trainer

CONFIGS = Path(__file__).parents[2] / "configs"
SETS = {
    "dcgan": ("cifar10_dcgan.yaml", ["discriminator.dropout=0.0", "augment=none"]),
    "sngan": ("sngan_resnet_32.yaml", []),
}
COMMON = ["data={name: shapes}", "eval=null", "runtime.log_every=50"]
Step = Callable[[], None]


class Pictures(Dataset[tuple[Tensor, int]]):
    """The images as torchvision's datasets give them: a PIL image, then the transforms."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images
        self.change = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.change(Image.fromarray(self.images[index])), 0


def batches(data: PackedDataset, batch: int) -> Iterator[Any]:
    loader = DataLoader(Pictures(data.split("train")[0]), batch, shuffle=True, num_workers=2, drop_last=True)
    while True:
        yield from loader


def trainer(config: RunConfig, data: PackedDataset, folder: Path) -> Step:
    """This package's trainer, with its reports."""
    folder.mkdir()
    run = RunDirectory(folder)
    made = Trainer(run, config, data, Runtime(config.runtime), Interrupts(), Silent(), lambda *_: None)

    def step() -> None:
        made.train_step()
        if made.state.step % made.every["log"] == 0:
            made.report()

    return step


def tutorial(config: RunConfig, data: PackedDataset, _: Path) -> Step:
    """The loop of PyTorch's DCGAN tutorial."""
    device = torch.device(config.runtime.device)
    generator = models.build_generator(config, 0).to(device)
    discriminator = models.build_discriminator(config, 0).to(device)
    settings = {"lr": 2e-4, "betas": (0.5, 0.999)}
    of_discriminator = torch.optim.Adam(discriminator.parameters(), **settings)
    of_generator = torch.optim.Adam(generator.parameters(), **settings)
    loss, real_batches = nn.BCEWithLogitsLoss(), batches(data, config.batch)
    ones, zeros = torch.ones(config.batch, device=device), torch.zeros(config.batch, device=device)

    def step() -> None:
        discriminator.zero_grad()
        real, _ = next(real_batches)
        logits = discriminator(real.to(device))
        real_loss = loss(logits, ones)
        real_loss.backward()
        fake = generator(torch.randn(config.batch, config.generator.latent_dim, device=device))
        logits = discriminator(fake.detach())
        fake_loss = loss(logits, zeros)
        fake_loss.backward()
        of_discriminator.step()
        generator.zero_grad()
        generator_loss = loss(discriminator(fake), ones)
        generator_loss.backward()
        of_generator.step()
        for number in (real_loss, fake_loss, generator_loss):
            number.item()

    return step


def mimicry(config: RunConfig, data: PackedDataset, _: Path) -> Step:
    """torch-mimicry's networks and steps in the order of its trainer."""
    # Without the `__init__` of these packages, which want tensorflow and parts of torch that are gone.
    place = Path(str(importlib.metadata.distribution("torch-mimicry").locate_file("torch_mimicry")))
    for name in ("torch_mimicry", "torch_mimicry.training", "torch_mimicry.utils"):
        package = types.ModuleType(name)
        package.__path__ = [str(place.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = package
    from torch_mimicry.nets import sngan
    from torch_mimicry.training.metric_log import MetricLog

    device = torch.device(config.runtime.device)
    generator, discriminator = sngan.SNGANGenerator32().to(device), sngan.SNGANDiscriminator32().to(device)
    settings = {"lr": 2e-4, "betas": (0.0, 0.9)}
    of_discriminator = torch.optim.Adam(discriminator.parameters(), **settings)
    of_generator = torch.optim.Adam(generator.parameters(), **settings)
    real_batches = batches(data, config.batch)

    def step() -> None:
        log = MetricLog()
        for update in range(config.n_dis):
            real = tuple(part.to(device) for part in next(real_batches))
            common = {"real_batch": real, "log_data": log, "global_step": 0, "device": device, "scaler": None}
            log = discriminator.train_step(netG=generator, optD=of_discriminator, **common)
            if update == config.n_dis - 1:
                log = generator.train_step(netD=discriminator, optG=of_generator, **common)

    return step


def as_glibc_does() -> None:
    """How glibc keeps memory where nobody has told it anything."""
    libc = ctypes.CDLL("libc.so.6")
    for option, value in ((-4, 2**16), (-3, 2**25), (-1, 2**26)):  # where its own rule ends in a training
        libc.mallopt(option, value)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time of a training step, side by side with other loops.")
    parser.add_argument("what", choices=SETS)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    file, changes = SETS[given.what]
    peer = {"dcgan": ("tutorial's loop", tutorial), "sngan": ("torch-mimicry", mimicry)}[given.what]
    with tempfile.TemporaryDirectory() as folder:
        sets = [*COMMON, f"batch={given.batch}", f"runtime.threads={given.threads}", f"runtime.runs_dir={folder}"]
        sets += [f"runtime.data_dir={folder}", f"runtime.device={given.device}", *changes]

        def config(*more: str) -> RunConfig:
            return load_run_config(CONFIGS / file, [*sets, *more])

        data = ensure_packed(config().data, Path(folder), Silent())
        kinds = {
            "gantool": (trainer, ()),
            "without rewrites": (trainer, ("runtime.rewrites=false",)),
            "bfloat16": (trainer, ("precision=bfloat16",)),
            "reuse_fakes": (trainer, ("reuse_fakes=true",)),
            "both": (trainer, ("precision=bfloat16", "reuse_fakes=true")),
        }
        if given.device == "cuda":
            graphs = "runtime.cuda_graphs=true"
            kinds |= {"graphs": (trainer, (graphs,)), "bfloat16, graphs": (trainer, ("precision=bfloat16", graphs))}
        kinds[peer[0]] = (peer[1], ())
        steps: dict[str, Step] = {}
        for number, (name, (build, more)) in enumerate(kinds.items()):
            with contextlib.redirect_stdout(io.StringIO()):
                steps[name] = build(config(*more), data, Path(folder) / str(number))
            torch.set_num_threads(given.threads)
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for number in range(given.rounds + 1):
            for name, step in steps.items():
                if name == peer[0]:
                    as_glibc_does()
                else:
                    keep_freed_blocks()
                step()
                began = time.perf_counter()
                for _ in range(given.steps if number else 5):
                    step()
                if given.device == "cuda":
                    torch.cuda.synchronize()
                if number:  # the first is for warming up
                    seconds[name].append((time.perf_counter() - began) / given.steps)
    where = f"{given.device}, {given.threads} threads"
    print(f"{file}, batch {given.batch}, {where}, {given.rounds} rounds of {given.steps} steps")
    for name, values in seconds.items():
        ratios = [other / own for own, other in zip(values, seconds[peer[0]], strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{name:18} {1000 * statistics.median(values):8.1f} ms a step   times as fast as {peer[0]}: {spread}")


if __name__ == "__main__":
    main()
