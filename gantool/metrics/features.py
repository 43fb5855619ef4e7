"""Images to features, and streams of images to statistics.

A network is always run on blocks of the same shape, the last one padded, so features do not depend on how the caller
cut the images into batches (on the CPU to the last bit; cuDNN and BLAS choose their algorithm by shape). Float32
without TF32, channels last.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gantool.errors import GantoolError
from gantool.metrics.moments import Moments, Statistics
from gantool.progress import Progress

Images = npt.NDArray[np.uint8]

_AT_ONCE = 512  # images between two updates of the moments, which cost the same for 1 image and for 512


class Features(NamedTuple):
    """What an extractor sees in n images."""

    pooled: Tensor  # float32 [n, feature_dim]
    logits: Tensor  # float32 [n, num_logits]
    spatial: Tensor | None = None  # float32 [n, spatial_dim], where the extractor has them


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
    network: Callable[[Tensor], tuple[Tensor, ...]]  # uint8 [block, H, W, C] -> (pooled, logits[, spatial])
    notes: tuple[str, ...] = ()  # warnings for every score
    ddof: int = 1  # covariances are divided by n - ddof
    spatial_dim: int = 0  # length of the features before pooling, for sFID; 0: it has none
    spatial_protocol: str = ""

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Features:
        """Features of uint8 images [n, H, W, C], 0..255; the result is on the extractor's device."""
        assert images.dtype == torch.uint8 and images.ndim == 4 and len(images), (images.dtype, images.shape)
        found = []
        with exact_float32():
            for part in torch.split(images.to(self.device), self.block):
                padding = part[-1:].expand(self.block - len(part), -1, -1, -1)
                found.append([tensor[: len(part)] for tensor in self.network(torch.cat([part, padding]))])
        return Features(*(torch.cat(tensors) for tensors in zip(*found, strict=True)))


def collect(
    images: Iterable[Tensor], extractor: Extractor, num: int, progress: Progress, what: str, keep_logits: bool = True
) -> Statistics:
    """Statistics of exactly `num` images, given as uint8 tensors [n, H, W, C] of any n; nothing but logits is kept.

    GantoolError when the features are not finite or there are fewer images.
    """
    moments = Moments.empty(extractor.feature_dim)
    logits = np.empty((num if keep_logits else 0, extractor.num_logits), np.float32)
    done, waiting = 0, list[Features]()
    progress.step(what, 0, num)
    for block in reblock(images, extractor.block):
        waiting.append(extractor(block[: num - done]))
        done += len(waiting[-1].pooled)
        if done == num or len(waiting) * extractor.block >= _AT_ONCE:
            pooled, some = (torch.cat(parts).cpu().numpy() for parts in zip(*waiting, strict=True))
            waiting.clear()
            moments.add(pooled)
            if keep_logits:
                logits[done - len(some) : done] = some
            if not np.isfinite(some).all():
                raise GantoolError("found logits that are NaN or infinite", "the extractor's weights are broken")
        progress.step(what, done, num)
        if done == num:
            return Statistics(moments, logits)
    raise GantoolError(f"found {done} images, expected {num}")


def reblock(images: Iterable[Tensor], block: int) -> Iterator[Tensor]:
    """The same images in the same order, `block` at a time (the last: what is left), so that every image is always
    computed at the same place of its block."""
    waiting: list[Tensor] = []
    for part in images:
        waiting.append(part)
        if sum(map(len, waiting)) >= block:
            *whole, rest = torch.split(torch.cat(waiting), block)
            waiting = [rest]
            if len(rest) == block:
                whole.append(rest)
                waiting = []
            yield from whole
    if waiting:
        yield torch.cat(waiting)


def batches(images: Images, indices: npt.NDArray[np.int64], size: int = 256) -> Iterator[Tensor]:
    """The images at `indices` (ascending) of a memory-mapped array, as uint8 tensors [<= size, H, W, C]."""
    for start in range(0, len(indices), size):
        yield torch.from_numpy(np.array(images[indices[start : start + size]]))


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Float32 products in float32 (no TF32, no bfloat16), by algorithms that give the same bits each time; the settings
    of before come back afterwards."""
    matmul = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(matmul)
