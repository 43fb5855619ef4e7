"""The readers give the pixels and labels of the original files: compared with torchvision's readers on files written
here in the official formats, and with the official Fashion-MNIST where it is installed."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import tarfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets
from torchvision.transforms import functional as transforms

from gantool.config.schema import KNOWN_DATASETS, DataConfig
from gantool.data import cifar
from gantool.data.idx import FAMILIES
from gantool.data.pack import PackedDataset, pack
from gantool.errors import DataError
from gantool.progress import Silent

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # Debian package dataset-fashion-mnist
RNG = np.random.default_rng(0)


def packed(name: str, tmp_path: Path, source: Path, **settings: object) -> PackedDataset:
    return pack(DataConfig(name=name, **settings), tmp_path / "packed", source, Silent())


# --- IDX


def write_idx(path: Path, values: np.ndarray) -> None:
    content = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)


def write_mnist(folder: Path, suffix: str = "", prefixes: tuple[str, str] = ("train", "t10k"), size: int = 28) -> None:
    for prefix, count in zip(prefixes, (1250, 30), strict=True):
        images = RNG.integers(0, 256, (count, size, size), dtype=np.uint8)
        write_idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", RNG.integers(0, 10, count, dtype=np.uint8))


@pytest.mark.parametrize(
    ("name", "reader"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST"), ("kmnist", "KMNIST")]
)
def test_idx_agrees_with_torchvision(name: str, reader: str, tmp_path: Path) -> None:
    write_mnist(tmp_path / reader / "raw")
    dataset = packed(name, tmp_path, tmp_path)
    assert dataset.splits == {"train": (0, 1250), "test": (1250, 1280)}
    for split in ("train", "test"):
        theirs = getattr(datasets, reader)(tmp_path, train=split == "train")
        images, labels = dataset.split(split)
        assert np.array_equal(images[..., 0], theirs.data.numpy())
        assert np.array_equal(labels, theirs.targets.numpy())
    assert dataset.title == f"{name} (1250 train + 30 test images)"  # not the published 60,000
    expected = tuple("0123456789") if name == "mnist" else tuple(theirs.classes)
    assert dataset.classes == expected


def test_emnist_is_the_balanced_part_turned_upright(tmp_path: Path) -> None:
    write_mnist(tmp_path / "EMNIST" / "raw", prefixes=("emnist-balanced-train", "emnist-balanced-test"))
    dataset = packed("emnist", tmp_path, tmp_path)
    theirs = datasets.EMNIST(tmp_path, split="balanced", train=False)  # torchvision leaves the images transposed
    assert np.array_equal(dataset.split("test")[0][..., 0], theirs.data.numpy().transpose(0, 2, 1))
    assert dataset.classes == tuple(theirs.classes)


def test_idx_layouts_are_all_the_same(tmp_path: Path) -> None:
    write_mnist(tmp_path / "flat")
    contents = {file.name: file.read_bytes() for file in (tmp_path / "flat").iterdir()}
    digests = set()
    for number, layout in enumerate(("", "raw", "MNIST", "MNIST/raw", "gzipped", "dotted")):
        root = tmp_path / str(number)
        folder = root if layout in ("gzipped", "dotted") else root / layout
        folder.mkdir(parents=True)
        for name, content in contents.items():
            if layout == "gzipped":
                (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / (name.replace("-idx", ".idx") if layout == "dotted" else name)).write_bytes(content)
        digests.add(packed("mnist", root, root).digest)
    assert len(digests) == 1


def test_a_file_of_the_set_stands_for_its_folder(tmp_path: Path) -> None:
    write_mnist(tmp_path / "in", ".gz")
    one = packed("mnist", tmp_path / "a", tmp_path / "in" / "t10k-labels-idx1-ubyte.gz")
    assert one.digest == packed("mnist", tmp_path / "b", tmp_path / "in").digest


def test_pad_surrounds_mnist_with_black(tmp_path: Path) -> None:
    write_mnist(tmp_path / "in")
    native = packed("mnist", tmp_path, tmp_path / "in")
    padded = packed("mnist", tmp_path, tmp_path / "in", size=32, fit="pad", channels=3)
    expected = np.pad(native.images, ((0, 0), (2, 2), (2, 2), (0, 0))).repeat(3, axis=3)
    assert np.array_equal(padded.images, expected)


def test_resized_like_pil(tmp_path: Path) -> None:
    write_mnist(tmp_path / "in")
    native = packed("mnist", tmp_path, tmp_path / "in")
    for size in (16, 32):
        resized = packed("mnist", tmp_path, tmp_path / "in", size=size)
        expected = Image.fromarray(native.images[7, :, :, 0]).resize((size, size), Image.Resampling.LANCZOS)
        assert np.array_equal(resized.images[7, :, :, 0], np.asarray(expected))


@pytest.mark.skipif(not FASHION_MNIST.is_dir(), reason=f"no {FASHION_MNIST} (package dataset-fashion-mnist)")
def test_official_fashion_mnist(tmp_path: Path) -> None:
    dataset = packed("fashion_mnist", tmp_path, FASHION_MNIST)
    known = KNOWN_DATASETS["fashion_mnist"]
    assert dataset.title == "fashion_mnist"
    assert dataset.splits == {"train": (0, known.num_train), "test": (known.num_train, 70_000)}
    assert np.bincount(dataset.split("train")[1]).tolist() == [6000] * 10
    for prefix, split in (("train", "train"), ("t10k", "test")):
        raw = gzip.decompress((FASHION_MNIST / f"{prefix}-images-idx3-ubyte.gz").read_bytes())
        assert raw[16:] == dataset.split(split)[0].tobytes()
    assert [dataset.classes[label] for label in dataset.labels[:2]] == ["Ankle boot", "T-shirt/top"]


# --- CIFAR


def python_2_pickle(value: object) -> bytes:
    """`value` as Python 2 pickled it (protocol 2): the form of the official files, which Python 3 no longer writes."""

    def short(text: bytes) -> bytes:
        return b"U" + bytes([len(text)]) + text

    def encode(item: object) -> bytes:
        if isinstance(item, dict):
            return b"}(" + b"".join(encode(key) + encode(entry) for key, entry in item.items()) + b"u"
        if isinstance(item, list):
            return b"](" + b"".join(map(encode, item)) + b"e"
        if isinstance(item, bytes):
            return b"T" + struct.pack("<i", len(item)) + item
        if isinstance(item, int):
            return b"J" + struct.pack("<i", item)
        assert isinstance(item, np.ndarray) and item.dtype == np.uint8
        dtype = b"cnumpy\ndtype\n" + short(b"u1") + b"K\x00K\x01\x87R(K\x03" + short(b"|") + b"NNN"
        dtype += encode(-1) + encode(-1) + b"K\x00tb"
        made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + short(b"b") + b"\x87R"
        shape = b"(" + b"".join(map(encode, item.shape)) + b"t"
        return made + b"(K\x01" + shape + dtype + b"\x89" + encode(item.tobytes()) + b"tb"

    return b"\x80\x02" + encode(value) + b"."


def write_cifar(root: Path, name: str, monkeypatch: pytest.MonkeyPatch, count: int = 20) -> Path:
    """Both versions of a small CIFAR in `root`; the MD5 tables (ours and torchvision's) are set to its files."""
    ten = name == "cifar10"
    python, binary = cifar.VERSIONS[name]
    reader = datasets.CIFAR10 if ten else datasets.CIFAR100
    num_classes = 10 if ten else 100
    names = [f"class{number}".encode() for number in range(num_classes)]
    md5: dict[str, str] = {}

    def write(file: str, value: object) -> None:
        content = python_2_pickle(value)
        (root / python.folder / file).write_bytes(content)
        md5[file] = hashlib.md5(content).hexdigest()
        monkeypatch.setitem(cifar.OFFICIAL_MD5, file, md5[file])

    for version in (python, binary):
        (root / version.folder).mkdir(parents=True)
    pairs = zip((*python.train, python.test), (*binary.train, binary.test), strict=True)
    for python_file, binary_file in pairs:
        pixels = RNG.integers(0, 256, (count, 3072), dtype=np.uint8)
        labels = RNG.integers(0, num_classes, count)
        coarse = (labels * 7 % 20).astype(np.uint8)
        keys = (
            {b"labels": labels.tolist()}
            if ten
            else {b"coarse_labels": coarse.tolist(), b"fine_labels": labels.tolist()}
        )
        write(python_file, {b"batch_label": b"a batch", **keys, b"data": pixels})
        first = [labels[:, None]] if ten else [coarse[:, None], labels[:, None]]
        table = np.concatenate([*first, pixels], axis=1).astype(np.uint8)
        (root / binary.folder / binary_file).write_bytes(table.tobytes())
    write(python.names, {b"label_names" if ten else b"fine_label_names": names})
    (root / binary.folder / binary.names).write_bytes(b"\n".join(names) + b"\n\n")
    monkeypatch.setattr(reader, "train_list", [[file, md5[file]] for file in python.train])
    monkeypatch.setattr(reader, "test_list", [[python.test, md5[python.test]]])
    monkeypatch.setattr(reader, "meta", {**reader.meta, "md5": md5[python.names]})
    return root


def test_md5_list_is_the_official_one() -> None:
    lists = [reader.train_list + reader.test_list for reader in (datasets.CIFAR10, datasets.CIFAR100)]
    official = dict(map(tuple, lists[0] + lists[1]))
    official |= {reader.meta["filename"]: reader.meta["md5"] for reader in (datasets.CIFAR10, datasets.CIFAR100)}
    assert official == cifar.OFFICIAL_MD5


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_agrees_with_torchvision(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_cifar(tmp_path / "in", name, monkeypatch)
    dataset = packed(name, tmp_path, root)
    for split in ("train", "test"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy on the module names that Python 2 wrote
            theirs = getattr(datasets, name.upper())(root, train=split == "train")
        images, labels = dataset.split(split)
        assert np.array_equal(images, theirs.data)
        assert labels.tolist() == theirs.targets
    assert list(dataset.classes) == theirs.classes
    assert dataset.title.startswith(f"{name} (") and "JPEG" not in dataset.title


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_versions_and_archives_are_all_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_cifar(tmp_path / "in", name, monkeypatch)
    sources = []
    for version in cifar.VERSIONS[name]:
        sources += [root / version.folder, tmp_path / f"{version.folder.replace('-batches-py', '-python')}.tar.gz"]
        with tarfile.open(sources[-1], "w:gz") as archive:
            for file in sorted((root / version.folder).iterdir(), reverse=True):  # not in the order of the batches
                archive.add(file, f"{version.folder}/{file.name}")
    sources.append(tmp_path)  # finds an archive in a folder
    made = [packed(name, tmp_path / str(number), source) for number, source in enumerate(sources)]
    assert len({dataset.digest for dataset in made}) == 1
    assert len({dataset.classes for dataset in made}) == 1


# --- collections of images


def write_tree(root: Path, names: list[str], size: tuple[int, int] = (9, 9), **save: object) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RNG.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path, **save)
    return root


def archive_of(root: Path, kind: str, names: list[str] | None = None) -> Path:
    """All of `root`, or just `names`, in the order of `names`, as a zip or tar beside it."""
    path = root.with_name(f"{root.name}.{kind}")
    names = names or [str(file.relative_to(root)) for file in root.rglob("*") if file.is_file()]
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as zipped:
            for name in names:
                zipped.write(root / name, name)
    else:
        with tarfile.open(path, f"w:{kind[4:]}") as archive:
            for name in names:
                archive.add(root / name, f"./{name}")
    return path


def test_class_folders_agree_with_torchvision(tmp_path: Path) -> None:
    names = [f"{label}/{number}.png" for label in ("b", "a", "Z", "c d") for number in (10, 9, 1)]
    root = write_tree(tmp_path / "in", names, size=(8, 8))
    dataset = packed("mine", tmp_path, root, size=8)
    theirs = datasets.ImageFolder(str(root))
    assert list(dataset.classes) == theirs.classes
    assert dataset.labels.tolist() == theirs.targets
    assert np.array_equal(dataset.images, np.stack([np.asarray(image) for image, _ in theirs]))
    assert dataset.title == "mine"


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.xz"])
def test_archives_equal_their_folder_whatever_their_order(kind: str, tmp_path: Path) -> None:
    names = [f"{split}/{label}/{n}.jpg" for split in ("train", "test") for label in ("a", "b") for n in range(40)]
    root = write_tree(tmp_path / "in", names)
    archive = archive_of(root, kind, RNG.permutation(names).tolist())
    one, other = packed("mine", tmp_path / "a", root, size=8), packed("mine", tmp_path / "b", archive, size=8)
    assert one.digest == other.digest
    assert one.splits == other.splits == {"train": (0, 80), "test": (80, 160)}
    assert one.labels.tolist() == ([0] * 40 + [1] * 40) * 2


@pytest.mark.parametrize(
    ("names", "classes", "labels", "splits"),
    [
        (["2.png", "10.png"], (), [-1, -1], {"train": (0, 2)}),
        (["all/1.png", "all/2.png"], (), [-1, -1], {"train": (0, 2)}),
        (["x/y/a/1.png", "x/y/b/1.png"], ("a", "b"), [0, 1], {"train": (0, 2)}),
        (["a/1.png", "train/1.png"], ("a", "train"), [0, 1], {"train": (0, 2)}),
        (["x/train/1.png", "x/test/1.png"], (), [-1, -1], {"train": (0, 1), "test": (1, 2)}),
        (
            ["Train/a/1.png", "Train/b/deep/1.png", "val/b/1.png", "test/9.png"],
            ("a", "b"),
            [0, 1, 1, -1],
            {"train": (0, 2), "valid": (2, 3), "test": (3, 4)},
        ),
        (["training/1.png"], (), [-1], {"train": (0, 1)}),
    ],
)
def test_layouts(
    names: list[str], classes: tuple[str, ...], labels: list[int], splits: dict[str, object], tmp_path: Path
) -> None:
    root = write_tree(tmp_path / "in", [*names, ".hidden/1.png"])
    (root / "README.txt").write_text("not an image")
    dataset = packed("mine", tmp_path, root, size=8)
    assert (dataset.classes, dataset.labels.tolist(), dataset.splits) == (classes, labels, splits)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a/1.png", "b/1.png", "2.png"], "2.png lies beside class folders"),
        (["train/a/1.png", "train/b/1.png", "test/c/1.png"], "the test split has class folders that train has not"),
        (["test/1.png", "val/1.png"], "there is no train folder"),
        (["train/1.png", "val/1.png", "valid/2.png"], "both val and valid are the valid split"),
    ],
)
def test_layouts_that_mean_nothing(names: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        packed("mine", tmp_path, write_tree(tmp_path / "in", names), size=8)


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "in", ["a/1.png", "b/1.png"])
    write_tree(tmp_path / "elsewhere", ["2.png"])
    (root / "c").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "around").symlink_to(root)
    dataset = packed("mine", tmp_path, root, size=8)
    assert (dataset.classes, len(dataset.images)) == (("a", "b", "c"), 3)


