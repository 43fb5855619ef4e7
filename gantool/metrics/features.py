"""Images to features.

A network is always run on blocks of the same shape, the last one padded, so features do not depend on how the caller
cut the images into batches (on the CPU to the last bit; cuDNN and BLAS choose their algorithm by shape). Float32
without TF32, channels last.

On the CPU the blocks are small enough for a core's cache, and each core runs blocks of its own, from end to end: cores
that share each layer of a larger block wait for one another after each of hundreds of layers and move the images
through memory in between. No bit depends on the number of threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gantool.precision import float32_products

Images = npt.NDArray[np.uint8]


class Features(NamedTuple):
    """What an extractor sees in n images."""

    pooled: Tensor  # float32 [n, feature_dim]
    logits: Tensor  # float32 [n, num_logits]
    spatial: Tensor | None = None  # float32 [n, spatial_dim], where the extractor has them

    def tensors(self) -> list[Tensor]:
        """Those that are there."""
        return [tensor for tensor in self if tensor is not None]


@dataclass(frozen=True)
class Extractor:
    """A fixed network that turns images into features, and what identifies its numbers."""

    name: str
    digest: str  # SHA-256 of its weights
    protocol: str  # what it does to the images, and where the features are taken: 'tf1-bilinear|u8|pool3-2048|w=...'
    logits_protocol: str  # the same for the logits
    feature_dim: int
    num_logits: int  # 0: it has none
    block: int  # images per run of the network
    device: torch.device
    network: Callable[
        [Tensor], tuple[Tensor, ...]
    ]  # uint8 [block, H, W, C] -> (pooled, logits[, spatial]); thread-safe
    notes: tuple[str, ...] = ()  # warnings for every score
    ddof: int = 1  # covariances are divided by n - ddof
    spatial_dim: int = 0  # length of the features before pooling, for sFID; 0: it has none
    spatial_protocol: str = ""

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Features:
        """Features of uint8 images [n, H, W, C], 0..255; the result is on the extractor's device."""
        assert images.dtype == torch.uint8 and images.ndim == 4 and len(images), (images.dtype, images.shape)
        blocks = torch.split(images.to(self.device), self.block)
        with float32_products(tf32=False):
            if self.device.type == "cpu":
                found = _one_for_each_core(self._features, blocks)
            else:
                found = [self._features(block) for block in blocks]
        return Features(*(torch.cat(tensors) for tensors in zip(*found, strict=True)))

    @torch.inference_mode()  # holds for one thread only
    def _features(self, images: Tensor) -> list[Tensor]:
        padding = images[-1:].expand(self.block - len(images), -1, -1, -1)
        return [tensor[: len(images)] for tensor in self.network(torch.cat([images, padding]))]


def block_of(device: torch.device) -> int:
    """Images per run of a network for images of 224 or 299 pixels."""
    return 8 if device.type == "cpu" else 32


def _one_for_each_core(function: Callable[[Tensor], list[Tensor]], blocks: Sequence[Tensor]) -> list[list[Tensor]]:
    """The function of each block, as many at once as torch has threads, each of them on one."""
    threads = torch.get_num_threads()
    number = min(threads, len(blocks))
    begun = threading.Barrier(number + 1)

    def begin() -> None:
        torch.get_num_threads()  # a thread takes over the number of the process when torch is first used in it: now
        torch.set_num_threads(1)
        begun.wait()

    with ThreadPoolExecutor(number, initializer=begin) as pool:
        found = pool.map(function, blocks)
        begun.wait()
        torch.set_num_threads(threads)  # is also what threads to come take over
        return list(found)


def batches(images: Images, indices: npt.NDArray[np.int64], size: int = 256) -> Iterator[Tensor]:
    """The images at `indices` (ascending) of a memory-mapped array, as uint8 tensors [<= size, H, W, C]."""
    for start in range(0, len(indices), size):
        yield torch.from_numpy(np.array(images[indices[start : start + size]]))
