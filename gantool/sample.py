"""Images from a snapshot. Image k is a function of (seed, k) alone: its latent vector comes from that key, and it is
always computed at place k % 64 of a block of 64, so that no batch size can change its bits on the CPU.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from gantool import checkpoint, custom, files, models, randomness
from gantool.config.schema import RunConfig, digest_of
from gantool.data.image_sets import ImageSet
from gantool.data.loader import to_uint8
from gantool.errors import UsageError
from gantool.progress import Progress
from gantool.runs import find_snapshot

BLOCK = 64

Labels = Callable[[int], int]
"""The class of image k."""


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
    accuracy: dict[str, Any] | None = None  # of the discriminator by class, see `class_accuracy`

    @property
    def num_classes(self) -> int:
        """Number of classes of a class-conditional generator, else 0."""
        return len(self.data["classes"]) if self.config.conditional else 0


def load_snapshot(path: Path, device: torch.device) -> Snapshot:
    """Load the snapshot that `path` means (see `find_snapshot`) to `device`."""
    path = find_snapshot(path)
    custom.remember(path.parent.parent / "code")
    tensors, facts = checkpoint.load(path)
    if facts.get("kind") != "snapshot":
        raise UsageError(f"{path}: found a {facts.get('kind')}, expected a snapshot", "give a file from snapshots/")
    config = RunConfig.model_validate(facts["config"])
    generator = models.build_generator(config, len(facts["data"]["classes"]))
    generator.load_state_dict(tensors)
    generator.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    generator.requires_grad_(False).eval()
    accuracy = facts.get("accuracy")
    return Snapshot(path, facts["step"], facts["digest"], config, facts["data"], facts["ema"], generator, accuracy)


def latents(seed: int, indices: range, latent_dim: int) -> Tensor:
    """The latent vectors of images `indices` of the sample `seed`: float32 [len(indices), latent_dim], N(0, 1)."""
    rows = [randomness.generator(seed, "sample", k).standard_normal(latent_dim, dtype=np.float32) for k in indices]
    return torch.from_numpy(np.stack(rows))


def labels_in_turn(classes: Sequence[int]) -> Labels:
    """Image k gets classes[k % len(classes)]."""
    return lambda k: classes[k % len(classes)]


def row_labels(columns: int, classes: Sequence[int]) -> Labels:
    """The images of a grid with so many columns: each row one class, in turn."""
    return lambda k: classes[k // columns % len(classes)]


@torch.inference_mode()
def generate_with(
    generator: nn.Module, latent_dim: int, start: int, stop: int, seed: int, labels: Labels | None = None
) -> Iterator[Tensor]:
    """Images start..stop-1 of the sample `seed`, in parts of at most 64: uint8 [n, H, W, C], where the generator is.

    A class-conditional generator needs `labels`.
    """
    device = next(generator.parameters()).device
    for first in range(start - start % BLOCK, stop, BLOCK):
        begin, end = max(start, first), min(stop, first + BLOCK)
        block = torch.zeros(BLOCK, latent_dim)
        block[begin - first : end - first] = latents(seed, range(begin, end), latent_dim)
        inputs = [block.to(device)]
        if labels is not None:
            chosen = [labels(k) if begin <= k < end else 0 for k in range(first, first + BLOCK)]
            inputs.append(torch.tensor(chosen, device=device))
        yield to_uint8(generator(*inputs))[begin - first : end - first]


def generate(snapshot: Snapshot, start: int, stop: int, seed: int, labels: Labels | None = None) -> Iterator[Tensor]:
    """`generate_with` for a snapshot's generator; its classes come in turn if `labels` says nothing else."""
    if labels is None and snapshot.num_classes:
        labels = labels_in_turn(range(snapshot.num_classes))
    latent_dim = snapshot.config.generator.latent_dim
    return generate_with(snapshot.generator, latent_dim, start, stop, seed, labels)


def generated_set(snapshot: Snapshot, num: int, seed: int) -> ImageSet:
    """Images 0..num-1 of the sample `seed`, made when they are asked for; the classes come in turn."""
    labels = None
    if snapshot.num_classes:
        of_image = labels_in_turn(range(snapshot.num_classes))
        labels = np.array([of_image(k) for k in range(num)], np.int64)
    height, width, channels = snapshot.data["image_shape"]
    return ImageSet(
        title="the generated images",
        digest=digest_of(["generated", snapshot.digest, seed]),
        num=num,
        shape=(height, width, channels),
        part=lambda start, stop: torch.cat(list(generate(snapshot, start, stop, seed))),
        labels=labels,
        classes=tuple(map(str, snapshot.data["classes"])) if snapshot.num_classes else (),
    )


