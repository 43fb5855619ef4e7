"""Images as folders, zips and arrays: the same images give the same set, and wrong ones one clear error."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gantool import models
from gantool.config.schema import DataConfig, RunConfig
from gantool.data.image_sets import ImageSet, open_images, packed_set
from gantool.data.pack import open_packed, packed_path
from gantool.errors import DataError
from gantool.progress import Silent
from gantool.sample import Snapshot, sample

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (21, 6, 10, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (21, 6, 10, 1), dtype=np.uint8)


def opened(path: Path) -> ImageSet:
    return open_images(path, Silent())


def encoded(image: np.ndarray | Image.Image, kind: str = "PNG", **options: object) -> bytes:
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def write(path: Path, contents: dict[str, bytes]) -> Path:
    """The files as a folder, or as a zip where `path` ends so."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in contents.items():
                archive.writestr(name, content)
        return path
    for name, content in contents.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def pngs(images: np.ndarray, name: str = "img_{:06d}.png") -> dict[str, bytes]:
    return {name.format(index): encoded(image) for index, image in enumerate(images)}


def saved(path: Path, compressed: bool = False, **arrays: np.ndarray) -> Path:
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


def refused(path: Path, match: str) -> DataError:
    with pytest.raises(DataError, match=match) as caught:
        opened(path)
    assert caught.value.hint and str(path) in caught.value.message
    return caught.value


# --- what comes out


