"""What is kept of a set of images: moments and, where a metric asks for them, rows of features and logits. No torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gantool.errors import GantoolError
from gantool.metrics.moments import Moments, frechet_distance

FloatRows = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Need:
    """What to keep beside the moments of the features; `|` joins two needs."""

    logits: bool = False
    features: bool = False
    spatial: bool = False

    def __or__(self, other: Need) -> Need:
        return Need(self.logits or other.logits, self.features or other.features, self.spatial or other.spatial)

    def bits(self) -> int:
        """As a number, for other ranks."""
        return self.logits + 2 * self.features + 4 * self.spatial

    @classmethod
    def from_bits(cls, bits: int) -> Need:
        """The need that `bits` was made of."""
        return cls(bool(bits & 1), bool(bits & 2), bool(bits & 4))


@dataclass
class Statistics:
    """What the scores of a set of images are computed from; rows are in the order of the images."""

    protocol: str  # of the features
    moments: Moments  # of the pooled features
    logits: FloatRows | None = None  # [n, num_logits]
    features: FloatRows | None = None  # [n, feature_dim]
    spatial: Moments | None = None  # of the features before pooling
    labels: npt.NDArray[np.int64] | None = None  # [n], the classes
    ddof: int = 1

    @property
    def count(self) -> int:
        """Number of images."""
        return self.moments.count


def distance(scored: Statistics, reference: Statistics) -> float:
    """Squared Frechet distance of the pooled features; GantoolError when they come from different protocols."""
    if scored.protocol != reference.protocol:
        text = f"features of different protocols cannot be compared: {scored.protocol} and {reference.protocol}"
        raise GantoolError(text, "compute both with the same extractor, weights, protocol and precision")
    assert scored.ddof == reference.ddof
    return frechet_distance(scored.moments, reference.moments, scored.ddof, scored.features, reference.features)
