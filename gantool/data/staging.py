"""A copy of the packed data on the machine itself, made once by the first of its processes; the others wait for it.

A parallel filesystem is fast for one large read and slow for the many small ones of a memory map.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

from gantool.config.schema import DataConfig
from gantool.data.pack import PackedDataset, open_packed
from gantool.errors import DataError
from gantool.progress import Progress

VARIABLE = "GANTOOL_STAGE_DIR"


def staged(dataset: PackedDataset, data: DataConfig, progress: Progress) -> PackedDataset:
    """`dataset` from its copy in the folder $GANTOOL_STAGE_DIR; as it is where the variable is not set, or the folder
    cannot hold it (said in words: training then is slower, not wrong)."""
    folder = Path(os.environ.get(VARIABLE, ""))
    if not os.environ.get(VARIABLE):
        return dataset
    sources = [dataset.path, *(dataset.path.with_suffix(ending) for ending in (".labels.npy", ".json"))]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f".{dataset.path.name}.lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not all(_same_size(folder / source.name, source) for source in sources):
                needed = sum(source.stat().st_size for source in sources)
                free = shutil.disk_usage(folder).free
                if needed > 0.9 * free:
                    text = (
                        f"data are not staged: {folder} has {free / 1e9:.1f} GB free, they take {needed / 1e9:.1f} GB"
                    )
                    progress.say(text)
                    return dataset
                for source in sources:  # the json last: with it the copy is whole
                    _copy(source, folder / source.name, progress)
        return open_packed(data, folder)
    except (OSError, DataError) as error:
        progress.say(f"data are not staged: {error}")
        return dataset


def _copy(source: Path, target: Path, progress: Progress) -> None:
    temporary = target.with_name(f".{target.name}.tmp")
    done, total = 0, max(1, source.stat().st_size >> 20)
    with source.open("rb") as file, temporary.open("wb") as copy:
        while block := file.read(2**24):
            copy.write(block)
            done += len(block)
            progress.step("copying the data", min(done >> 20, total - 1), total, "MB")
    temporary.replace(target)
    progress.step("copying the data", total, total, "MB")


def _same_size(copy: Path, source: Path) -> bool:
    return copy.exists() and copy.stat().st_size == source.stat().st_size