@pytest.mark.parametrize(("suffix", "title"), [("jpg", "cifar10 (JPEG)"), ("png", "cifar10 (PNG)")])
def test_a_known_dataset_from_images_says_so(suffix: str, title: str, tmp_path: Path) -> None:
    names = [f"{split}/class{n}/{i}.{suffix}" for split in ("train", "test") for n in range(10) for i in range(2)]
    root = write_tree(tmp_path / "in", names, size=(32, 32))
    dataset = packed("cifar10", tmp_path, root)
    assert dataset.title == f"{title} (20 train + 20 test images)"
    assert dataset.splits == {"train": (0, 20), "test": (20, 40)}
    expected = np.asarray(Image.open(root / "train" / "class0" / f"1.{suffix}"))
    assert np.array_equal(dataset.images[1], expected)


def test_fit_policies(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 256, (20, 41, 3), dtype=np.uint8)
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in" / "wide.png")
    made = {
        fit: packed("mine", tmp_path, tmp_path / "in", size=16, fit=fit).images[0] for fit in ("crop", "pad", "squash")
    }
    image, lanczos = Image.fromarray(pixels), Image.Resampling.LANCZOS
    assert np.array_equal(made["squash"], np.asarray(image.resize((16, 16), lanczos)))
    assert np.array_equal(made["crop"], np.asarray(image.crop((10, 0, 30, 20)).resize((16, 16), lanczos)))
    assert np.array_equal(made["pad"][4:12], np.asarray(image.resize((16, 8), lanczos)))
    assert not made["pad"][:4].any() and not made["pad"][12:].any()
    cropped = packed("mine", tmp_path, tmp_path / "in", size=20).images[
        0
    ]  # the short side is right: pixels as they are
    assert np.array_equal(cropped, pixels[:, 10:30])


