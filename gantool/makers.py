"""What made a run, as its run.json says: config, data, versions, device, processes; and what made it before."""

from __future__ import annotations

import platform
from typing import Any

import torch

import gantool
from gantool import container, revision
from gantool.config.schema import RunConfig
from gantool.data.pack import PackedDataset
from gantool.runtime import Runtime


def data_facts(data: PackedDataset) -> dict[str, Any]:
    """What identifies the training data."""
    return {
        "digest": data.digest,
        "title": data.title,
        "classes": data.classes,
        "image_shape": list(data.images.shape[1:]),
    }


def makers(config: RunConfig, data: PackedDataset, runtime: Runtime) -> dict[str, Any]:
    """What makes the run now."""
    device = runtime.device
    return {
        "fingerprint": config.fingerprint,
        "data": data_facts(data),
        "versions": {
            "gantool": gantool.__version__,
            "commit": revision.commit(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "host": platform.node(),
        "image": container.image(),
        "num_ranks": runtime.num_ranks,
        "threads": torch.get_num_threads(),
    }


def with_earlier(known: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """`now`, and in `before` the makers of earlier starts as `known` has them, of each that differs once."""
    earlier = [*known.get("before", []), {name: value for name, value in known.items() if name != "before"}]
    before = [one for index, one in enumerate(earlier) if one != now and one not in earlier[:index]]
    return now | ({"before": before} if before else {})


def other_bits(known: dict[str, Any], now: dict[str, Any]) -> str | None:
    """In words, why a run that `known` made rounds otherwise from now on; None if nothing of that changed."""
    what = {"device": "the device", "num_ranks": "the number of processes"}
    if now["device"] == "cpu":
        what["threads"] = "the number of threads"
    changed = [
        f"{words} was {known[name]}, is {now[name]}"
        for name, words in what.items()
        if name in known and known[name] != now[name]
    ]
    return f"{'; '.join(changed)}: from here on the bits are others than without the stop" if changed else None
