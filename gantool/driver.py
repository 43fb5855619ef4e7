"""NVIDIA's driver, asked without torch: which CUDA it is good for, and why torch would see no GPU.

A driver of one major version of CUDA runs programs of all its minor versions, and of older ones, never of newer ones:
https://docs.nvidia.com/deploy/cuda-compatibility. torch itself only warns, and then trains on the CPU.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import NamedTuple

from gantool import container

# Also there in a container that was started without its GPUs; the second of them if it has its own /dev, too.
SIGNS = (Path("/dev/nvidiactl"), Path("/proc/driver/nvidia/version"))


class Obstacle(NamedTuple):
    """Why the GPUs of this machine cannot be used."""

    text: str
    hint: str
    fatal: bool  # never what anybody wants, so that taking the CPU instead would only waste their time


def cuda_of_driver() -> tuple[int, int] | None:
    """The newest CUDA that the driver supports, like (12, 8); None without a driver."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    if library.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return version.value // 1000, version.value % 1000 // 10


def obstacle(built_for: str | None) -> Obstacle | None:
    """What keeps a torch that was built for CUDA `built_for` ('12.8'; None: for the CPU) from the GPUs here.

    None when nothing does, and where there is no driver at all.
    """
    cuda = cuda_of_driver()
    if cuda is None and not any(sign.exists() for sign in SIGNS):
        return None
    if built_for is None:
        hint = "install torch for CUDA, or take an image that was built with a lock for CUDA"
        return Obstacle("an NVIDIA driver is here, but this torch was built for the CPU", hint, False)
    if cuda is None:
        if engine := container.engine():
            return Obstacle("an NVIDIA driver is here, but not in the container", engine.gpus, False)
        hint = "install the libraries of the driver"
        return Obstacle("an NVIDIA driver is here, but not its library libcuda.so.1", hint, False)
    if cuda[0] < int(built_for.split(".")[0]):
        text = f"the NVIDIA driver is too old: it is good for CUDA {cuda[0]}.{cuda[1]}, torch was built for {built_for}"
        hint = f"take a torch (or an image) for CUDA {cuda[0]}, or a newer driver"
        return Obstacle(text, hint, True)
    return None


def no_gpu() -> Obstacle | None:
    """Why a torch that fits the driver may find no GPU all the same; None without a driver."""
    if cuda_of_driver() is None:
        return None
    visible, in_job = os.environ.get("CUDA_VISIBLE_DEVICES"), "SLURM_JOB_ID" in os.environ
    if visible is not None and (visible.strip() in ("", "-1") or not in_job):  # else Slurm has set it
        hint = f"CUDA_VISIBLE_DEVICES is '{visible}': unset it, or name GPUs that nvidia-smi --list-gpus shows"
    elif in_job:
        hint = "ask Slurm for GPUs (--gpus-per-node=1); if the job has some, look at what nvidia-smi says"
    else:
        hint = "look at what nvidia-smi says; without an error there, /dev/nvidia-uvm may be missing"
    return Obstacle("an NVIDIA driver is here, but no GPU that this process can use", hint, False)