def test_reduction_is_antialiased(tmp_path: Path) -> None:
    """A checkerboard of single pixels becomes its mean, not a moire of black and white."""
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    (tmp_path / "in").mkdir()
    Image.fromarray(board).save(tmp_path / "in" / "board.png")
    inner = packed("mine", tmp_path, tmp_path / "in", size=8).images[0, 1:-1, 1:-1]
    assert inner.min() >= 126 and inner.max() <= 129


# --- CelebA


@pytest.fixture
def celeba(tmp_path: Path) -> Path:
    root = tmp_path / "celeba"
    names = [f"{number:06d}.jpg" for number in range(1, 8)]
    write_tree(root / "img_align_celeba", names, size=(178, 218))
    lines = [f"{name} {split}\n" for name, split in zip(names, "0120010", strict=True)]
    (root / "list_eval_partition.txt").write_text("".join(lines))
    return root


def test_celeba_splits_crop_and_places(celeba: Path, tmp_path: Path) -> None:
    dataset = packed("celeba", tmp_path, celeba)
    assert dataset.splits == {"train": (0, 4), "valid": (4, 6), "test": (6, 7)}
    assert dataset.classes == () and set(dataset.labels.tolist()) == {-1}
    assert dataset.title == "celeba (4 train + 2 valid + 1 test images)"
    order = [1, 4, 5, 7, 2, 6, 3]
    for number, image in zip(order, dataset.images, strict=True):
        original = Image.open(celeba / "img_align_celeba" / f"{number:06d}.jpg")
        square = transforms.center_crop(original, [178, 178])
        expected = transforms.resize(square, [64, 64], transforms.InterpolationMode.LANCZOS)
        assert np.array_equal(image, np.asarray(expected))
    images = archive_of(celeba / "img_align_celeba", "zip")
    zipped = tmp_path / "zipped"
    zipped.mkdir()
    images.rename(zipped / images.name)
    (zipped / "list_eval_partition.txt").write_bytes((celeba / "list_eval_partition.txt").read_bytes())
    for number, source in enumerate((celeba.parent, celeba / "img_align_celeba", zipped, zipped / images.name)):
        assert packed("celeba", tmp_path / str(number), source).digest == dataset.digest


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (None, "there is no list_eval_partition.txt"),
        ("000001.jpg 0\n", "does not list 6 images"),
        ("000001.jpg 3\n", r"partition.txt:1: found '000001.jpg 3'"),
        ("".join(f"{n:06d}.jpg 0\n" for n in range(1, 10)), r"2 images of .* are not there \(000008.jpg, 000009.jpg\)"),
        ("000001.jpg 1\n", "lists no training image"),
    ],
)
def test_celeba_partition_must_fit(lines: str | None, message: str, celeba: Path, tmp_path: Path) -> None:
    (celeba / "list_eval_partition.txt").unlink()
    if lines is not None:
        (celeba / "list_eval_partition.txt").write_text(lines)
    with pytest.raises(DataError, match=message):
        packed("celeba", tmp_path, celeba)


