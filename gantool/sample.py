"""Images from a snapshot. Image k is a function of (seed, k) alone: its latent vector comes from that key, and it is
always computed at place k % 64 of a block of 64, so that no batch size can change its bits on the CPU.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from gantool import checkpoint, files, models, randomness
from gantool.config.schema import RunConfig
from gantool.data.loader import to_uint8
from gantool.errors import UsageError
from gantool.progress import Progress
from gantool.runs import find_snapshot

BLOCK = 64


@dataclass(frozen=True)
class Snapshot:
    """A generator on a device, ready to sample, and where it comes from."""

    path: Path
    step: int
    digest: str  # SHA-256 of its tensors
    config: RunConfig
    data: dict[str, Any]  # digest, title, classes, image_shape [H, W, C] of the training data
    ema: bool  # averaged weights
    generator: nn.Module  # in eval mode


def load_snapshot(path: Path, device: torch.device) -> Snapshot:
    """Load the snapshot that `path` means (see `find_snapshot`) to `device`."""
    path = find_snapshot(path)
    tensors, facts = checkpoint.load(path)
    if facts.get("kind") != "snapshot":
        raise UsageError(f"{path}: found a {facts.get('kind')}, expected a snapshot", "give a file from snapshots/")
    config = RunConfig.model_validate(facts["config"])
    generator = models.build_generator(config)
    generator.load_state_dict(tensors)
    generator.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    generator.requires_grad_(False).eval()
    return Snapshot(path, facts["step"], facts["digest"], config, facts["data"], facts["ema"], generator)


def latents(seed: int, indices: range, latent_dim: int) -> Tensor:
    """The latent vectors of images `indices` of the sample `seed`: float32 [len(indices), latent_dim], N(0, 1)."""
    rows = [randomness.generator(seed, "sample", k).standard_normal(latent_dim, dtype=np.float32) for k in indices]
    return torch.from_numpy(np.stack(rows))


@torch.inference_mode()
def generate_with(generator: nn.Module, latent_dim: int, start: int, stop: int, seed: int) -> Iterator[Tensor]:
    """Images start..stop-1 of the sample `seed`, in parts of at most 64: uint8 [n, H, W, C], where the generator is."""
    device = next(generator.parameters()).device
    for first in range(start - start % BLOCK, stop, BLOCK):
        begin, end = max(start, first), min(stop, first + BLOCK)
        block = torch.zeros(BLOCK, latent_dim)
        block[begin - first : end - first] = latents(seed, range(begin, end), latent_dim)
        yield to_uint8(generator(block.to(device)))[begin - first : end - first]


def generate(snapshot: Snapshot, start: int, stop: int, seed: int) -> Iterator[Tensor]:
    """`generate_with` for a snapshot's generator."""
    return generate_with(snapshot.generator, snapshot.config.generator.latent_dim, start, stop, seed)


def make_grid(images: np.ndarray, rows: int, columns: int) -> Image.Image:
    """A picture of uint8 images [rows * columns, H, W, C], row by row, with 2 pixels of white between them."""
    _, height, width, channels = images.shape
    gap = 2
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, channels), 255, np.uint8)
    for index, image in enumerate(images[: rows * columns]):
        y, x = (index // columns) * (height + gap) + gap, (index % columns) * (width + gap) + gap
        sheet[y : y + height, x : x + width] = image
    return to_picture(sheet)


def to_picture(image: np.ndarray) -> Image.Image:
    """uint8 [H, W, 1 or 3] as a grey or RGB picture."""
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def parse_grid(text: str) -> tuple[int, int]:
    """'5x4' as (5 rows, 4 columns); UsageError otherwise."""
    found = re.fullmatch(r"([1-9]\d?)x([1-9]\d?)", text)
    if not found:
        raise UsageError(f"--grid: found {text!r}, expected ROWSxCOLUMNS up to 99x99", "for example --grid 5x5")
    return int(found[1]), int(found[2])


def save_grid(path: Path, picture: Image.Image) -> None:
    """Write a picture as PNG, atomically."""
    with files.atomic_file(path) as file:
        picture.save(file, "png")


def draw_grid(snapshot: Snapshot, rows: int, columns: int, seed: int, out: Path) -> Path:
    """Write images 0, 1, ... of the sample `seed` as one PNG of rows x columns."""
    images = torch.cat([part.cpu() for part in generate(snapshot, 0, rows * columns, seed)]).numpy()
    save_grid(out, make_grid(images, rows, columns))
    return out


def sample(snapshot: Snapshot, num: int, seed: int, out: Path, progress: Progress) -> Path:
    """Write images 0..num-1 to `out`: a .npz (array `images`, uint8 [num, H, W, C]), a .zip of PNGs, or a folder of
    PNGs (img_000000.png ...). A folder may be continued; a file is written whole or not at all."""
    suffix = out.suffix.lower()
    if out.is_dir():
        suffix = ""
    if suffix not in (".npz", ".zip", ""):
        raise UsageError(f"--out: found {out.name!r}, expected a folder, x.npz or x.zip", "change the ending")
    if suffix == "" and out.is_file():
        raise UsageError(f"--out: {out} is a file, not a folder", "give another name, or x.npz or x.zip")
    strangers = [p.name for p in out.glob("img_*.png") if p.stem[4:].isdigit() and int(p.stem[4:]) >= num]
    if suffix == "" and strangers:
        text = f"--out: {out} holds images of a larger sample ({min(strangers)}, ...), which would stay there"
        raise UsageError(text, "give an empty or new folder")
    parts = _with_progress(generate(snapshot, 0, num, seed), num, progress)
    if suffix == ".npz":
        _write_npz(out, parts, (num, *snapshot.data["image_shape"]))
    elif suffix == ".zip":
        with files.atomic_file(out) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, png in _pngs(parts):
                # A fixed date: the same images give the same file.
                archive.writestr(zipfile.ZipInfo(name), png)
    else:
        for name, png in _pngs(parts):
            with files.atomic_file(out / name, durable=False) as file:
                file.write(png)
    return out


def _write_npz(out: Path, parts: Iterator[np.ndarray], shape: tuple[int, ...]) -> None:
    """np.savez's format, written part by part so that the memory does not grow with the number of images."""
    with (
        files.atomic_file(out) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive,
        archive.open(zipfile.ZipInfo("images.npy"), "w", force_zip64=True) as array,
    ):
        np.lib.format.write_array_header_2_0(array, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for part in parts:
            array.write(np.ascontiguousarray(part).tobytes())


def _with_progress(parts: Iterator[Tensor], num: int, progress: Progress) -> Iterator[np.ndarray]:
    done = 0
    for part in parts:
        yield part.cpu().numpy()
        done += len(part)
        progress.step("sample", done, num)


def _pngs(parts: Iterator[np.ndarray]) -> Iterator[tuple[str, bytes]]:
    index = 0
    for part in parts:
        for image in part:
            buffer = io.BytesIO()
            to_picture(image).save(buffer, "png")
            yield f"img_{index:06d}.png", buffer.getvalue()
            index += 1
