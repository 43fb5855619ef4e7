"""How to come by the original files: torchvision's downloads of the official ones, and what to tell the user if not.

torchvision checks the MD5 of each archive. CelebA is left to the user: its host limits how often it is fetched.
"""

from __future__ import annotations

import contextlib
import functools
import shlex
import socket
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

from gantool.config.schema import DataConfig
from gantool.data.folders import CELEBA_IMAGES, CELEBA_LIST
from gantool.errors import DataError
from gantool.progress import Progress
from gantool.without_triton import without_triton

CELEBA_PAGE = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
_TIMEOUT_SECONDS = 30.0


def prepare_command(data: DataConfig, data_dir: Path, source: str | None = None) -> str:
    """The command line that packs `data` into `data_dir`."""
    words = ["gantool", "prepare", "--dataset", data.name]
    for key, value in data.model_dump(mode="json", exclude_defaults=True, exclude={"name"}).items():
        words += ["--set", f"data.{key}={value}"]
    if str(data_dir) != "data":
        words += ["--set", f"runtime.data_dir={data_dir}"]
    return shlex.join([*words, "--source", source] if source else words)


def download(data: DataConfig, data_dir: Path, progress: Progress) -> Path:
    """The folder that holds the official files of `data.name`, fetched if they are not there yet.

    DataError where there is no official download, or it fails.
    """
    root = data_dir / "downloads"
    if data.name == "celeba":
        text = (
            f"celeba is not downloaded: fetch {CELEBA_IMAGES}.zip and {CELEBA_LIST} from {CELEBA_PAGE} into one folder"
        )
        raise DataError(text, f"then run: {prepare_command(data, data_dir, 'FOLDER')}")
    if data.known is None:
        text = f"'{data.name}' is not a known dataset, so there is nothing to download"
        raise DataError(text, f"say where the images lie: {prepare_command(data, data_dir, 'FOLDER_OR_ARCHIVE')}")
    progress.say(f"{data.name}: looking for the official files in {root}, else downloading them")
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_SECONDS)  # a node without internet often drops packets instead of refusing them
    try:
        root.mkdir(parents=True, exist_ok=True)
        with contextlib.redirect_stdout(sys.stderr), _shown_by(progress):
            _fetch(data.name, root)
    except (OSError, RuntimeError, ValueError, EOFError, zipfile.BadZipFile, ImportError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        hint = "run this where there is internet, or fetch the files yourself and run: "
        hint += prepare_command(data, data_dir, "FOLDER_OR_ARCHIVE")
        raise DataError(f"{data.name}: the download failed ({reason})", hint) from error
    finally:
        socket.setdefaulttimeout(timeout)
    return root


@contextlib.contextmanager
def _shown_by(progress: Progress) -> Iterator[None]:
    """torchvision's downloads as steps of `progress` instead of its own bars."""
    with without_triton():
        from torchvision.datasets import utils  # loads torch, which only a download needs

    theirs = getattr(utils, "tqdm", None)
    utils.tqdm = functools.partial(_Bar, progress)
    try:
        yield
    finally:
        utils.tqdm = theirs


class _Bar:
    """As much of tqdm as torchvision uses; `total` and steps in bytes."""

    def __init__(self, progress: Progress, total: int | None = None, **_: object) -> None:
        self._progress, self._done, self._total = progress, 0, total

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.step("downloading", 1, 1)

    def update(self, number: int) -> None:
        """So many bytes more."""
        self._done += number
        total = None if self._total is None else self._total // 1000 + 1
        self._progress.step("downloading", self._done // 1000, total, "kB")


def _fetch(name: str, root: Path) -> None:
    with without_triton():
        from torchvision import datasets

    if name == "emnist":
        datasets.EMNIST(root, split="balanced", download=True)
        return
    classes = {
        "mnist": datasets.MNIST,
        "fashion_mnist": datasets.FashionMNIST,
        "kmnist": datasets.KMNIST,
        "cifar10": datasets.CIFAR10,
        "cifar100": datasets.CIFAR100,
    }
    classes[name](root, download=True)
