"""`shapes`: ten kinds of bright shapes on dark smooth backgrounds, drawn on the spot; the data that needs no download.

Each image is a function of its number alone: colour, place, size and rotation come from a fixed seed, and the picture
is the same at any resolution. A shape is a signed distance d (negative inside) on coordinates from -1 to 1, and its
edge covers a pixel of width w by clip(1/2 - d / w, 0, 1), which is antialiasing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import reduce
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from gantool import randomness
from gantool.config.schema import KNOWN_DATASETS
from gantool.data.images import Labels, Payload, Pixels, Source, splits_of

Array: TypeAlias = npt.NDArray[np.float64]  # float64, so that rounding to 8 bits is the same on every machine

_SEED = 20
_BLOCK_PIXELS = 250_000


def _circle(x: Array, y: Array) -> Array:
    return np.hypot(x, y) - 0.9


def _ring(x: Array, y: Array) -> Array:
    return np.abs(np.hypot(x, y) - 0.7) - 0.2


def _box(x: Array, y: Array, width: float, height: float) -> Array:
    return np.maximum(np.abs(x) - width, np.abs(y) - height)


def _square(x: Array, y: Array) -> Array:
    return _box(x, y, 0.78, 0.78)


def _cross(x: Array, y: Array) -> Array:
    return np.minimum(_box(x, y, 0.28, 0.95), _box(x, y, 0.95, 0.28))


def _diamond(x: Array, y: Array) -> Array:
    return (np.abs(x) / 0.65 + np.abs(y) - 1) * 0.545  # 0.545 = 1 / |gradient|


def _triangle(x: Array, y: Array) -> Array:
    return np.maximum(0.866 * np.abs(x) - 0.5 * y, y) - 0.5


def _star(x: Array, y: Array) -> Array:
    """Five points at radius 1, notches at radius 0.42: each half point is one edge, folded onto the same sector."""
    sector = 2 * np.pi / 5
    angle = np.abs((np.arctan2(x, -y) + sector / 2) % sector - sector / 2)
    radius = np.hypot(x, y)
    tip = np.array([1.0, 0.0])
    notch = 0.42 * np.array([np.cos(sector / 2), np.sin(sector / 2)])
    normal = np.array([notch[1] - tip[1], tip[0] - notch[0]])
    normal /= np.hypot(*normal)
    edge: Array = (radius * np.cos(angle) - tip[0]) * normal[0] + radius * np.sin(angle) * normal[1]
    return edge


def _heart(x: Array, y: Array) -> Array:
    """A square on its corner with a half disc on each of its upper sides."""
    u, v = (x - y + 0.2) * np.sqrt(0.5), (-x - y + 0.2) * np.sqrt(0.5)
    half = 0.5
    discs = np.minimum(np.hypot(u - half, v), np.hypot(u, v - half)) - half
    heart: Array = np.minimum(_box(u, v, half, half), discs)
    return heart


def _moon(x: Array, y: Array) -> Array:
    return np.maximum(np.hypot(x, y) - 0.95, 0.8 - np.hypot(x - 0.5, y))


def _stripes(x: Array, y: Array) -> Array:
    return reduce(np.minimum, (_box(x, y - centre, 0.9, 0.19) for centre in (-0.7, 0.0, 0.7)))


SHAPES: dict[str, Callable[[Array, Array], Array]] = {
    "circle": _circle,
    "cross": _cross,
    "diamond": _diamond,
    "heart": _heart,
    "moon": _moon,
    "ring": _ring,
    "square": _square,
    "star": _star,
    "stripes": _stripes,
    "triangle": _triangle,
}


def open_shapes(size: int) -> Source:
    """10,000 training and 2,000 test images, uint8 RGB [size, size, 3], with balanced labels in random order."""
    known = KNOWN_DATASETS["shapes"]
    counts = {"train": known.num_train, "test": known.num_test}
    labels: Labels = np.concatenate([_shuffled_labels(number, count) for number, count in enumerate(counts.values())])

    def read() -> Iterator[tuple[int, str, Payload]]:
        block = max(1, _BLOCK_PIXELS // size**2)
        knobs = _draw_knobs(len(labels))
        for start in range(0, len(labels), block):
            part = slice(start, start + block)
            images = draw(labels[part], {name: values[part] for name, values in knobs.items()}, size)
            for index, image in enumerate(images, start=start):
                yield index, f"shapes[{index}]", image

    return Source("shapes", tuple(SHAPES), labels, splits_of(counts), read)


def _shuffled_labels(split: int, count: int) -> Labels:
    return randomness.generator(_SEED, "shapes-labels", split).permutation(
        np.arange(count, dtype=np.int64) % len(SHAPES)
    )


def _draw_knobs(count: int) -> dict[str, Array]:
    """What distinguishes images of one class; colours are RGB in [0, 1], lengths in half image sides."""
    random = randomness.generator(_SEED, "shapes-knobs")
    hue = random.uniform(size=count)
    return {
        "centre": random.uniform(-0.12, 0.12, (count, 2)),
        "radius": random.uniform(0.65, 0.8, count),
        "rotation": random.uniform(-0.25, 0.25, count),
        "colour": _bright(hue),
        "dark": 0.2 * random.uniform(size=(count, 3)),
        "light": 0.05 + 0.25 * random.uniform(size=(count, 3)),
        "slope": random.uniform(0, 2 * np.pi, count),
    }


def _bright(hue: Array) -> Array:
    """Saturated light colours [n, 3] around the colour wheel; hue in [0, 1)."""
    wheel = np.abs((hue[:, None] * 6 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1
    colours: Array = 0.35 + 0.65 * np.clip(wheel, 0, 1)
    return colours


def draw(labels: Labels, knobs: dict[str, Array], size: int) -> Pixels:
    """Images uint8 [n, size, size, 3] of the shapes `labels` (position in SHAPES)."""
    axis = (np.arange(size) + 0.5) * 2 / size - 1
    x, y = axis[None, None, :], axis[None, :, None]
    slope = knobs["slope"][:, None, None]
    ramp = (0.5 + (np.cos(slope) * x + np.sin(slope) * y) * np.sqrt(0.125))[..., None]
    images = knobs["dark"][:, None, None] * (1 - ramp) + knobs["light"][:, None, None] * ramp
    for label, distance in enumerate(SHAPES.values()):
        chosen = np.flatnonzero(labels == label)
        radius, rotation = (knobs[name][chosen, None, None] for name in ("radius", "rotation"))
        dx, dy = x - knobs["centre"][chosen, 0, None, None], y - knobs["centre"][chosen, 1, None, None]
        u = (np.cos(rotation) * dx + np.sin(rotation) * dy) / radius
        v = (np.cos(rotation) * dy - np.sin(rotation) * dx) / radius
        cover = np.clip(0.5 - distance(u, v) * radius * size / 2, 0, 1)[..., None]
        images[chosen] = images[chosen] * (1 - cover) + knobs["colour"][chosen, None, None] * cover
    pixels: Pixels = np.rint(images * 255).astype(np.uint8)
    return pixels
