"""Blocks and the kept statistics of real images, with a network that is simple enough to check."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gantool.data.image_sets import ImageSet
from gantool.errors import GantoolError
from gantool.metrics.cache import once
from gantool.metrics.collection import Work, collect
from gantool.metrics.features import Extractor
from gantool.metrics.reference import kept_statistics
from gantool.metrics.statistics import Need
from gantool.precision import float32_products
from gantool.progress import Silent


class Rows(Silent):
    """Remembers the words."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def say(self, text: str) -> None:
        self.words.append(text)


def toy(block: int = 4, digest: str = "d" * 64) -> tuple[Extractor, list[tuple[int, ...]]]:
    """Features: the mean of each channel and of its square; it also tells the shapes it was run on."""
    shapes: list[tuple[int, ...]] = []

    def network(images: Tensor) -> tuple[Tensor, Tensor]:
        shapes.append(tuple(images.shape))
        x = images.float() / 255
        pooled = torch.cat([x.mean((1, 2)), (x * x).mean((1, 2))], 1)
        return pooled, pooled[:, :2] * 10

    return Extractor("toy", digest, "toy|u8", "toy|logits", 6, 2, block, torch.device("cpu"), network), shapes


def noise(num: int) -> Tensor:
    return torch.randint(0, 256, (num, 8, 8, 3), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)


def image_set(images: Tensor) -> ImageSet:
    labels = np.arange(len(images)) % 2
    return ImageSet("noise", "c" * 64, len(images), (8, 8, 3), lambda a, b: images[a:b], labels, ("a", "b"))


@pytest.mark.parametrize("batch", [1, 3, 7, 64])
def test_the_network_sees_one_shape_only(batch: int) -> None:
    extractor, shapes = toy()
    images = noise(10)
    whole = extractor(images)
    parts = [extractor(part) for part in torch.split(images, batch)]
    assert set(shapes) == {(4, 8, 8, 3)}
    assert torch.equal(torch.cat([part.pooled for part in parts]), whole.pooled)
    assert torch.equal(torch.cat([part.logits for part in parts]), whole.logits)


@pytest.mark.parametrize("broken", ["features", "logits"])
def test_broken_networks_are_told(broken: str) -> None:
    value = float("nan")
    found = torch.full((4, 6), value if broken == "features" else 1.0), torch.full((4, 2), value)
    extractor = dataclasses.replace(toy()[0], network=lambda _: found)
    with pytest.raises(GantoolError, match=f"{broken} that are NaN"):
        collect(image_set(noise(4)), extractor, Need(logits=True), Work(Silent()), "x")


def test_settings_of_precision_come_back() -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    try:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
        with pytest.raises(KeyError), float32_products(tf32=False):
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cudnn.benchmark
            raise KeyError
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cudnn.allow_tf32 and torch.backends.cudnn.benchmark
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = before[1:]


def test_real_statistics_are_computed_once(tmp_path: Path) -> None:
    extractor, shapes = toy()
    need = Need(logits=True, features=True)
    first = kept_statistics(image_set(noise(40)), extractor, need, tmp_path, Work(Silent()))
    runs = len(shapes)
    again = kept_statistics(image_set(noise(40)), extractor, need, tmp_path, Work(Silent()))
    assert runs == 10 and len(shapes) == runs
    assert first.count == again.count == 40
    assert np.array_equal(first.moments.gram, again.moments.gram) and again.moments.gram.dtype == np.int64
    assert first.logits is not None and first.features is not None
    assert np.array_equal(first.logits, again.logits) and np.array_equal(first.features, again.features)
    assert np.array_equal(first.features, extractor(noise(40)).pooled.numpy())


def test_every_part_of_the_key_counts(tmp_path: Path) -> None:
    extractor, images = toy()[0], image_set(noise(40))
    other = dataclasses.replace(images, digest="e" * 64)
    for key in (
        (images, extractor, Need()),
        (image_set(noise(10)), extractor, Need()),
        (other, extractor, Need()),
        (images, toy(digest="f" * 64)[0], Need()),
        (images, dataclasses.replace(extractor, protocol="another"), Need()),
    ):
        kept_statistics(*key, tmp_path, Work(Silent()))
    assert len(list(tmp_path.glob("*.npz"))) == 5


def test_a_file_grows_by_what_is_needed_and_is_not_computed_twice(tmp_path: Path) -> None:
    extractor, shapes = toy()
    work, images = Work(Silent()), image_set(noise(40))
    for need, runs in (
        (Need(), 10),
        (Need(features=True), 20),  # the first file lacks them
        (Need(logits=True), 30),
        (Need(features=True, logits=True), 30),  # the last file has both
        (Need(), 30),
    ):
        kept_statistics(images, extractor, need, tmp_path, work)
        assert len(shapes) == runs
    assert len(list(tmp_path.glob("*.npz"))) == 1


@pytest.mark.parametrize("damage", ["flipped bit", "truncated", "empty", "not an npz", "pickle"])
def test_damaged_files_are_computed_again(damage: str, tmp_path: Path) -> None:
    extractor, shapes = toy()
    first = kept_statistics(image_set(noise(40)), extractor, Need(), tmp_path, Work(Silent()))
    (path,) = tmp_path.glob("*.npz")
    whole = path.read_bytes()
    gram = whole.index(first.moments.gram.tobytes())
    if damage == "pickle":
        np.savez(path, key=np.array([{"x": 1}], dtype=object))
    else:
        path.write_bytes(
            {
                "flipped bit": whole[: gram + 5] + bytes([whole[gram + 5] ^ 1]) + whole[gram + 6 :],
                "truncated": whole[: len(whole) // 2],
                "empty": b"",
                "not an npz": b"hello",
            }[damage]
        )
    runs, rows = len(shapes), Rows()
    again = kept_statistics(image_set(noise(40)), extractor, Need(), tmp_path, Work(rows))
    assert np.array_equal(first.moments.gram, again.moments.gram)
    assert len(shapes) == 2 * runs and "damaged" in rows.words[0] and str(path) in rows.words[0]
    assert path.read_bytes() == whole


def test_a_folder_that_cannot_be_written_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "metrics").write_text("in the way")
    rows = Rows()
    found = kept_statistics(image_set(noise(40)), toy()[0], Need(), tmp_path / "metrics", Work(rows))
    assert found.count == 40
    assert "is not kept" in rows.words[-1] and str(tmp_path / "metrics") in rows.words[-1]


def test_one_computes_and_the_others_wait(tmp_path: Path) -> None:
    """Threads stand for processes: each opens the lock file itself, and flock belongs to the open file."""
    computed, found, inside = [], [], threading.Event()

    def make() -> str:
        computed.append(1)
        inside.set()
        waiting.wait(20)
        return "result"

    class Waiting(Silent):
        def say(self, text: str) -> None:
            assert text == "waiting for another process that computes the thing"
            waiting.set()

    def read(path: Path) -> str | None:
        return path.read_text() if path.exists() else None

    def work() -> None:
        found.append(once(tmp_path / "file", read, make, Path.write_text, "the thing", Waiting()))

    waiting = threading.Event()
    threads = [threading.Thread(target=work) for _ in range(2)]
    threads[0].start()
    assert inside.wait(20)
    threads[1].start()
    for thread in threads:
        thread.join(20)
    assert found == ["result", "result"] and computed == [1]
    assert waiting.is_set()
