"""Wrong originals: each is one DataError that names the file, leaves nothing behind, and runs nobody's code."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gantool.config.schema import DataConfig
from gantool.data import cifar, images
from gantool.data.pack import open_packed, pack
from gantool.errors import DataError
from gantool.progress import Silent

MINE = DataConfig(name="mine", size=8)
SKIP = DataConfig(name="mine", size=8, on_bad_image="skip")
NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def refused(data: DataConfig, source: Path, tmp_path: Path, match: str) -> DataError:
    """The DataError of packing, after checking that nothing is left in the data folder."""
    folder = tmp_path / "data"
    with pytest.raises(DataError, match=match) as caught:
        pack(data, folder, source, Silent())
    assert not folder.exists() or list(folder.iterdir()) == []
    return caught.value


def png(color: tuple[int, int, int] = (9, 8, 7), side: int = 8, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (side, side), color).save(stream, kind)
    return stream.getvalue()


# --- IDX


def idx(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    root = tmp_path / "in"
    root.mkdir()
    for name in NAMES:
        (root / f"{name}.gz").write_bytes(gzip.compress(PIXELS if "images" in name else LABELS))
    return root


def changed(content: bytes, start: int, new: bytes) -> bytes:
    return content[:start] + new + content[start + len(new) :]


LABELS = idx(np.arange(50, dtype=np.uint8) % 10)
PIXELS = idx(np.random.default_rng(0).integers(0, 256, (50, 28, 28), dtype=np.uint8))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (NAMES[0], gzip.compress(PIXELS)[:-4000], "train-images-idx3-ubyte.gz: truncated gzip file"),
        (NAMES[0], gzip.compress(PIXELS)[:-4], "train-images-idx3-ubyte.gz: truncated gzip file"),
        (NAMES[1], gzip.compress(LABELS)[:-9], "train-labels-idx1-ubyte.gz: truncated gzip file"),
        (NAMES[0], changed(gzip.compress(PIXELS), 9000, bytes(9)), "train-images-idx3-ubyte.gz: cannot be read"),
        (NAMES[0], b"", "train-images-idx3-ubyte.gz: starts with nothing, expected 00000803"),
        (NAMES[0], LABELS, "train-images-idx3-ubyte.gz: starts with 00000801, expected 00000803"),
        (NAMES[1], PIXELS, "train-labels-idx1-ubyte.gz: starts with 00000803, expected 00000801"),
        (NAMES[0], PIXELS[:9], "train-images-idx3-ubyte.gz: ends inside its header"),
        (NAMES[0], PIXELS[:-1], "holds fewer bytes than the 50 images of 28x28 pixels of its header"),
        (NAMES[2], PIXELS + b"x", "t10k-images-idx3-ubyte.gz: holds more bytes than the 50 images"),
        (NAMES[1], LABELS[:-1], "train-labels-idx1-ubyte.gz: holds fewer bytes than the 50 labels"),
        (NAMES[1], LABELS + b"x", "train-labels-idx1-ubyte.gz: holds more bytes than the 50 labels"),
        (
            NAMES[1],
            idx(np.zeros(49, np.uint8)),
            "train-labels-idx1-ubyte.gz: 49 labels for the 50 images of train-images",
        ),
        (NAMES[3], changed(LABELS, 8 + 20, b"\x0a"), "t10k-labels-idx1-ubyte.gz: label 20 is 10, expected 0 to 9"),
        (NAMES[0], changed(PIXELS, 8, b"\xff" * 8), "its header says 50 images of 4294967295x4294967295 pixels"),
        (NAMES[0], idx(np.zeros((0, 28, 28), np.uint8)), "its header says 0 images"),
        (NAMES[3], None, "there is no t10k-labels-idx1-ubyte"),
        (NAMES[1], None, "there is no train-labels-idx1-ubyte"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else str(value).replace(" ", "-"),
)
def test_wrong_idx_files(name: str, content: bytes | None, message: str, mnist: Path, tmp_path: Path) -> None:
    path = mnist / f"{name}.gz"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    refused(DataConfig(name="mnist"), mnist, tmp_path, message)


def test_a_known_dataset_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    error = refused(DataConfig(name="mnist"), tmp_path / "in", tmp_path, "there is no image in it")
    assert "its official IDX files" in error.hint
    error = refused(DataConfig(name="cifar10"), tmp_path / "in", tmp_path, "there is no image in it")
    assert "its official batches or archive" in error.hint
    for label in "abc":
        (tmp_path / "in" / label).mkdir()
        (tmp_path / "in" / label / "1.png").write_bytes(png())
    message = "found 3 class folders, expected the 10 classes of cifar10"
    refused(DataConfig(name="cifar10"), tmp_path / "in", tmp_path, message)


# --- CIFAR: a pickle can run any code


class Malicious:
    """Pickles to 'make the folder that the environment names'."""

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (os.environ["GANTOOL_TEST_MARK"],)


@pytest.fixture
def malicious(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A CIFAR-10 folder whose every file is malicious, and the folder that its code would make."""
    mark = tmp_path / "mark"
    monkeypatch.setenv("GANTOOL_TEST_MARK", str(mark))
    root = tmp_path / "in" / "cifar-10-batches-py"
    root.mkdir(parents=True)
    for name in cifar.OFFICIAL_MD5:
        (root / name).write_bytes(pickle.dumps(Malicious(), protocol=2))
    return root, mark


