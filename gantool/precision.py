"""In which arithmetic convolutions and matrix products are done."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def float32_products(tf32: bool) -> Iterator[None]:
    """Products of float32 numbers in float32 or, where `tf32` and the GPU has it, in TF32 (10 of 23 bits of the
    mantissa), by algorithms that give the same bits each time; the settings of before come back afterwards."""
    matmul = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=tf32):
            yield
    finally:
        torch.set_float32_matmul_precision(matmul)


def call(network: nn.Module, inputs: Tensor, labels: Tensor | None, bfloat16: bool) -> Any:
    """What `network` makes of its inputs, float32: a tensor or a tuple of them.

    With `bfloat16` its convolutions and matrix products, forward and backward, are done in bfloat16 (8 bits of
    mantissa), while weights, moments of norms, losses and optimizers stay float32 (Micikevicius et al., 2018).
    """
    given = (inputs,) if labels is None else (inputs, labels)
    if not bfloat16:
        return network(*given)
    with torch.autocast(inputs.device.type, torch.bfloat16):
        found = network(*given)
    return tuple(one.float() for one in found) if isinstance(found, tuple) else found.float()
