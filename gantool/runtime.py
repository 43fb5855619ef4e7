"""Devices and ranks: the only file that knows accelerate.

Gradients and numbers are averaged over ranks as one flat buffer; the networks are not wrapped, so that several passes,
penalties with double backward and frozen players need no special care.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import resource
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor

from gantool.config.schema import RuntimeConfig
from gantool.driver import Obstacle, no_gpu, obstacle
from gantool.errors import GantoolError, UsageError

_AT_ONCE = 2**24  # numbers of an array that go through the network at a time


class Runtime:
    """This process: its device, its rank among `num_ranks`, and what ranks do together."""

    def __init__(self, settings: RuntimeConfig) -> None:
        kind = _choose_device(settings.device)
        for name in settings.trackers:
            spec = importlib.util.find_spec(name)
            if spec is None or spec.origin is None:  # a folder of that name is no package
                raise UsageError(f"runtime.trackers: {name} is not installed", f"pip install 'gantool[{name}]'")
        # The other ranks wait while rank 0 scores, which may take longer than the default half hour.
        patience = InitProcessGroupKwargs(timeout=timedelta(hours=24))
        threads = num_threads(settings.threads)
        if os.environ.get("WORLD_SIZE", "1") != "1":
            os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # else accelerate sets it to 1, and warns
        self._accelerator = _accelerator(cpu=kind == "cpu", kwargs_handlers=[patience])
        self.device: torch.device = self._accelerator.device
        if self.device.type != kind:
            text = f"runtime.device: found that accelerate uses {self.device.type}, expected {kind}"
            raise UsageError(text, "unset ACCELERATE_USE_CPU and the like, or set runtime.device to what is wanted")
        self.rank: int = self._accelerator.process_index
        self.num_ranks: int = self._accelerator.num_processes
        self.is_main = self.rank == 0
        self.trackers = Trackers(settings.trackers if self.is_main else ())
        self._rewrites = settings.rewrites
        set_threads(threads)

    def described(self, precision: str) -> str:
        """In words, how training is computed here."""
        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else str(self.device)
        where = f"{device}, {torch.get_num_threads()} CPU threads, process {self.rank + 1} of {self.num_ranks}"
        rewrites = "with" if self._rewrites and self.device.type == "cpu" else "without"
        if precision == "tf32" and self.device.type != "cuda":
            precision = "float32"  # there is none
        return f"torch {torch.__version__} on {where}; precision {precision}, {rewrites} rewritten convolutions"

    def peak_megabytes(self) -> float:
        """The most memory that this process had (see `peak_megabytes`)."""
        return peak_megabytes(self.device)

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace float tensors of the same shapes on all ranks by their mean over the ranks."""
        if self.num_ranks == 1:
            return
        tensors = list(tensors)
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.num_ranks
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        torch._foreach_copy_(tensors, [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)])

    def sum(self, array: np.ndarray) -> None:
        """Replace an array of numbers by its sum over the ranks, in place."""
        if self.num_ranks == 1:
            return
        flat = torch.from_numpy(array).view(-1)
        for part in torch.split(flat, _AT_ONCE):
            moved = part.to(self.device)
            dist.all_reduce(moved)
            part.copy_(moved)

    def highest(self, value: int) -> int:
        """The highest `value` of all ranks; also a barrier."""
        if self.num_ranks == 1:
            return value
        tensor = torch.tensor(value, device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return int(tensor)

    def on_main(self, work: Callable[[], None]) -> None:
        """Do `work` on rank 0 while the others wait; when it fails there, all ranks raise."""
        self.on_all(work if self.is_main else lambda: None)

    def on_all(self, work: Callable[[], None]) -> None:
        """Do `work` on all ranks; when it fails on one, all raise, so that none waits for it in vain."""
        failure: Exception | None = None
        try:
            work()
        except Exception as error:
            failure = error
        if self.highest(int(failure is not None)):
            raise failure or GantoolError("another rank failed", "its message says why")

    def finish(self) -> None:
        """Leave the process group."""
        self._accelerator.end_training()


def _accelerator(**options: Any) -> Accelerator:
    try:
        return Accelerator(**options)
    except ValueError as error:
        names = sorted(name for name in os.environ if name.startswith("ACCELERATE_"))
        if not names:
            raise
        raise UsageError(f"accelerate does not start: {error}", f"unset or correct {', '.join(names)}") from None


class Trackers:
    """TensorBoard and Weights & Biases, on rank 0, fed with what the run's own files have too. One that fails is told
    of and left out from then on: no tracker ends or changes a run."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = tuple(names)
        self._open: dict[str, tuple[Any, int]] = {}  # the tracker, and the first step that it lacks
        self._tell: Callable[[str], object] = str

    def start(self, folder: Path, config: dict[str, Any], step: int, tell: Callable[[str], None]) -> int:
        """Open them for the run in `folder`, which goes on at `step`; the first step that one of them lacks, to be sent
        `again`. `tell` hears of failures."""
        self._tell = tell

        def start(name: str) -> None:
            self._open[name] = _OPENERS[name](folder, _flat(config), step)

        for name in self._names:
            self._try(name, partial(start, name))
        return min([lacking for _, lacking in self._open.values()], default=step + 1)

    def numbers(self, values: Mapping[str, float], step: int, again: bool = False) -> None:
        """Numbers of a step; `again`: only for those that lack it."""
        for name, tracker in self._that_lack(step, again):
            self._try(name, partial(tracker.log, dict(values), step))

    def picture(self, name: str, picture: np.ndarray, step: int, again: bool = False) -> None:
        """A picture of a step, uint8 [H, W, 3]; `again` as for numbers."""

        def write(tracker: Any) -> None:
            if tracker.name == _BOARD:
                tracker.log_images({name: picture[None]}, step, dataformats="NHWC")
                tracker.tracker.flush()
            else:
                tracker.log_images({name: [picture]}, step)

        for tracker_name, tracker in self._that_lack(step, again):
            self._try(tracker_name, partial(write, tracker))

    def _that_lack(self, step: int, again: bool) -> list[tuple[str, Any]]:
        return [(name, tracker) for name, (tracker, lacking) in self._open.items() if not again or step >= lacking]

    def close(self) -> None:
        """Write what is still to be written, and close them."""
        for name, (tracker, _) in [*self._open.items()]:
            self._try(name, tracker.finish)
        self._open.clear()

    def _try(self, name: str, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:
            self._open.pop(name, None)
            first = (str(error).strip().splitlines() or [""])[0]
            self._tell(f"warning: the tracker {name} failed and is left out: {type(error).__name__}: {first}")


def _open_tensorboard(folder: Path, config: dict[str, Any], step: int) -> tuple[GeneralTracker, int]:
    """Event files in `folder`/tensorboard; a later start says in them from which step on earlier ones do not count."""
    before = any((folder / _BOARD).glob("events.*"))
    tracker = TensorBoardTracker(_BOARD, str(folder), purge_step=step if before else None)
    _start(tracker)
    if not before:
        tracker.store_init_configuration(config)
    return tracker, step if before else 0


def _open_wandb(folder: Path, config: dict[str, Any], step: int) -> tuple[GeneralTracker, int]:
    """A run of the same name as the folder, below it in wandb/; offline unless $WANDB_MODE says otherwise. Offline each
    start is a folder of its own, and one that was killed may be empty: the newest is given everything."""
    name, mode = folder.resolve().name, os.environ.get("WANDB_MODE", "offline")
    tracker = WandBTracker(
        os.environ.get("WANDB_PROJECT", "gantool"),
        id=name,
        name=name,
        resume="allow",
        dir=str(folder),
        mode=mode,
        settings={"console": "off", "silent": True},
    )
    _start(tracker)
    tracker.store_init_configuration(config)
    return tracker, 0 if mode == "offline" else step


def _start(tracker: GeneralTracker) -> None:
    if hasattr(tracker, "start"):  # in older versions it is made started
        tracker.start()


_BOARD = "tensorboard"
_OPENERS = {"tensorboard": _open_tensorboard, "wandb": _open_wandb}


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, int | float | str | bool]:
    """Nested mappings as one with dotted keys, as trackers want it."""
    flat: dict[str, int | float | str | bool] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, (int, float, str, bool)) else str(value)
    return flat


def num_threads(wanted: int) -> int:
    """CPU threads for this process: `wanted`, else OMP_NUM_THREADS, else its CPUs shared by the local processes."""
    if wanted:
        return wanted
    if os.environ.get("OMP_NUM_THREADS", "").isdigit():
        return max(1, int(os.environ["OMP_NUM_THREADS"]))
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cpus // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def set_threads(number: int) -> None:
    """Let torch use this many CPU threads."""
    torch.set_num_threads(number)


def peak_megabytes(device: torch.device) -> float:
    """The most memory that tensors took on a GPU, else that this process took; nothing is waited for."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device)) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit) / 2**20


def return_large_blocks() -> None:
    """Let glibc give freed blocks of a megabyte and more back at once. Else it keeps blocks of up to 32 MB for later,
    and scores, which use many sizes once, hold twice the memory (12,000 images with KID: 1.2 instead of 0.6 GB). What
    was kept before goes back too; its places in the heap are used again first, and held then."""
    _tell_glibc({_MMAP_THRESHOLD: 2**20, _MMAP_MAX: 2**16, _TRIM_THRESHOLD: 2**17}, trim=True)


def keep_freed_blocks() -> None:
    """Let glibc keep what is freed. The steps of a training on the CPU use the same sizes again and again; else the
    kernel clears the memory of their feature maps anew each time (tests/benchmarks/freed_blocks.py)."""
    _tell_glibc({_MMAP_MAX: 0, _TRIM_THRESHOLD: -1}, trim=False)


@contextlib.contextmanager
def freed_blocks(kept: bool, device: torch.device) -> Iterator[None]:
    """Within, freed memory is kept (see `keep_freed_blocks`) or given back, and afterwards the other; with a GPU, which
    has the feature maps, it is left to glibc."""
    policies = (keep_freed_blocks, return_large_blocks) if kept else (return_large_blocks, keep_freed_blocks)
    if device.type == "cpu":
        policies[0]()
    try:
        yield
    finally:
        if device.type == "cpu":
            policies[1]()


_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # M_... of malloc.h


def _tell_glibc(options: dict[int, int], trim: bool) -> None:
    with contextlib.suppress(OSError, AttributeError):  # another libc
        libc = ctypes.CDLL("libc.so.6")
        for option, value in options.items():
            libc.mallopt(option, value)
        if trim:
            libc.malloc_trim(0)


def choose_device(wanted: str) -> torch.device:
    """The device for a single process that samples or scores; UsageError when it is not there."""
    return torch.device(_choose_device(wanted))


def device_caution(device: torch.device, wanted: str) -> str | None:
    """In words, why `auto` became the CPU on a machine with NVIDIA's driver; None if it did not."""
    found = _obstacle() if wanted == "auto" and device.type == "cpu" else None
    return f"{found.text}, so the CPU is used: {found.hint}" if found else None


def _obstacle() -> Obstacle | None:
    return obstacle(torch.version.cuda) or (None if torch.cuda.is_available() else no_gpu())


def _choose_device(wanted: str) -> str:
    found_obstacle = _obstacle() if wanted in ("auto", "cuda") else None
    if found_obstacle and (found_obstacle.fatal or wanted == "cuda"):
        raise UsageError(found_obstacle.text, f"{found_obstacle.hint}; or use the CPU: --device cpu")
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return next(name for name, found in there.items() if found)
    if not there[wanted]:
        found = ", ".join(name for name, is_there in there.items() if is_there)
        raise UsageError(f"device {wanted} is not available here (found: {found})", "set runtime.device to auto")
    return wanted
