"""Batches of real images as a function of the draw: which images, how augmented, on the device in [-1, 1].

Draw d takes the positions [d B, (d + 1) B) of an endless list that is one random permutation of the images after the
other; epoch e's comes from (seed, e). So there is no loader state, and a batch is the same for any number of ranks.
"""

from __future__ import annotations

import copy
import functools
import warnings
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from gantool import randomness
from gantool.config.objective import AdaAugment, AdvancedAugment, AnyAugment, BasicAugment, DiffAugment
from gantool.data import augment


def draw_indices(seed: int, num_images: int, batch: int, draw: int, stream: str = "order") -> np.ndarray:
    """Image indices of draw number `draw`, int64 [batch]; over an epoch each image comes once."""
    positions = np.arange(draw * batch, (draw + 1) * batch)
    epochs, places = np.divmod(positions, num_images)
    indices = np.empty(batch, dtype=np.int64)
    for epoch in np.unique(epochs):
        inside = epochs == epoch
        indices[inside] = _permutation(seed, num_images, int(epoch), stream)[places[inside]]
    return indices


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, num_images: int, epoch: int, stream: str) -> np.ndarray:
    return randomness.generator(seed, stream, epoch).permutation(num_images)


def to_device(values: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """`values` on `device`; to a GPU through pinned memory, so that nothing waits until it has done what is queued."""
    tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def to_float(images: Tensor) -> Tensor:
    """uint8 [B, H, W, C], 0..255 -> float [B, C, H, W], -1..1, channels last in memory. The inverse is `to_uint8`."""
    return images.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def to_uint8(images: Tensor) -> Tensor:
    """float [B, C, H, W], -1..1 -> uint8 [B, H, W, C], 0..255, rounded half up as StyleGAN3 does."""
    return (images * 127.5 + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


class RealImages:
    """The training images on `device`; a rank takes its share of each global batch."""

    def __init__(
        self,
        images: np.ndarray,  # uint8 [N, H, W, C], usually memory-mapped
        settings: AnyAugment,
        seed: int,
        batch: int,
        device: torch.device,
        rank: int = 0,
        num_ranks: int = 1,
        resident: str = "auto",
    ) -> None:
        assert batch % num_ranks == 0
        if isinstance(settings, (DiffAugment, AdaAugment)):  # the rest is done to real and generated images alike
            settings = BasicAugment(flip=settings.flip, shift=0)
        self.settings, self.seed, self.batch_size, self.device = settings, seed, batch, device
        self.stream = ""
        share = batch // num_ranks
        self.share = slice(rank * share, (rank + 1) * share)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # "not writable": nothing writes to it
            self.images = torch.from_numpy(images)
        self.resident = device.type == "cpu" or resident == "always" or (resident == "auto" and _fits(images, device))
        if self.resident:
            self.images = self.images.to(device)
        self._ahead: ThreadPoolExecutor | None = None
        self._next: tuple[int, Future[Tensor]] | None = None

    def in_other_order(self, stream: str) -> RealImages:
        """The same images, in orders and with changes of their own."""
        other = copy.copy(self)
        other.stream, other._ahead, other._next = stream, None, None
        return other

    def indices(self, draw: int) -> np.ndarray:
        """Which images this rank's share of draw number `draw` has, int64 [share]."""
        order = f"order{self.stream}"
        return draw_indices(self.seed, len(self.images), self.batch_size, draw, order)[self.share]

    def batch(self, draw: int) -> Tensor:
        """This rank's share of draw number `draw`: float [share, C, H, W] in [-1, 1], augmented."""
        images = (
            self._gather(draw)
            if self.resident
            else self._fetch(draw).to(self.device, non_blocking=self.device.type == "cuda")
        )
        images = to_float(images)
        if isinstance(self.settings, AdvancedAugment):
            rng = randomness.generator(self.seed, f"augment{self.stream}", draw)
            draws = augment.advanced_draws(self.settings, rng, self.batch_size)[self.share]
            images = augment.advanced(self.settings, images, to_device(draws, self.device))
        return images

    def _gather(self, draw: int) -> Tensor:
        """uint8 [share, H, W, C] from where the images lie, mirrored and shifted on the way."""
        place = self.images.device
        chosen = to_device(self.indices(draw), place)
        if not isinstance(self.settings, BasicAugment):
            return self.images[chosen]
        rng = randomness.generator(self.seed, f"augment{self.stream}", draw)
        number, size, width, channels = self.images.shape
        rows, columns = augment.basic_indices(self.settings, rng, self.batch_size, size)
        y, x = (to_device(np.ascontiguousarray(part[self.share]), place) for part in (rows, columns))
        # Whole rows first, then bytes within them: four times as fast as one pixel after the other.
        lines = self.images.view(number * size, width * channels)
        lines = lines.index_select(0, (chosen[:, None] * size + y).view(-1)).view(len(chosen), size, -1)
        places = (x[:, :, None] * channels + torch.arange(channels, device=place)).view(len(chosen), 1, -1)
        return lines.gather(2, places.expand(-1, size, -1)).view(len(chosen), size, width, channels)

    def _fetch(self, draw: int) -> Tensor:
        """`_gather` on the host, one draw ahead in a thread, in pinned memory where there is CUDA."""
        self._ahead = self._ahead or ThreadPoolExecutor(1)
        load = functools.partial(self._pinned, draw)
        images = self._next[1].result() if self._next and self._next[0] == draw else load()
        self._next = (draw + 1, self._ahead.submit(self._pinned, draw + 1))
        return images

    def _pinned(self, draw: int) -> Tensor:
        images = self._gather(draw)
        return images.pin_memory() if self.device.type == "cuda" else images


def _fits(images: np.ndarray, device: torch.device) -> bool:
    if device.type == "cuda":
        return images.nbytes < torch.cuda.mem_get_info(device)[0] / 3
    return images.nbytes < 2**30
