"""Packing: whole or not there, the same on every run, streamed, and `shapes`, which is made on the spot."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import textwrap
import time
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gantool.config.schema import DataConfig, RuntimeConfig
from gantool.data import download, shapes
from gantool.data.pack import PackedDataset, ensure_packed, open_packed, pack, packed_path, verify
from gantool.errors import DataError, GantoolError, UsageError
from gantool.prepare import prepare
from gantool.progress import Silent

SHAPES = DataConfig(name="shapes", size=8)
MINE = DataConfig(name="mine", size=8)


class Told:
    """A Progress that remembers."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.steps: list[tuple[int, int | None]] = []
        self.of: dict[str, list[tuple[int, int | None]]] = {}

    def say(self, text: str) -> None:
        self.words.append(text)

    def step(self, what: str, done: int, total: int | None, detail: str = "", left: float | None = None) -> None:
        self.steps.append((done, total))
        self.of.setdefault(what, []).append((done, total))


@pytest.fixture(scope="module")
def packed_shapes(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    return pack(DataConfig(), tmp_path_factory.mktemp("shapes"), None, Silent())


def write_images(root: Path, count: int, side: int = 8) -> Path:
    rng = np.random.default_rng(count)
    for number in range(count):
        path = root / "ab"[number % 2] / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)
    return root


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- shapes


def test_shapes_are_balanced_shuffled_and_distinct(packed_shapes: PackedDataset) -> None:
    assert packed_shapes.images.shape == (12_000, 32, 32, 3)
    assert packed_shapes.splits == {"train": (0, 10_000), "test": (10_000, 12_000)}
    assert packed_shapes.classes == tuple(sorted(shapes.SHAPES))
    for split, count in (("train", 1000), ("test", 200)):
        labels = packed_shapes.split(split)[1]
        assert np.bincount(labels).tolist() == [count] * 10
        assert not np.array_equal(labels, np.sort(labels)) and (np.diff(labels[:100]) != 1).any()
    flat = packed_shapes.images.reshape(len(packed_shapes.images), -1)
    assert len(np.unique(flat, axis=0)) == len(flat)  # no test image is among the training images


def test_shapes_can_be_told_apart(packed_shapes: PackedDataset) -> None:
    """The nearest mean outline recognises 9 of 10 test images, so that a small classifier is a fair judge of fakes."""

    def outlines(split: str) -> tuple[np.ndarray, np.ndarray]:
        pixels, labels = packed_shapes.split(split)
        return pixels.max(axis=3).reshape(len(pixels), -1) > 128, labels

    (seen, labels), (new, truth) = outlines("train"), outlines("test")
    means = np.stack([seen[labels == label].mean(axis=0) for label in range(10)])
    distances = ((new[:, None, :].astype(np.float32) - means) ** 2).sum(axis=2)
    assert (distances.argmin(axis=1) == truth).mean() > 0.9


def test_shapes_are_the_same_picture_at_any_size_and_block(monkeypatch: pytest.MonkeyPatch) -> None:
    def first(size: int, count: int = 60) -> np.ndarray:
        return np.stack(
            [pixels for _, (_, _, pixels) in zip(range(count), shapes.open_shapes(size).read(), strict=False)]
        )

    small, large = first(32), first(128)
    reduced = large.reshape(60, 32, 4, 32, 4, 3).mean(axis=(2, 4))
    assert np.abs(reduced - small).mean() < 1.5
    assert np.abs(reduced - small).max() < 110  # less than half of the contrast, where a pixel holds the tip of a star
    monkeypatch.setattr(shapes, "_BLOCK_PIXELS", 7 * 32 * 32)
    assert np.array_equal(first(32), small)


def test_distances_grow_no_faster_than_space() -> None:
    """|d(p) - d(q)| <= |p - q|: what makes clip(1/2 - d / w, 0, 1) an edge no sharper than a pixel of width w."""
    points = np.random.default_rng(0).uniform(-1.3, 1.3, (2, 20_000))
    nearby = points + np.random.default_rng(1).normal(0, 1e-4, points.shape)
    for name, distance in shapes.SHAPES.items():
        slope = np.abs(distance(*points) - distance(*nearby)) / np.hypot(*(points - nearby))
        assert slope.max() < 1.001, name


