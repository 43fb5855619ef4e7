"""Blocks, streams and the kept statistics of real images, with a network that is simple enough to check."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gantool.data.pack import PackedDataset
from gantool.errors import GantoolError
from gantool.metrics.cache import once
from gantool.metrics.features import Extractor, collect, exact_float32, reblock
from gantool.metrics.reference import real_statistics
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


def packed(tmp_path: Path, num: int = 50) -> PackedDataset:
    images = noise(num).numpy()
    splits = {"train": (0, num - 10), "test": (num - 10, num)}
    return PackedDataset(tmp_path / "x.npy", images, np.arange(num) % 2, ("a", "b"), splits, "c" * 64, "noise")


@pytest.mark.parametrize("sizes", [[1] * 11, [7, 4], [11], [0, 3, 0, 8], [4, 4, 3]])
def test_reblock_keeps_order_and_fills_blocks(sizes: list[int]) -> None:
    images = noise(11)
    blocks = list(reblock(torch.split(images, sizes), 4))
    assert [len(block) for block in blocks] == [4, 4, 3]
    assert torch.equal(torch.cat(blocks), images)


@pytest.mark.parametrize("batch", [1, 3, 7, 64])
def test_the_network_sees_one_shape_only(batch: int) -> None:
    extractor, shapes = toy()
    images = noise(10)
    whole = extractor(images)
    parts = [extractor(part) for part in torch.split(images, batch)]
    assert set(shapes) == {(4, 8, 8, 3)}
    assert torch.equal(torch.cat([part.pooled for part in parts]), whole.pooled)
    assert torch.equal(torch.cat([part.logits for part in parts]), whole.logits)


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_statistics_do_not_depend_on_the_batches_of_the_stream(batch: int) -> None:
    images = noise(33)
    one, shapes = toy()
    expected = collect([images], one, 33, Silent(), "x")
    found = collect(torch.split(images, batch), toy()[0], 33, Silent(), "x")
    assert len(shapes) == 9
    assert found.count == 33 and found.logits.shape == (33, 2)
    assert np.array_equal(found.moments.gram, expected.moments.gram)
    assert np.array_equal(found.moments.total, expected.moments.total)
    assert np.array_equal(found.logits, expected.logits)


def test_collect_takes_as_many_as_it_was_asked_for_and_no_more() -> None:
    def endless() -> Iterator[Tensor]:
        while True:
            yield noise(3)

    found = collect(endless(), toy()[0], 10, Silent(), "x", keep_logits=False)
    assert found.count == 10 and found.logits.shape == (0, 2)
    expected = collect([torch.cat([noise(3)] * 4)[:10]], toy()[0], 10, Silent(), "x")
    assert np.array_equal(found.moments.gram, expected.moments.gram)
    with pytest.raises(GantoolError, match="found 9 images, expected 10"):
        collect([noise(9)], toy()[0], 10, Silent(), "x")


@pytest.mark.parametrize("broken", ["features", "logits"])
def test_broken_networks_are_told(broken: str) -> None:
    value = float("nan")
    found = torch.full((4, 6), value if broken == "features" else 1.0), torch.full((4, 2), value)
    extractor = dataclasses.replace(toy()[0], network=lambda _: found)
    with pytest.raises(GantoolError, match=f"{broken} that are NaN"):
        collect([noise(4)], extractor, 4, Silent(), "x")


def test_settings_of_precision_come_back() -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    try:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
        with pytest.raises(KeyError), exact_float32():
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cudnn.benchmark
            raise KeyError
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cudnn.allow_tf32 and torch.backends.cudnn.benchmark
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = before[1:]


def test_real_statistics_are_computed_once(tmp_path: Path) -> None:
    data = packed(tmp_path)
    extractor, shapes = toy()
    first = real_statistics(data, "train", None, extractor, tmp_path, Silent(), keep_logits=True)
    runs = len(shapes)
    again = real_statistics(data, "train", 10**6, extractor, tmp_path, Silent(), keep_logits=True)
    assert runs == 10 and len(shapes) == runs
    assert first.count == again.count == 40
    assert np.array_equal(first.moments.gram, again.moments.gram) and np.array_equal(first.logits, again.logits)
    assert again.moments.gram.dtype == np.int64


def test_every_part_of_the_key_counts(tmp_path: Path) -> None:
    data, (extractor, _) = packed(tmp_path), toy()
    other_data = PackedDataset(data.path, data.images, data.labels, data.classes, data.splits, "e" * 64, data.title)
    for key in (
        (data, "train", None, extractor, False),
        (data, "train", None, extractor, True),
        (data, "train", 10, extractor, False),
        (data, "test", None, extractor, False),
        (other_data, "train", None, extractor, False),
        (data, "train", None, toy(digest="f" * 64)[0], False),
    ):
        real_statistics(*key[:4], tmp_path, Silent(), key[4])
    assert len(list((tmp_path / "metrics").glob("*.npz"))) == 6


def test_fewer_images_are_spread_evenly(tmp_path: Path) -> None:
    data, (extractor, _) = packed(tmp_path), toy()
    found = real_statistics(data, "train", 8, extractor, tmp_path, Silent())
    expected = collect([torch.from_numpy(np.array(data.images[0:40:5]))], extractor, 8, Silent(), "x")
    assert np.array_equal(found.moments.gram, expected.moments.gram)


@pytest.mark.parametrize("damage", ["flipped bit", "truncated", "empty", "not an npz", "pickle"])
def test_damaged_files_are_computed_again(damage: str, tmp_path: Path) -> None:
    data, (extractor, shapes) = packed(tmp_path), toy()
    first = real_statistics(data, "train", None, extractor, tmp_path, Silent())
    (path,) = (tmp_path / "metrics").glob("*.npz")
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
    again = real_statistics(data, "train", None, extractor, tmp_path, rows)
    assert np.array_equal(first.moments.gram, again.moments.gram)
    assert len(shapes) == 2 * runs and "damaged" in rows.words[0] and str(path) in rows.words[0]
    assert path.read_bytes() == whole


def test_a_folder_that_cannot_be_written_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "metrics").write_text("in the way")
    rows = Rows()
    found = real_statistics(packed(tmp_path), "train", None, toy()[0], tmp_path, rows)
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