def test_the_malicious_pickle_is_one(malicious: tuple[Path, Path]) -> None:
    root, mark = malicious
    pickle.loads((root / "data_batch_1").read_bytes())
    assert mark.is_dir()


def test_a_pickle_that_is_not_official_is_not_loaded(malicious: tuple[Path, Path], tmp_path: Path) -> None:
    root, mark = malicious
    refused(
        DataConfig(name="cifar10"), root, tmp_path, r"batches.meta: not the official file, so it is not loaded: MD5 is"
    )
    with tarfile.open(tmp_path / "cifar.tar.gz", "w:gz") as archive:
        archive.add(root, root.name)
    refused(DataConfig(name="cifar10"), tmp_path / "cifar.tar.gz", tmp_path, r"not the official file")
    assert not mark.exists()


def test_even_with_the_right_md5_only_arrays_come_out(
    malicious: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, mark = malicious
    for name in cifar.OFFICIAL_MD5:
        monkeypatch.setitem(cifar.OFFICIAL_MD5, name, hashlib.md5((root / name).read_bytes()).hexdigest())
    refused(
        DataConfig(name="cifar10"), root, tmp_path, r"batches.meta: cannot be read \(it holds \w+.mkdir, expected only"
    )
    assert not mark.exists()


def write_binary_cifar(root: Path) -> Path:
    root.mkdir()
    for name in (*cifar.VERSIONS["cifar10"][1].train, "test_batch.bin"):
        (root / name).write_bytes(bytes(3073 * 4))
    (root / "batches.meta.txt").write_text("\n".join("abcdefghij"))
    return root


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data_batch_3.bin", bytes(3073 * 4 - 1), "data_batch_3.bin: 12291 bytes, expected a multiple of 3073"),
        ("test_batch.bin", b"", "test_batch.bin: 0 bytes"),
        ("test_batch.bin", bytes([10]) * 3073, "test_batch.bin: labels from 10 to 10, expected 0 to 9"),
        ("data_batch_2.bin", None, "data_batch_2.bin: cannot be read"),
        ("batches.meta.txt", None, "batches.meta.txt: cannot be read"),
    ],
)
def test_wrong_binary_cifar(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    root = write_binary_cifar(tmp_path / "in")
    if content is None:
        (root / name).unlink()
    else:
        (root / name).write_bytes(content)
    refused(DataConfig(name="cifar10"), root, tmp_path, message)


def test_a_truncated_official_archive(tmp_path: Path) -> None:
    root = write_binary_cifar(tmp_path / "in")
    for name in cifar.VERSIONS["cifar10"][1].train:
        (root / name).write_bytes(b"\0" + os.urandom(3072))
    path = tmp_path / "cifar-10-binary.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(root, "cifar-10-batches-bin")
    path.write_bytes(path.read_bytes()[:-6000])
    refused(DataConfig(name="cifar10"), path, tmp_path, "cifar-10-binary.tar.gz: damaged archive")


# --- images


def bomb() -> bytes:
    """A PNG of 50,000 x 50,000 pixels, 7.5 GB when decoded, in a few kB."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100_000))) + chunk(b"IEND", b"")


def float_tiff() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.float32)).save(stream, "TIFF")
    return stream.getvalue()


NOISE = io.BytesIO()
Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(NOISE, "JPEG")
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
BAD = {
    "empty": (b"", "the file is empty"),
    "text": (b"hello", "its content is none of JPEG, PNG"),
    "truncated jpeg": (NOISE.getvalue()[:2000], "truncated"),
    "jpeg without its data": (NOISE.getvalue()[:300], "not a readable image"),
    "corrupt png": (changed(png(side=64), 45, b"\0\0\0\0"), "not a readable image"),
    "bomb": (bomb(), "decompression bomb"),
    "postscript": (POSTSCRIPT, "its content is none of JPEG, PNG"),
    "float pixels": (float_tiff(), "32-bit pixels have no agreed white"),
}


@pytest.mark.parametrize("place", ["folder", "zip", "tar"])
@pytest.mark.parametrize("case", BAD)
def test_a_bad_image_is_named_or_left_out(case: str, place: str, tmp_path: Path) -> None:
    content, message = BAD[case]
    files = {"a/1.png": png((1, 1, 1)), "a/2.png": content, "b/1.png": png((2, 2, 2)), "b/2.png": png((3, 3, 3))}
    source = tmp_path / f"in.{place}"
    if place == "zip":
        with zipfile.ZipFile(source, "w") as zipped:
            for name, blob in files.items():
                zipped.writestr(name, blob)
    elif place == "tar":
        write_tar(source, files)
    else:
        for name, blob in files.items():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(blob)
    error = refused(MINE, source, tmp_path, message)
    assert error.message.startswith(str(source)) and "a/2.png: " in error.message
    assert "data.on_bad_image" in error.hint

    told: list[str] = []
    silent = Silent()
    silent.say = told.append  # type: ignore[method-assign]
    dataset = pack(SKIP, tmp_path / "data", source, silent)
    assert dataset.images[:, 4, 4, 0].tolist() == [1, 2, 3] and dataset.labels.tolist() == [0, 1, 1]
    assert dataset.splits == {"train": (0, 3)}
    assert dataset.path.stat().st_size == 128 + 3 * 8 * 8 * 3
    assert told[-1].startswith("1 unreadable images left out:") and "a/2.png" in told[-1]
    (left_out,) = json.loads(dataset.path.with_suffix(".json").read_text())["left_out"]
    assert "a/2.png" in left_out and message in left_out


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, blob in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(blob)
            archive.addfile(member, io.BytesIO(blob))
    return path


def test_any_number_left_out_gives_the_same_as_packing_the_rest(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for folder in ("all", "good"):
        (tmp_path / folder / "train").mkdir(parents=True)
        (tmp_path / folder / "test").mkdir(parents=True)
    for number in range(200):
        name, good = f"{'train' if number < 150 else 'test'}/{number:03d}.png", rng.random() < 0.6
        content = png((number, 0, 0)) if good else b"bad"
        (tmp_path / "all" / name).write_bytes(content)
        if good:
            (tmp_path / "good" / name).write_bytes(content)
    some = pack(SKIP, tmp_path / "a", tmp_path / "all", Silent())
    rest = pack(SKIP, tmp_path / "b", tmp_path / "good", Silent())
    assert some.digest == rest.digest and some.splits == rest.splits
    assert np.array_equal(some.images, rest.images)


def test_a_split_of_which_nothing_is_left(tmp_path: Path) -> None:
    write_tar(tmp_path / "in.tar", {"train/1.png": png(), "test/1.png": b"bad"})
    refused(SKIP, tmp_path / "in.tar", tmp_path, "no image of the test split can be read, e.g. .*test/1.png")


def test_a_file_that_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    os.mkfifo(tmp_path / "in" / "pipe.png")  # to read it would be to wait forever
    refused(MINE, tmp_path / "in", tmp_path, "pipe.png: is no regular file")
    (tmp_path / "in" / "pipe.png").unlink()
    (tmp_path / "in" / "broken.png").symlink_to(tmp_path / "nowhere")
    refused(MINE, tmp_path / "in", tmp_path, "broken.png: cannot be read: No such file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_without_permission(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "1.png").write_bytes(png())
    (tmp_path / "in" / "1.png").chmod(0)
    refused(MINE, tmp_path / "in", tmp_path, "1.png: cannot be read: Permission denied")
    (tmp_path / "in").chmod(0)
    refused(MINE, tmp_path / "in", tmp_path, "in: cannot be read: Permission denied")
    (tmp_path / "in").chmod(0o700)


def test_a_huge_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    with (tmp_path / "in" / "1.png").open("wb") as file:
        file.truncate(images.MAX_FILE_BYTES + 1)
    refused(MINE, tmp_path / "in", tmp_path, "1.png: 268435457 bytes, more than")
    with zipfile.ZipFile(tmp_path / "in.zip", "w", zipfile.ZIP_DEFLATED) as zipped, zipped.open("1.png", "w") as member:
        for _ in range(257):
            member.write(bytes(2**20))
    refused(MINE, tmp_path / "in.zip", tmp_path, "1.png: 269484032 bytes, more than")


# --- paths and archives


@pytest.mark.parametrize("files", [{}, {"note.txt": b"x"}, {".hidden.png": png()}, {".hidden/1.png": png()}])
def test_nothing_to_pack(files: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, blob in files.items():
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(blob)
    refused(MINE, tmp_path / "in", tmp_path, "in: there is no image in it")
    refused(MINE, write_tar(tmp_path / "in.tar.gz", files, "w:gz"), tmp_path, "there is no image in it")


def test_missing_path_and_no_archive(tmp_path: Path) -> None:
    for data in (MINE, DataConfig(name="mnist"), DataConfig(name="celeba")):
        refused(data, tmp_path / "nowhere", tmp_path, "nowhere: cannot be read: No such file or directory")
    (tmp_path / "single.png").write_bytes(png())
    refused(MINE, tmp_path / "single.png", tmp_path, "single.png: neither a folder nor a zip or tar archive")


def test_damaged_archives(tmp_path: Path) -> None:
    noise = {f"{number}.png": png() + os.urandom(60_000) for number in range(20)}
    for mode in ("gz", "xz", "bz2", ""):
        path = write_tar(tmp_path / f"in.tar.{mode}", noise, f"w:{mode}")
        path.write_bytes(path.read_bytes()[:-30_000])
        refused(MINE, path, tmp_path, f"in.tar.{mode}: damaged archive")
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as zipped:
        for name, blob in noise.items():
            zipped.writestr(name, blob)
    whole = (tmp_path / "in.zip").read_bytes()
    (tmp_path / "in.zip").write_bytes(whole[:500_000])
    refused(MINE, tmp_path / "in.zip", tmp_path, "in.zip: neither a folder nor a zip or tar archive")
    (tmp_path / "in.zip").write_bytes(changed(whole, 100, b"\xff" * 20))  # one member does not have its checksum
    refused(MINE, tmp_path / "in.zip", tmp_path, r"in.zip: 0.png: cannot be read \(Bad CRC-32")
    assert len(pack(SKIP, tmp_path / "data", tmp_path / "in.zip", Silent()).images) == 19


def test_an_encrypted_member(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as zipped:
        zipped.writestr("1.png", png())
    content = bytearray((tmp_path / "in.zip").read_bytes())
    content[6] |= 1  # the flag in the local header, and in the central directory
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "in.zip").write_bytes(content)
    refused(MINE, tmp_path / "in.zip", tmp_path, r"1.png: cannot be read \(.*encrypted")


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_that_point_out_of_the_archive(kind: str, tmp_path: Path) -> None:
    def archive(name: str) -> Path:
        path = tmp_path / f"in.{kind}"
        if kind == "tar":
            return write_tar(path, {name: png(), "a/1.png": png()})
        with zipfile.ZipFile(path, "w") as zipped:
            zipped.writestr(name, png())
            zipped.writestr("a/1.png", png())
        return path

    outside = tmp_path / "outside.png"
    refused(MINE, archive("../outside.png"), tmp_path, r"\.\./outside.png: the name of this member points out")
    refused(MINE, archive("a/../../outside.png"), tmp_path, "points out of the archive")
    absolute = archive(str(tmp_path / "b" / "1.png"))  # read as a name below the archive, as tar and unzip do
    assert len(pack(MINE, tmp_path / "data", absolute, Silent()).images) == 2
    assert not outside.exists() and not (tmp_path / "b").exists()


def test_a_link_in_a_tar(tmp_path: Path) -> None:
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        with tarfile.open(tmp_path / "in.tar", "w") as archive:
            member = tarfile.TarInfo("1.png")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        error = refused(MINE, tmp_path / "in.tar", tmp_path, "1.png: a link instead of an image")
        assert "--dereference" in error.hint


def test_an_old_dataset_survives_a_packing_that_fails(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "1.png").write_bytes(png())
    before = pack(MINE, tmp_path / "data", tmp_path / "in", Silent())
    (tmp_path / "in" / "2.png").write_bytes(b"bad")
    with pytest.raises(DataError):
        pack(MINE, tmp_path / "data", tmp_path / "in", Silent())
    assert open_packed(MINE, tmp_path / "data").digest == before.digest
    assert len(list((tmp_path / "data").iterdir())) == 3


@pytest.mark.parametrize("harm", ["a damaged header", "cut in a header", "cut between members", "no end mark"])
def test_no_image_of_a_damaged_tar_is_lost_without_a_word(harm: str, tmp_path: Path) -> None:
    """tarfile alone takes each of these for the end of the archive."""
    for number in range(20):
        path = tmp_path / "in" / f"{number:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    archive = tmp_path / "images.tar"
    with tarfile.open(archive, "w") as tar:
        for path in sorted((tmp_path / "in").iterdir()):
            tar.add(path, path.name)
    with tarfile.open(archive) as tar:
        starts = [member.offset for member in tar.getmembers()]
    content = bytearray(archive.read_bytes())
    if harm == "a damaged header":
        content[starts[7] + 150] ^= 0xFF
    size = {"cut in a header": starts[7] + 100, "cut between members": starts[7], "no end mark": starts[-1] + 1024}
    archive.write_bytes(content[: size.get(harm)])
    with pytest.raises(DataError, match=r"images\.tar: damaged archive \(.*header at byte \d+"):
        pack(DataConfig(name="mine", size=8), tmp_path / "data", archive, Silent())
    assert not list((tmp_path / "data").glob("*.json"))