def test_shapes_are_packed_when_they_are_asked_for(tmp_path: Path) -> None:
    first = ensure_packed(SHAPES, tmp_path, Silent())
    before = first.path.stat().st_mtime_ns
    assert ensure_packed(SHAPES, tmp_path, Silent()).digest == first.digest
    assert first.path.stat().st_mtime_ns == before
    first.path.write_bytes(first.path.read_bytes()[:-1])
    assert ensure_packed(SHAPES, tmp_path, Silent()).digest == first.digest
    with pytest.raises(DataError, match="not packed"):
        ensure_packed(MINE, tmp_path, Silent())


def test_shapes_in_grey(tmp_path: Path) -> None:
    colour = pack(SHAPES, tmp_path, None, Silent())
    grey = pack(SHAPES.model_copy(update={"channels": 1}), tmp_path, None, Silent())
    assert grey.images.shape == (12_000, 8, 8, 1)
    luma = colour.images @ np.array([0.299, 0.587, 0.114])
    assert np.abs(grey.images[..., 0] - luma).max() <= 1


# --- the packed files


def test_packed_files_and_their_digest(tmp_path: Path) -> None:
    dataset = pack(MINE, tmp_path / "data", write_images(tmp_path / "in", 300), Silent())
    stem = dataset.path.stem
    assert stem.startswith("mine-8x8x3-") and len(stem) == len("mine-8x8x3-") + 8
    assert names_in(tmp_path / "data") == [f"{stem}.json", f"{stem}.labels.npy", f"{stem}.npy"]
    assert isinstance(dataset.images, np.memmap) and dataset.labels.dtype == np.int64
    labels = dataset.labels.astype("<i8").tobytes()
    expected = hashlib.sha256(b"(300, 8, 8, 3)" + dataset.images.tobytes() + labels).hexdigest()
    assert dataset.digest == expected and verify(dataset)
    assert np.array_equal(np.load(dataset.path), dataset.images)  # a plain .npy for anyone
    reopened = open_packed(MINE, tmp_path / "data")
    for field in ("path", "classes", "splits", "digest", "title"):
        assert getattr(reopened, field) == getattr(dataset, field)


def test_splits_are_views(packed_shapes: PackedDataset) -> None:
    pixels, labels = packed_shapes.split("test")
    assert np.shares_memory(pixels, packed_shapes.images) and np.shares_memory(labels, packed_shapes.labels)
    assert np.array_equal(pixels, packed_shapes.images[10_000:])
    with pytest.raises(DataError, match="shapes has no split 'valid', only train, test"):
        packed_shapes.split("valid")


def test_settings_that_mean_the_same_share_a_file(tmp_path: Path) -> None:
    path = packed_path(DataConfig(name="cifar10"), tmp_path)
    assert path == packed_path(DataConfig(name="cifar10", size=32, channels=3), tmp_path)
    others = [{"size": 16}, {"channels": 1}, {"fit": "pad"}, {"on_bad_image": "skip"}, {"name": "cifar100"}]
    paths = {packed_path(DataConfig(**{"name": "cifar10", **other}), tmp_path) for other in others}
    assert len(paths) == 5 and path not in paths


def test_packing_shows_how_far_it_is(tmp_path: Path) -> None:
    told = Told()
    pack(MINE, tmp_path / "data", write_images(tmp_path / "in", 300), told)
    assert told.of == {
        "files in in": [(300, 300)],
        "packing mine": [(256, 300), (300, 300)],
        "checking the data (MB)": [(0, 1), (1, 1)],
    }


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz", "w:bz2"])
def test_opening_an_archive_shows_how_much_of_it_has_been_read(mode: Any, tmp_path: Path) -> None:
    archive = tmp_path / "images.tar"
    with tarfile.open(archive, mode) as tar:
        tar.add(write_images(tmp_path / "in", 4), ".")
        (tmp_path / "noise").write_bytes(np.random.default_rng(0).bytes(5 * 2**20 + 2**19))
        tar.add(tmp_path / "noise", "noise")
    total = archive.stat().st_size >> 20
    told = Told()
    pack(MINE, tmp_path / "data", archive, told)
    steps = told.of["open images.tar (MB)"]
    assert total == 5 and steps[0] == (0, 5) and steps[-1] == (5, 5) and steps == sorted(set(steps))
    assert mode == "w" or len(steps) == 6  # of an uncompressed one the content of each member is jumped over


