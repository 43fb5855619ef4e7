"""Random numbers as functions of a key: (seed, stream, counters...) names one independent sequence.

Nothing random in gantool has a state to save: the noise of step t comes from (seed, t), image k of a sample from
(seed, k). Keys are mixed by numpy's SeedSequence and drive the counter-based Philox generator (Salmon et al., 2011).
"""

from __future__ import annotations

import zlib

import numpy as np


def generator(seed: int, stream: str, *counters: int) -> np.random.Generator:
    """The sequence of `stream` ('order', 'noise', ...) at `counters` (step, epoch, image, ...; integers >= 0)."""
    name = zlib.crc32(stream.encode())
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, name, *counters])))