@pytest.mark.parametrize("images", [RGB, GREY], ids=["rgb", "grey"])
def test_every_container_of_the_same_images_gives_the_same_set(images: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", images)
    paths = [
        write(tmp_path / "folder", pngs(images)),
        write(tmp_path / "x.zip", pngs(images)),
        saved(tmp_path / "x.npz", images=images),
        saved(tmp_path / "adm.npz", arr_0=images),
        saved(tmp_path / "small.npz", compressed=True, images=images),
        tmp_path / "x.npy",
    ]
    if images.shape[3] == 1:
        paths.append(saved(tmp_path / "flat.npz", images=images[..., 0]))
    for path in paths:
        found = opened(path)
        assert (found.title, found.num, found.shape) == (path.name, 21, images.shape[1:])
        assert found.labels is None and found.classes == () and found.notes == ()
        for start, stop in ((0, 21), (20, 21), (3, 17)):
            part = found.part(start, stop)
            assert part.dtype == torch.uint8 and np.array_equal(part.numpy(), images[start:stop])
        assert [len(part) for part in found.parts(8)] == [8, 8, 5]
        assert np.array_equal(torch.cat(list(found.parts(8))).numpy(), images)
    digests = [opened(path).digest for path in paths]
    assert len(set(digests[:2])) == 1 and len(set(digests[2:])) == 1 and digests[0] != digests[2]


def test_the_digest_follows_content_and_order_not_names(tmp_path: Path) -> None:
    same = write(tmp_path / "a", pngs(RGB)), write(tmp_path / "b", pngs(RGB, "deep/er/{:03d}.PNG"))
    assert opened(same[0]).digest == opened(same[1]).digest
    one_pixel = RGB.copy()
    one_pixel[20, 5, 9, 2] ^= 1
    labels = np.arange(21) % 3
    different = [opened(same[0]).digest, opened(saved(tmp_path / "0.npz", images=RGB)).digest]
    for index, images in enumerate((RGB[::-1], RGB[:-1], one_pixel, RGB.reshape(21, 10, 6, 3))):
        different.append(opened(write(tmp_path / f"d{index}", pngs(images))).digest)
        different.append(opened(saved(tmp_path / f"d{index}.npz", images=images)).digest)
    different += [opened(saved(tmp_path / f"l{k}.npz", images=RGB, labels=labels + k)).digest for k in (0, 1)]
    assert len(set(different)) == len(different)


def test_any_format_in_any_depth_is_sorted_by_folder_and_name(tmp_path: Path) -> None:
    kinds = {
        "b.PNG": "PNG",
        "a.bmp": "BMP",
        "d/e.tif": "TIFF",
        "d/b.webp": "WEBP",
        "d/a/z.ppm": "PPM",
        "c.Tiff": "TIFF",
    }
    contents = {
        name: encoded(image, kind, **({"lossless": True} if kind == "WEBP" else {}))
        for (name, kind), image in zip(kinds.items(), RGB, strict=False)
    }
    order = sorted(kinds, key=lambda name: name.rpartition("/")[::2])
    expected = np.stack([RGB[list(kinds).index(name)] for name in order])
    for path in (tmp_path / "folder", tmp_path / "x.zip"):
        write(path, contents | {"notes.txt": b"?", ".hidden.png": b"?", "__MACOSX/x.png": b"?"})
        (tmp_path / "folder" / "__MACOSX" / "x.png").unlink(missing_ok=True)
        found = opened(path)
        assert np.array_equal(found.part(0, 6).numpy(), expected) and found.labels is None


def test_grey_and_colour_transparency_palettes_and_16_bits(tmp_path: Path) -> None:
    grey, sixteen = GREY[0, ..., 0], GREY[0, ..., 0].astype(np.uint16) * 257
    all_grey = {"0.png": encoded(Image.fromarray(grey)), "1.png": encoded(Image.fromarray(sixteen))}
    found = opened(write(tmp_path / "grey", all_grey))
    assert found.shape == (6, 10, 1)
    assert np.array_equal(found.part(0, 2).numpy(), np.stack([grey[..., None]] * 2))
    alpha = np.concatenate([RGB[0], np.zeros((6, 10, 1), np.uint8)], 2)
    alpha[:3, :, 3] = 255
    palette = Image.fromarray(grey // 2).convert("P")
    mixed = all_grey | {
        "2.png": encoded(Image.fromarray(alpha)),
        "3.png": encoded(palette),
        "4.png": encoded(Image.fromarray(np.stack([grey, np.full_like(grey, 255)], 2), "LA")),
    }
    part = opened(write(tmp_path / "mixed", mixed)).part(0, 5).numpy()
    assert part.shape == (5, 6, 10, 3)
    for index in (0, 1, 4):
        assert np.array_equal(part[index], np.repeat(grey[..., None], 3, 2))
    assert np.array_equal(part[2, :3], RGB[0, :3]) and not part[2, 3:].any()
    assert np.array_equal(part[3], np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("kind", ["TIFF", "PNG", "JPEG"])
def test_an_image_is_as_large_as_its_orientation_says(kind: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(np.ascontiguousarray(np.rot90(RGB[0])), kind, exif=exif)
    found = opened(write(tmp_path / "x", {f"0.{kind}": turned, "1.png": encoded(RGB[1])}))
    part = found.part(0, 2).numpy()
    assert found.shape == (6, 10, 3) and np.array_equal(part[1], RGB[1])
    assert kind == "JPEG" or np.array_equal(part[0], RGB[0])


def test_jpeg_is_a_note_on_the_scores(tmp_path: Path) -> None:
    jpegs = {f"{k}.jpg": encoded(RGB[k], "JPEG", quality=95) for k in range(2)}
    (note,) = opened(write(tmp_path / "all", jpegs)).notes
    assert note == "all: the images are JPEG: compression moves FID; PNG is exact"
    (note,) = opened(write(tmp_path / "some.zip", jpegs | pngs(RGB[:1]))).notes
    assert note.startswith("some.zip: 2 of the 3 images are JPEG")


def test_folders_side_by_side_are_classes(tmp_path: Path) -> None:
    cats, dogs = pngs(RGB[:3], "cat/{}.png"), pngs(RGB[3:5], "Dog/{}.png")
    around = {f"samples/here/{name}": content for name, content in (cats | dogs).items()}
    for path, contents in (("a", cats | dogs), ("a.zip", cats | dogs), ("b", around), ("b.zip", around)):
        found = opened(write(tmp_path / path, contents))
        assert found.classes == ("Dog", "cat") and found.labels is not None
        assert found.labels.dtype == np.int64 and found.labels.tolist() == [0, 0, 1, 1, 1]
        assert np.array_equal(found.part(0, 5).numpy(), RGB[[3, 4, 0, 1, 2]])
    for index, contents in enumerate((cats, cats | pngs(RGB[5:7]), cats | pngs(RGB[5:7], "dog/big/{}.png"))):
        found = opened(write(tmp_path / f"none{index}", contents))
        assert found.labels is None and found.classes == ()
    splits = write(tmp_path / "splits", pngs(RGB[:3], "train/{}.png") | pngs(RGB[3:5], "test/{}.png"))
    refused(splits, "holds the splits test, train, expected one set")


def test_labels_of_a_npz(tmp_path: Path) -> None:
    labels = np.arange(21, dtype=np.int32) % 4 - 1
    for keys in (("images", "labels"), ("arr_0", "arr_1")):
        for compressed in (False, True):
            arrays = dict(zip(keys, (RGB, labels), strict=True)) | {"mu": np.zeros(3)}
            found = opened(saved(tmp_path / "x.npz", compressed, **arrays))
            assert found.labels is not None and found.labels.dtype == np.int64
            assert np.array_equal(found.labels, labels) and found.classes == ()
            assert np.array_equal(found.part(0, 21).numpy(), RGB)


def test_what_gantool_samples_can_be_opened(data_dir: Path, tmp_path: Path) -> None:
    """A class-conditional sample as folder, zip and npz: one set of images, with labels in the npz."""
    document = {
        "data": {"name": "shapes", "size": 8},
        "generator": {"latent_dim": 8, "width": 4, "max_width": 8, "condition": "concat"},
        "discriminator": {"condition": "projection"},
    }
    config = RunConfig.model_validate(document)
    generator = models.build_generator(config, 10).eval()
    data = {"classes": [str(k) for k in range(10)], "image_shape": [8, 8, 3]}
    snapshot = Snapshot(tmp_path / "s", 0, "0", config, data, True, generator)
    sets = [opened(sample(snapshot, 70, 0, tmp_path / name, Silent())) for name in ("x", "x.zip", "x.npz")]
    whole = sets[2].part(0, 70)
    assert whole.float().std() > 0 and all(torch.equal(one.part(0, 70), whole) for one in sets)
    assert [one.labels is None for one in sets] == [True, True, False]
    assert sets[2].labels is not None and sets[2].labels.tolist() == [k % 10 for k in range(70)]


def test_a_packed_dataset_is_spread_evenly_with_its_labels(data_dir: Path) -> None:
    config = DataConfig(name="shapes", size=8)
    data = open_packed(config, data_dir)
    images, labels = data.split("test")
    some = packed_set(data, "test", 300)
    indices = np.arange(300) * len(images) // 300
    assert (some.title, some.num, some.shape, some.classes) == ("shapes:test", 300, data.images.shape[1:], data.classes)
    assert np.array_equal(some.part(7, 200).numpy(), images[indices[7:200]])
    assert some.labels is not None and np.array_equal(some.labels, labels[indices])
    whole = packed_set(data, "test", None)
    assert np.array_equal(whole.part(0, len(images)).numpy(), images)
    assert packed_set(data, "test", 10**9).digest == whole.digest == packed_set(data, "test", len(images)).digest
    others = [packed_set(data, "train", None), some, whole, packed_set(data, "train", 300)]
    assert len({one.digest for one in others}) == 4
    beside = opened(packed_path(config, data_dir))
    assert (beside.title, beside.digest, beside.num) == ("shapes:train", others[0].digest, others[0].num)
    with pytest.raises(DataError, match="shapes has no split 'valid'"):
        packed_set(data, "valid", None)


def test_large_arrays_are_not_held_in_memory(tmp_path: Path) -> None:
    """The peak of a process that reads a .npz of 300 MB as np.savez writes it stays far below its size."""
    path = tmp_path / "x.npz"
    saved(path, images=np.zeros((1600, 256, 256, 3), np.uint8))
    program = f"""
import resource
from pathlib import Path
from gantool.data.image_sets import open_images
from gantool.progress import Silent
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = open_images(Path({str(path)!r}), Silent())
assert sum(len(part) for part in found.parts(64)) == 1600
print(found.num, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    num, megabytes = map(int, done.stdout.split())
    assert num == 1600 and megabytes < 120


# --- wrong input


def test_a_path_that_is_not_there_or_no_images(tmp_path: Path) -> None:
    assert ".npz" in str(refused(tmp_path / "none", "there is no such file or folder").hint)
    (tmp_path / "empty").mkdir()
    assert "webp" in str(refused(tmp_path / "empty", "there is no image in it").hint)
    refused(write(tmp_path / "text", {"a.txt": b"x", "b.h5": b"x"}), "there is no image in it")
    refused(write(tmp_path / "text.zip", {"a.txt": b"x"}), "there is no image in it")
    refused(write(tmp_path / "x", {"x.tar": b"\0" * 10240}) / "x.tar", "found a .tar, expected a folder, .zip, .npz")
    refused(write(tmp_path / "y", {"x.png": encoded(RGB[0])}) / "x.png", "found a .png, expected a folder")


def test_one_image_is_not_a_set(tmp_path: Path) -> None:
    for path in (write(tmp_path / "a", pngs(RGB[:1])), write(tmp_path / "a.zip", pngs(RGB[:1]))):
        refused(path, "found 1 image, expected 2 or more")
    refused(saved(tmp_path / "a.npz", images=RGB[:1]), "found 1 image, expected 2 or more")
    refused(saved(tmp_path / "b.npz", images=RGB[:0]), "found 0 images, expected 2 or more")


def test_mixed_sizes_name_the_first_two_that_differ(tmp_path: Path) -> None:
    contents = pngs(RGB) | {"img_000007.png": encoded(RGB[7, :5]), "img_000009.png": encoded(RGB[9, :, :3])}
    for path in (write(tmp_path / "a", contents), write(tmp_path / "a.zip", contents)):
        error = refused(path, r"img_000000.png has 10x6 pixels, .*img_000007.png has 10x5")
        assert "img_000009" not in error.message and "PNG" in str(error.hint)


def test_damaged_zips(tmp_path: Path) -> None:
    whole = write(tmp_path / "x.zip", pngs(RGB)).read_bytes()
    path = tmp_path / "y.zip"
    for content in (whole[:-200], b"", b"junk" * 50, whole[:300]):
        path.write_bytes(content)
        refused(path, "y.zip: found no zip archive, or its end is missing")
    changed = bytearray(whole)
    changed[80] ^= 255  # in the bytes of the first image: its checksum is wrong
    path.write_bytes(changed)
    refused(path, r"y.zip: img_000000.png: cannot be read \(Bad CRC-32")


def test_images_that_are_none(tmp_path: Path) -> None:
    png = encoded(RGB[3])
    for index, (content, match) in enumerate(
        [(b"", "the file is empty"), (b"GIF or not", "its content is none of"), (png[:20], "not a readable image")]
    ):
        contents = pngs(RGB) | {"img_000003.png": content}
        for path in (write(tmp_path / str(index), contents), write(tmp_path / f"{index}.zip", contents)):
            assert "img_000003.png" in refused(path, match).message
    contents = pngs(RGB) | {"img_000003.png": png[:-60]}  # the header is whole: only decoding shows it
    for path in (write(tmp_path / "late", contents), write(tmp_path / "late.zip", contents)):
        found = opened(path)
        assert np.array_equal(found.part(0, 3).numpy(), RGB[:3])
        with pytest.raises(DataError, match=r"img_000003.png: not a readable image") as caught:
            found.part(0, 21)
        assert caught.value.hint == "repair the file, or leave it out"


def test_damaged_arrays(tmp_path: Path) -> None:
    path = tmp_path / "y.npz"
    for compressed in (False, True):
        whole = saved(tmp_path / "x.npz", compressed, images=RGB).read_bytes()
        for content in (whole[:-100], whole[: len(whole) // 2], b"", b"junk" * 50):
            path.write_bytes(content)
            refused(path, "y.npz: damaged, or not a .npz file")
        changed = bytearray(whole)
        changed[len(whole) // 2] ^= 255
        path.write_bytes(changed)
        refused(path, "y.npz: damaged, or not a .npz file")
    np.save(tmp_path / "x.npy", RGB)
    whole = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "y.npy").write_bytes(whole[:-1])
    refused(tmp_path / "y.npy", "y.npy: ends after 3779 of its 3780 bytes")
    for content in (b"", whole[:40], b"junk" * 50):
        (tmp_path / "y.npy").write_bytes(content)
        refused(tmp_path / "y.npy", "y.npy: no array in numpy's format")


def test_arrays_that_change_while_they_are_read(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", RGB)
    found = opened(tmp_path / "x.npy")
    (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-1])
    assert np.array_equal(found.part(0, 20).numpy(), RGB[:20])
    with pytest.raises(DataError, match=r"x.npy: damaged, .* \(it has become shorter\)"):
        found.part(19, 21)
    (tmp_path / "x.npy").unlink()
    with pytest.raises(DataError, match=r"x.npy: damaged, .* \(No such file"):
        found.part(0, 1)


@pytest.mark.parametrize(
    ("array", "match", "hint"),
    [
        (RGB.astype(np.float32) / 255, r"found float32 \[21, 6, 10, 3\], expected uint8", "astype(np.uint8)"),
        (np.full((21, 6, 10, 3), np.nan), "found float64", "astype(np.uint8)"),
        (RGB.astype(np.int64), "found int64", "astype(np.uint8)"),
        (RGB.transpose(0, 3, 1, 2), r"found uint8 \[21, 3, 6, 10\]", "transpose(0, 2, 3, 1)"),
        (RGB[..., :2], r"found uint8 \[21, 6, 10, 2\]", "[n, H, W, C]"),
        (np.zeros((21, 6, 10, 4), np.uint8), r"found uint8 \[21, 6, 10, 4\]", "[n, H, W, C]"),
        (RGB[0], r"found uint8 \[6, 10, 3\]", "[n, H, W, C]"),
        (RGB.reshape(21, -1), r"found uint8 \[21, 180\]", "[n, H, W, C]"),
        (RGB[None], r"found uint8 \[1, 21, 6, 10, 3\]", "[n, H, W, C]"),
        (np.zeros((21, 0, 10, 3), np.uint8), r"found uint8 \[21, 0, 10, 3\]", "[n, H, W, C]"),
        (np.asfortranarray(RGB), "Fortran order", "ascontiguousarray"),
        (np.array([{}, "x"], object), r"found Python objects \[2\]", "[n, H, W, C]"),
    ],
    ids=lambda value: "" if isinstance(value, str) else f"{value.dtype}{list(value.shape)}",
)
def test_arrays_that_are_no_images(array: np.ndarray, match: str, hint: str, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    for path in (tmp_path / "x.npy", saved(tmp_path / "x.npz", images=array), saved(tmp_path / "y.npz", arr_0=array)):
        assert hint in str(refused(path, match).hint)


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (np.arange(20), r"labels: found int64 \[20\], expected integers \[21\]"),
        (np.arange(21.0), r"labels: found float64 \[21\]"),
        (np.eye(21, dtype=np.int64), r"labels: found int64 \[21, 21\]"),
        (np.arange(21) - 5, "labels: found numbers from -5 to 15"),
        (np.full(21, 10**12), "labels: found numbers from 1000000000000"),
        (np.array(["cat"] * 21), r"labels: found <U3 \[21\]"),
        (np.array([None] * 21), "labels: Object arrays cannot be loaded"),
    ],
    ids=lambda value: "" if isinstance(value, str) else f"{value.dtype}{list(value.shape)}{value.flat[0]}",
)
def test_labels_that_do_not_fit(labels: np.ndarray, match: str, tmp_path: Path) -> None:
    refused(saved(tmp_path / "x.npz", images=RGB, labels=labels), match)
    refused(saved(tmp_path / "y.npz", True, arr_0=RGB, arr_1=labels), match.replace("labels:", "arr_1:"))


def test_a_npz_without_images(tmp_path: Path) -> None:
    error = refused(saved(tmp_path / "x.npz", mu=np.zeros(9), sigma=np.eye(9)), "found mu, sigma in it, expected")
    assert "statistics" in str(error.hint)
    refused(write(tmp_path / "y.zip", pngs(RGB)).rename(tmp_path / "y.npz"), r"img_000007.png in it, expected an array")


class Malicious:
    """Pickles to 'make the folder that the environment names'."""

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (os.environ["GANTOOL_TEST_MARK"],)


def test_nobodys_code_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GANTOOL_TEST_MARK", str(tmp_path / "mark"))
    evil = np.array([Malicious()] * 21, object)
    refused(saved(tmp_path / "a.npz", images=evil), "found Python objects")
    refused(saved(tmp_path / "b.npz", images=RGB, labels=evil), "Object arrays cannot be loaded")
    for name in ("c.npy", "c.npz", "c.zip"):
        (tmp_path / name).write_bytes(pickle.dumps(Malicious()))
        refused(tmp_path / name, "no array in numpy's format|damaged|no zip archive")
    assert not (tmp_path / "mark").exists()


def test_a_packed_dataset_that_is_damaged(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", RGB)
    facts = {"format": 1, "title": "x", "shape": [21, 6, 10, 3], "classes": [], "splits": {"train": [0, 21]}}
    (tmp_path / "x.json").write_text(json.dumps(facts | {"digest": "0"}))
    refused(tmp_path / "x.npy", "the packed dataset is damaged .*labels.npy")
    np.save(tmp_path / "x.labels.npy", np.full(21, -1))
    assert opened(tmp_path / "x.npy").title == "x:train"
    (tmp_path / "x.json").write_text(json.dumps(facts | {"digest": "0", "shape": [22, 6, 10, 3]}))
    refused(tmp_path / "x.npy", r"the packed dataset is damaged \(images are uint8 \[21, 6, 10, 3\]")
    (tmp_path / "x.json").write_text("{}")  # not one of ours: a plain array
    assert opened(tmp_path / "x.npy").title == "x.npy"