def test_missing_names_the_command_that_packs_it(tmp_path: Path) -> None:
    data = DataConfig(name="cifar10", size=16, fit="pad")
    with pytest.raises(DataError) as caught:
        open_packed(data, tmp_path)
    command = "gantool prepare --dataset cifar10 --set data.size=16 --set data.fit=pad"
    assert caught.value.hint == f"pack it first: {command} --set runtime.data_dir={tmp_path}"
    with pytest.raises(DataError) as caught:
        open_packed(MINE, Path("data"))
    assert caught.value.hint.endswith("gantool prepare --dataset mine --set data.size=8 --source FOLDER_OR_ARCHIVE")


def test_damage_is_noticed(tmp_path: Path) -> None:
    dataset = pack(SHAPES, tmp_path, None, Silent())
    labels, facts = dataset.path.with_suffix(".labels.npy"), dataset.path.with_suffix(".json")
    good = {path: path.read_bytes() for path in (dataset.path, labels, facts)}

    def replaced(**changes: object) -> bytes:
        return json.dumps({**json.loads(good[facts]), **changes}).encode()

    wrong_labels = tmp_path / "wrong.npy"
    np.save(wrong_labels, np.full(12_000, 10))
    damages = [
        (dataset.path, good[dataset.path][:-5]),
        (dataset.path, b"junk"),
        (labels, good[labels][:-8]),
        (labels, wrong_labels.read_bytes()),
        (facts, good[facts][:50]),
        (facts, b"[]"),
        (facts, replaced(shape=[11_999, 8, 8, 3])),
        (facts, replaced(format=0)),
        (facts, replaced(splits={"test": [0, 10]})),
        (facts, replaced(splits={"train": [0, 12_001]})),
        (facts, b"{}"),
    ]
    for path, content in damages:
        path.write_bytes(content)
        with pytest.raises(DataError, match="damaged") as caught:
            open_packed(SHAPES, tmp_path)
        assert "gantool prepare --dataset shapes" in caught.value.hint
        path.write_bytes(good[path])
    assert verify(open_packed(SHAPES, tmp_path))
    flipped = bytearray(good[dataset.path])
    flipped[-1] ^= 1
    dataset.path.write_bytes(flipped)
    assert not verify(open_packed(SHAPES, tmp_path))
    assert not verify(dataclasses.replace(dataset, path=tmp_path / "gone.npy"))


# --- the verb


def test_prepare_skips_what_is_right_and_repairs_what_is_not(tmp_path: Path) -> None:
    runtime = RuntimeConfig(data_dir=str(tmp_path / "data"), source=str(write_images(tmp_path / "in", 10)))
    told = Told()
    first = prepare(MINE, runtime, told)
    inode = first.path.stat().st_ino
    again = prepare(MINE, runtime.model_copy(update={"source": None}), told)  # done: the source is not needed
    assert again.path.stat().st_ino == inode
    flipped = bytearray(first.path.read_bytes())
    flipped[-1] ^= 1
    first.path.write_bytes(flipped)
    assert verify(prepare(MINE, runtime, told))
    first.path.unlink()
    assert verify(prepare(MINE, runtime, told))
    words = "\n".join(told.words)
    assert [
        words.count(text) for text in ("packed mine", "is packed, and whole", "does not have the digest", "damaged")
    ] == [
        3,
        1,
        1,
        1,
    ]