def choose_classes(snapshot: Snapshot, text: str) -> list[int]:
    """'cat,3' as class numbers, by names or numbers; UsageError for others, or when the generator has no classes."""
    names = list(snapshot.data["classes"])
    if not snapshot.num_classes:
        words = f"{snapshot.path}: this generator is not class-conditional, --classes would have no effect"
        raise UsageError(words, "leave --classes out")
    chosen = []
    for word in (part.strip() for part in text.split(",")):
        if word in names:
            chosen.append(names.index(word))
        elif word.isascii() and word.isdigit() and int(word) < len(names):
            chosen.append(int(word))
        else:
            hint = f"classes: {', '.join(f'{number} {name}' for number, name in enumerate(names))}"
            raise UsageError(f"--classes: found {word!r}, expected names or numbers of classes", hint)
    return chosen


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


def draw_grid(
    snapshot: Snapshot,
    rows: int,
    columns: int,
    seed: int,
    progress: Progress,
    classes: Sequence[int] | None = None,
) -> Image.Image:
    """Images 0, 1, ... of the sample `seed` as one picture of rows x columns; with classes, one class in each row."""
    if classes and len(classes) > rows:
        text = f"--grid: found {rows} rows for {len(classes)} classes, expected at least a row for each"
        raise UsageError(text, f"give --grid {len(classes)}x{columns}")
    classes = classes or range(snapshot.num_classes)
    labels = row_labels(columns, classes) if snapshot.num_classes else None
    parts = with_progress(generate(snapshot, 0, rows * columns, seed, labels), rows * columns, progress)
    return make_grid(np.concatenate(list(parts)), rows, columns)


def sample(
    snapshot: Snapshot,
    num: int,
    seed: int,
    out: Path,
    progress: Progress,
    classes: Sequence[int] | None = None,
) -> Path:
    """Write images 0..num-1 to `out`: a .npz (array `images`, uint8 [num, H, W, C]), a .zip of PNGs, or a folder of
    PNGs (img_000000.png ...). A folder may be continued; a file is written whole or not at all. A class-conditional
    generator draws `classes` in turn (None: all), and a .npz then has their numbers too (`labels`, int64 [num])."""
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
    labels = labels_in_turn(classes or range(snapshot.num_classes)) if snapshot.num_classes else None
    parts = with_progress(generate(snapshot, 0, num, seed, labels), num, progress)
    if suffix == ".npz":
        _write_npz(out, parts, (num, *snapshot.data["image_shape"]), labels)
    elif suffix == ".zip":
        with files.atomic_file(out) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, png in _pngs(parts):
                # A fixed date: the same images give the same file.
                archive.writestr(zipfile.ZipInfo(name), png)
    else:
        _write_folder(out, parts)
    return out


def save_images(folder: Path, parts: Iterable[np.ndarray], num: int) -> None:
    """Write `num` images as img_000.png, ... (more digits for more images) to `folder`, and remove those of a larger
    number that are there from before."""
    digits = max(3, len(str(num - 1)))
    wanted = {f"img_{k:0{digits}d}.png" for k in range(num)}
    for path in folder.glob("img_*.png"):
        if path.name not in wanted and path.stem[4:].isdigit():
            path.unlink()
    _write_folder(folder, parts, digits)


def _write_folder(folder: Path, parts: Iterable[np.ndarray], digits: int = 6) -> None:
    for name, png in _pngs(parts, digits):
        with files.atomic_file(folder / name, durable=False) as file:
            file.write(png)


def _write_npz(out: Path, parts: Iterator[np.ndarray], shape: tuple[int, ...], labels: Labels | None) -> None:
    """np.savez's format, written part by part so that the memory does not grow with the number of images."""
    with (
        files.atomic_file(out) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive,
        archive.open(zipfile.ZipInfo("images.npy"), "w", force_zip64=True) as array,
    ):
        np.lib.format.write_array_header_2_0(array, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for part in parts:
            array.write(np.ascontiguousarray(part).tobytes())
        array.close()
        if labels is not None:
            with archive.open(zipfile.ZipInfo("labels.npy"), "w") as array:
                np.lib.format.write_array(array, np.array([labels(k) for k in range(shape[0])], np.int64))


def with_progress(parts: Iterable[Tensor], num: int, progress: Progress) -> Iterator[np.ndarray]:
    """The parts of `num` images as arrays, each told to `progress`."""
    done = 0
    for part in parts:
        yield part.cpu().numpy()
        done += len(part)
        progress.step("sample", done, num)


def _pngs(parts: Iterable[np.ndarray], digits: int = 6) -> Iterator[tuple[str, bytes]]:
    index = 0
    for part in parts:
        for image in part:
            buffer = io.BytesIO()
            to_picture(image).save(buffer, "png")
            yield f"img_{index:0{digits}d}.png", buffer.getvalue()
            index += 1
