"""The verb `prepare`: what a run needs from the internet or from original files, done once, before the first job."""

from __future__ import annotations

from pathlib import Path

from gantool.config.schema import DataConfig, RuntimeConfig
from gantool.data.pack import PackedDataset, open_packed, pack, packed_path, verify
from gantool.errors import DataError, UsageError
from gantool.progress import Progress


def prepare(data: DataConfig, runtime: RuntimeConfig, progress: Progress) -> PackedDataset:
    """The packed dataset of `data`, packed unless it is there and has the digest it was packed with.

    The original files come from `runtime.source`, else from the official download.
    """
    data_dir = Path(runtime.data_dir)
    if data.name == "shapes" and runtime.source is not None:
        raise UsageError(
            "'shapes' is drawn, it has no source", "remove --source, or give the dataset another data.name"
        )
    try:
        dataset = open_packed(data, data_dir)
    except DataError as error:
        if packed_path(data, data_dir).with_suffix(".json").exists():
            progress.say(f"{error.message}; packing it again")
    else:
        if verify(dataset, progress):
            progress.say(f"is packed, and whole: {_describe(dataset)}")
            return dataset
        progress.say(f"{dataset.path}: does not have the digest it was packed with; packing it again")
    dataset = pack(data, data_dir, Path(runtime.source) if runtime.source else None, progress)
    progress.say(f"packed {_describe(dataset)}")
    return dataset


def _describe(dataset: PackedDataset) -> str:
    splits = " + ".join(f"{end - start} {name}" for name, (start, end) in dataset.splits.items())
    return f"{dataset.title}: {splits} images ({dataset.path}, {dataset.images.nbytes / 1e6:.1f} MB)"