def test_prepare_of_shapes_takes_no_source(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no source"):
        prepare(SHAPES, RuntimeConfig(data_dir=str(tmp_path), source=str(tmp_path)), Silent())
    assert names_in(tmp_path) == []


def test_no_torch_is_loaded_for_packing(tmp_path: Path) -> None:
    source = write_images(tmp_path / "in", 4)
    code = f"""
        import sys
        from gantool.config.schema import DataConfig, RuntimeConfig
        from gantool.prepare import prepare
        from gantool.progress import Silent
        runtime = RuntimeConfig(data_dir={str(tmp_path / "data")!r}, source={str(source)!r})
        prepare(DataConfig(name="mine", size=8), runtime, Silent())
        assert not {{"torch", "torchvision"}} & sys.modules.keys()
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


# --- downloads


def test_download_hands_its_folder_to_the_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(name: str, root: Path) -> None:
        assert name == "cifar10" and socket.getdefaulttimeout() == 30
        for split in ("train", "test"):
            for number in range(10):
                path = root / split / f"class{number}" / "1.png"
                path.parent.mkdir(parents=True)
                Image.new("RGB", (32, 32), (number, 0, 0)).save(path)

    monkeypatch.setattr(download, "_fetch", fetch)
    dataset = prepare(DataConfig(name="cifar10"), RuntimeConfig(data_dir=str(tmp_path)), Silent())
    assert dataset.images[:, 0, 0, 0].tolist() == [*range(10), *range(10)]
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize(
    "error",
    [
        urllib.error.URLError("no route"),
        RuntimeError("Error downloading x:\nTried y, got:\nno route"),
        OSError("no route"),
    ],
)
def test_without_internet_the_hint_is_the_source(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(name: str, root: Path) -> None:
        raise error

    monkeypatch.setattr(download, "_fetch", fetch)
    with pytest.raises(DataError, match=r"mnist: the download failed \(.*no route.*\)$") as caught:
        pack(DataConfig(name="mnist"), tmp_path, None, Silent())
    assert "gantool prepare --dataset mnist" in caught.value.hint and "--source" in caught.value.hint
    assert names_in(tmp_path) == ["downloads"]


def test_every_known_dataset_has_a_download_or_says_why_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    called = []

    def recorder(name: str) -> object:
        return lambda root, **settings: called.append((name, root, settings))

    names = ("MNIST", "FashionMNIST", "KMNIST", "EMNIST", "CIFAR10", "CIFAR100")
    for name in names:
        monkeypatch.setattr(datasets, name, recorder(name))
    for name in ("mnist", "fashion_mnist", "kmnist", "emnist", "cifar10", "cifar100"):
        assert download.download(DataConfig(name=name), tmp_path, Silent()) == tmp_path / "downloads"
    assert [name for name, *_ in called] == list(names)
    assert all(root == tmp_path / "downloads" and settings["download"] for _, root, settings in called)
    assert called[3][2]["split"] == "balanced"
    with pytest.raises(DataError, match=r"fetch img_align_celeba.zip and list_eval_partition.txt from https") as caught:
        download.download(DataConfig(name="celeba"), tmp_path, Silent())
    assert "gantool prepare --dataset celeba" in caught.value.hint and caught.value.hint.endswith("--source FOLDER")
    with pytest.raises(DataError, match="not a known dataset"):
        download.download(MINE, tmp_path, Silent())


# --- interruptions


SLOW_PACKING = """
    import sys, time
    from pathlib import Path
    from gantool.config.schema import DataConfig
    from gantool.data import pack as module
    from gantool.progress import Silent

    class Slow(Silent):
        def step(self, what, done, total, detail="", left=None):
            if what == "packing mine":
                print(done, flush=True)
                time.sleep(60)

    module.pack(DataConfig(name="mine", size=8), Path(sys.argv[1]), Path(sys.argv[2]), Slow())
"""


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_packing_leaves_nothing_that_is_taken_for_whole(signal_number: int, tmp_path: Path) -> None:
    source, data_dir = write_images(tmp_path / "in", 300), tmp_path / "data"
    command = [sys.executable, "-c", textwrap.dedent(SLOW_PACKING), str(data_dir), str(source)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None and process.stdout.readline() == b"256\n"
        process.send_signal(signal_number)
        assert process.wait() != 0
    left = names_in(data_dir)
    assert all(name.startswith(".") and name.endswith(".tmp") for name in left)
    assert left == [] or signal_number != signal.SIGINT
    with pytest.raises(DataError, match="not packed"):
        open_packed(MINE, data_dir)
    for name in left:  # long ago, and so nobody's
        os.utime(data_dir / name, (time.time() - 7200, time.time() - 7200))
    young = data_dir / f".{packed_path(MINE, data_dir).name}.0000.tmp"  # of a process that is packing now
    young.write_bytes(b"")
    dataset = pack(MINE, data_dir, source, Silent())
    assert verify(dataset)
    assert [name for name in names_in(data_dir) if name.startswith(".")] == [young.name]


@pytest.mark.parametrize("point", range(4))
def test_a_death_while_the_files_get_their_names(point: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packing other images over old ones: after any number of the three renames the old json vouches for nothing."""
    pack(MINE, tmp_path / "data", write_images(tmp_path / "old", 20), Silent())
    renames = []

    class Death(BaseException):
        pass

    def replace(self: Path, target: Path, original: object = Path.replace) -> None:
        if len(renames) == point:
            raise Death
        renames.append(target.suffixes[-2:])
        os.replace(self, target)  # noqa: PTH105

    monkeypatch.setattr(Path, "replace", replace)
    new = write_images(tmp_path / "new", 20, side=9)
    if point < 3:
        with pytest.raises(Death):
            pack(MINE, tmp_path / "data", new, Silent())
        with pytest.raises(DataError, match="not packed"):
            open_packed(MINE, tmp_path / "data")
    else:
        assert verify(pack(MINE, tmp_path / "data", new, Silent()))
        assert len(renames) == 3


def test_two_processes_may_pack_the_same_at_once(tmp_path: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from gantool.config.schema import DataConfig
        from gantool.data.pack import ensure_packed, pack, verify
        from gantool.progress import Silent
        data, folder = DataConfig(name="shapes", size=8), Path(sys.argv[1])
        print("ready", flush=True)
        sys.stdin.readline()
        for _ in range(3):
            assert verify(pack(data, folder, None, Silent()))
            assert verify(ensure_packed(data, folder, Silent()))
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    assert len(names_in(tmp_path)) == 3


# --- limits of the machine


def in_subprocess(code: str, *arguments: object) -> str:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_full_disk_is_one_error_and_leaves_nothing(tmp_path: Path) -> None:
    """The limit on the size of files (RLIMIT_FSIZE) fails a write in the middle, as a full disk does."""
    code = """
        import resource, sys
        from pathlib import Path
        from gantool.config.schema import DataConfig
        from gantool.data.pack import pack
        from gantool.errors import GantoolError
        from gantool.progress import Silent
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        try:
            pack(DataConfig(name="shapes", size=8), Path(sys.argv[1]), None, Silent())
        except GantoolError as error:
            print(error.message, "|", error.hint)
    """
    said = in_subprocess(code, tmp_path)
    assert str(packed_path(SHAPES, tmp_path)) in said and "cannot be written: File too large" in said
    assert names_in(tmp_path) == []


def test_a_data_dir_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GantoolError, match="cannot be written"):
        pack(SHAPES, tmp_path / "file" / "data", None, Silent())


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    """250 images of 512x512, 197 MB packed, cost far less than that."""
    (tmp_path / "in").mkdir()
    Image.new("RGB", (512, 512), (1, 2, 3)).save(tmp_path / "in" / "0.png")
    for number in range(1, 250):
        (tmp_path / "in" / f"{number}.png").hardlink_to(tmp_path / "in" / "0.png")
    code = """
        import sys
        from pathlib import Path
        from gantool.config.schema import DataConfig
        from gantool.data.pack import pack, verify
        from gantool.progress import Silent

        def peak():
            line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
            return int(line.split()[1]) / 1024

        before = peak()
        assert verify(pack(DataConfig(name="mine", size=512), Path(sys.argv[1]), Path(sys.argv[2]), Silent()))
        print(peak() - before)
    """
    assert float(in_subprocess(code, tmp_path / "data", tmp_path / "in")) < 100