# --- one image


def encoded(image: Image.Image, kind: str, **save: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **save)
    return stream.getvalue()


GREY = RNG.integers(0, 256, (8, 8), dtype=np.uint8)
RGB = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (8, 8), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (8, 8), dtype=np.uint16)


def grey_3(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=2)


def mode_cases() -> dict[str, tuple[bytes, np.ndarray]]:
    rgba = Image.fromarray(np.dstack([RGB, ALPHA]))
    over_black = np.rint(RGB * (ALPHA[..., None] / 255))
    palette = Image.fromarray(RGB).quantize(16)
    palette_pixels = np.asarray(palette.convert("RGB"))
    holes = np.asarray(palette)[..., None] == 3
    cmyk = Image.fromarray(RGB).convert("CMYK")
    blank = Image.new("RGB", (8, 8))
    deep = np.rint(DEEP / 257)
    oriented = Image.Exif()
    oriented[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to see it upright
    return {
        "grey": (encoded(Image.fromarray(GREY), "PNG"), grey_3(GREY)),
        "bilevel": (encoded(Image.fromarray(GREY > 99), "PNG"), grey_3((GREY > 99) * 255)),
        "rgb": (encoded(Image.fromarray(RGB), "BMP"), RGB),
        "rgba": (encoded(rgba, "PNG"), over_black),
        "grey with alpha": (
            encoded(Image.fromarray(np.dstack([GREY, ALPHA]), "LA"), "PNG"),
            grey_3(np.rint(GREY * (ALPHA / 255))),
        ),
        "16 bit": (encoded(Image.fromarray(DEEP), "PNG"), grey_3(deep)),
        "16 bit tiff": (encoded(Image.fromarray(DEEP), "TIFF"), grey_3(deep)),
        "16 bit pgm": (b"P5 8 8 65535\n" + DEEP.astype(">u2").tobytes(), grey_3(deep)),
        "palette": (encoded(palette, "PNG"), palette_pixels),
        "palette with a hole": (encoded(palette, "PNG", transparency=3), np.where(holes, 0, palette_pixels)),
        "gif": (encoded(palette, "GIF"), palette_pixels),
        "animated": (encoded(palette, "GIF", save_all=True, append_images=[blank, blank]), palette_pixels),
        "animated webp": (
            encoded(Image.fromarray(RGB), "WEBP", save_all=True, append_images=[blank], lossless=True),
            RGB,
        ),
        "cmyk": (encoded(cmyk, "TIFF"), np.asarray(cmyk.convert("RGB"))),
        "turned": (encoded(Image.fromarray(RGB), "PNG", exif=oriented), np.rot90(RGB, -1)),
    }


@pytest.mark.parametrize("case", mode_cases())
def test_every_mode_has_the_right_values(case: str, tmp_path: Path) -> None:
    content, expected = mode_cases()[case]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "image.png").write_bytes(content)  # the content decides, not the name
    found = packed("mine", tmp_path, tmp_path / "in", size=8).images[0]
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= (1 if "alpha" in case or "rgba" in case else 0)  # PIL may round half the other way
    grey = packed("mine", tmp_path, tmp_path / "in", size=8, channels=1).images[0, ..., 0]
    luma = found @ np.array([0.299, 0.587, 0.114])  # ITU-R 601
    assert np.abs(grey - luma).max() <= 1.01


def test_a_cmyk_jpeg_and_a_jpeg_with_two_pictures(tmp_path: Path) -> None:
    smooth = np.full((16, 16, 3), (200, 40, 90), np.uint8)
    image = Image.fromarray(smooth)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "1.jpg").write_bytes(encoded(image.convert("CMYK"), "JPEG"))
    (tmp_path / "in" / "2.jpg").write_bytes(
        encoded(image, "MPO", save_all=True, append_images=[Image.new("RGB", (16, 16))])
    )
    images = packed("mine", tmp_path, tmp_path / "in", size=16).images
    assert np.abs(images.astype(int) - smooth).max() <= 3


def test_class_names_are_as_many_as_the_classes() -> None:
    for name, family in FAMILIES.items():
        assert len(set(family.classes)) == KNOWN_DATASETS[name].num_classes
