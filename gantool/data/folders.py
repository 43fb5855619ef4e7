"""Collections of image files: which split and class each belongs to, by the folders it lies in.

    x.jpg                   train/x.jpg    test/x.jpg            no labels
    cat/x.jpg dog/y.jpg     train/cat/x.jpg    test/cat/y.jpg    labels: position in the sorted class names

The split folders are train, test and val (also training, valid, validation); a test or val folder beside them may lack
class folders (label -1). Folders around all of it do not matter. CelebA says which split an image belongs to in a file.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np

from gantool.data.archives import image_names, read_images
from gantool.data.images import Source, splits_of
from gantool.errors import DataError
from gantool.progress import Progress

SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "valid",
    "valid": "valid",
    "validation": "valid",
    "test": "test",
}
_CELEBA_SPLITS = {"0": "train", "1": "valid", "2": "test"}
CELEBA_LIST = "list_eval_partition.txt"
CELEBA_IMAGES = "img_align_celeba"


def open_images(title: str, path: Path, progress: Progress) -> Source:
    """The images in a folder, zip or tar, with the splits and classes that its folders say."""
    names = image_names(path, progress)
    if not names:
        raise DataError(f"{path}: there is no image in it", "expected files like .jpg, .png, .webp, also in subfolders")
    splits = _by_split(names, path)
    classes = _class_names(splits, path)
    numbers = {name: number for number, name in enumerate(classes)}
    ordered = [name for members in splits.values() for name, _ in members]
    labels = [numbers.get(rest.split("/")[0], -1) for members in splits.values() for _, rest in members]
    index_of = {name: index for index, name in enumerate(ordered)}
    counts = {split: len(members) for split, members in splits.items()}
    read = partial(read_images, path, index_of)
    return Source(title, classes, np.array(labels, np.int64), splits_of(counts), read)


def image_kind(path: Path, progress: Progress) -> str:
    """What the images of a collection are, for its title: 'JPEG', 'PNG', ..., or 'images' when they are mixed."""
    suffixes = {Path(name).suffix.lower() for name in image_names(path, progress)}
    if suffixes <= {".jpg", ".jpeg"}:
        return "JPEG"
    return suffixes.pop()[1:].upper() if len(suffixes) == 1 else "images"


def _by_split(names: list[str], path: Path) -> dict[str, list[tuple[str, str]]]:
    """For each split (name, the rest of the name below the split's folder), train first."""
    rests = without_common_folder(names, keep=SPLIT_FOLDERS)
    tops = {rest.split("/")[0] if "/" in rest else "" for rest in rests}
    if not all(top.lower() in SPLIT_FOLDERS for top in tops):
        return {"train": list(zip(names, rests, strict=True))}
    splits: dict[str, list[tuple[str, str]]] = {"train": [], "valid": [], "test": []}
    folders: dict[str, str] = {}
    for name, rest in zip(names, rests, strict=True):
        top, _, below = rest.partition("/")
        split = SPLIT_FOLDERS[top.lower()]
        if folders.setdefault(split, top) != top:
            raise DataError(f"{path}: both {folders[split]} and {top} are the {split} split", "keep one of the two")
        splits[split].append((name, below))
    if not splits["train"]:
        raise DataError(f"{path}: only {', '.join(sorted(tops))}: there is no train folder", "put the images in train/")
    return {split: members for split, members in splits.items() if members}


def _class_names(splits: dict[str, list[tuple[str, str]]], path: Path) -> tuple[str, ...]:
    """Sorted names of the class folders; () when all images lie together. Checks that the splits agree."""
    found: dict[str, set[str]] = {}
    for split, members in splits.items():
        folders = {rest.split("/")[0] if "/" in rest else "" for _, rest in members}
        if "" in folders and len(folders) > 1:
            beside = next(name for name, rest in members if "/" not in rest)
            hint = "put each image into a class folder, or all of them into one folder"
            raise DataError(f"{path}: {beside} lies beside class folders ({_some(folders - {''})})", hint)
        found[split] = folders - {""}
    if len(set().union(*found.values())) <= 1:  # one folder around all images is no class
        return ()
    for split, folders in found.items():
        if extra := folders - found["train"]:
            text = f"the {split} split has class folders that train has not ({_some(extra)})"
            raise DataError(f"{path}: {text}", "the classes are the folders of train")
    return tuple(sorted(found["train"]))


def without_common_folder(names: list[str], keep: dict[str, str]) -> list[str]:
    """`names` without the folders that all of them lie in, down to one called as in `keep`."""
    while True:
        tops = {name.split("/")[0] if "/" in name else "" for name in names}
        if len(tops) > 1 or "" in tops or min(tops).lower() in keep:
            return names
        names = [name.partition("/")[2] for name in names]


def _some(names: set[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:5]) + (f" and {len(ordered) - 5} more" if len(ordered) > 5 else "")


def open_celeba(source: Path, progress: Progress) -> Source:
    """CelebA's aligned images (folder or zip) with the splits of its partition file; no labels."""
    images, partition = _find_celeba(source)
    split_of = _read_partition(partition)
    paths = {name.rpartition("/")[2]: name for name in image_names(images, progress)}
    hint = f"{CELEBA_IMAGES} and {partition.name} must be those of the same release, complete"
    if len(missing := split_of.keys() - paths.keys()):
        raise DataError(f"{images}: {len(missing)} images of {partition} are not there ({_some(set(missing))})", hint)
    if len(extra := paths.keys() - split_of.keys()):
        raise DataError(f"{partition}: does not list {len(extra)} images of {images} ({_some(set(extra))})", hint)
    ordered = [name for split in _CELEBA_SPLITS.values() for name in sorted(split_of) if split_of[name] == split]
    counts = Counter(split_of.values())
    splits = splits_of({split: counts[split] for split in _CELEBA_SPLITS.values() if counts[split]})
    index_of = {paths[name]: index for index, name in enumerate(ordered)}
    return Source("celeba", (), np.full(len(ordered), -1, np.int64), splits, partial(read_images, images, index_of))


def _find_celeba(source: Path) -> tuple[Path, Path]:
    """Folder or zip of the images, and the partition file, which lies in or beside it."""
    root = source if source.is_dir() else source.parent
    for folder in (root, root / "celeba", root.parent):
        partition = folder / CELEBA_LIST
        if partition.is_file():
            if source.is_file() or folder == root.parent:
                return source, partition
            inside = (folder / f"{CELEBA_IMAGES}{suffix}" for suffix in ("", ".zip"))
            return next((path for path in inside if path.exists()), folder), partition
    raise DataError(f"{source}: there is no {CELEBA_LIST} in it or beside it", "it belongs to CelebA: fetch it too")


def _read_partition(path: Path) -> dict[str, str]:
    """{'000001.jpg': 'train', ...}"""
    splits: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        if len(words) != 2 or words[1] not in _CELEBA_SPLITS:
            raise DataError(f"{path}:{number}: found {line[:60]!r}, expected a line like '000001.jpg 0' (or 1, 2)")
        splits[words[0]] = _CELEBA_SPLITS[words[1]]
    if "train" not in splits.values():
        raise DataError(f"{path}: lists no training image (no line ends with 0)")
    return splits
