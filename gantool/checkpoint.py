"""State on disk: checkpoints (everything, to go on from) and snapshots (the averaged generator, to sample and score).

One safetensors file each, with its facts as JSON in the header, so that a file is whole or not there and can be copied
alone. The header carries a digest of the tensors, checked on loading. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from gantool import files
from gantool.errors import GantoolError

_log = logging.getLogger(__name__)

_FACTS, _FACTS_DIGEST = "gantool", "gantool-facts-sha256"


class DamagedFile(GantoolError):
    """A checkpoint or snapshot that is truncated or whose digest is wrong."""


def save(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> str:
    """Write `tensors` (any device) and `facts` (JSON values) to `path`, atomically; returns the digest."""
    tensors = _apart({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    digest = digest_tensors(tensors)
    text = json.dumps({**facts, "digest": digest})
    header = {_FACTS: text, _FACTS_DIGEST: hashlib.sha256(text.encode()).hexdigest()}
    blob = safetensors.torch.save(tensors, header)
    with files.atomic_file(path) as file:
        file.write(blob)
    return digest


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors without shared memory, as tied weights have it: safetensors refuses that."""
    seen: set[int] = set()
    for name, tensor in tensors.items():
        if tensor.numel() and tensor.untyped_storage().data_ptr() in seen:
            tensors[name] = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
    return tensors


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors on the CPU, facts) of a file written by `save`; DamagedFile when it is not whole."""
    facts = read_facts(path)
    try:
        tensors = safetensors.torch.load(path.read_bytes())
    except (OSError, safetensors.SafetensorError) as error:
        raise DamagedFile(f"{path}: cannot be read: {error}", _HINT) from None
    found = digest_tensors(tensors)
    if found != facts.get("digest"):
        raise DamagedFile(
            f"{path}: damaged: its digest is {found[:12]}, expected {str(facts.get('digest'))[:12]}", _HINT
        )
    _log.info("read %s, step %s", path, facts.get("step"))
    return tensors, facts


def read_facts(path: Path) -> dict[str, Any]:
    """The facts in the header alone, without reading the tensors; DamagedFile when it is no file of `save`."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            header = file.metadata() or {}
    except (OSError, safetensors.SafetensorError) as error:
        raise DamagedFile(f"{path}: cannot be read: {error}", _HINT) from None
    text = header.get(_FACTS)
    if text is None:
        raise DamagedFile(f"{path}: a safetensors file, but not one of gantool's", "give a file from snapshots/")
    if hashlib.sha256(text.encode()).hexdigest() != header.get(_FACTS_DIGEST):
        raise DamagedFile(f"{path}: damaged: the digest of its header is wrong", _HINT)
    facts = json.loads(text)
    assert isinstance(facts, dict)
    return facts


_HINT = "use another checkpoint or snapshot of the run, or train again"


def digest_tensors(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of contiguous CPU tensors, independent of their order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def step_file(folder: Path, step: int) -> Path:
    """`<folder>/step-<8 digits>.safetensors`."""
    return folder / f"step-{step:08d}.safetensors"


def newest_whole(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any], list[str]] | None:
    """The newest whole checkpoint of `folder`: (tensors, facts, messages about damaged ones passed over)."""
    messages = []
    for path in sorted(folder.glob("step-*.safetensors"), reverse=True):
        try:
            tensors, facts = load(path)
        except DamagedFile as error:
            messages.append(error.message)
            continue
        return tensors, facts, messages
    return None if not messages else ({}, {}, messages)


def keep_newest(folder: Path, number: int) -> None:
    """Delete all but the `number` newest checkpoints of `folder`."""
    for path in sorted(folder.glob("step-*.safetensors"))[:-number]:
        path.unlink(missing_ok=True)
