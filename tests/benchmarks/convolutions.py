"""Forward and backward of convolutions in two forms that take turns.

    python tests/benchmarks/convolutions.py [--batch 64] [--rounds 9] [--threads 2] [--device cpu]

doubled, pooled: a 3x3 convolution beside a change of size, against one strided convolution (which may in turn be a
product, by the rules of a training). doubling, halving: a 4x4 convolution with stride 2, against a product of matrices
(on CPUs). same: a 3x3 convolution against `models/winograd.py` (on CPUs, in float32). A ratio is the time of the first
form over that of the second, median of the rounds; the networks take the second where these are above 1. Sizes are
those of the feature map on the large side; a doubling halves the channels, a halving doubles them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gantool.models import resampling
from gantool.models.resampling import Doubling, Halving, rewritten
from gantool.models.winograd import Conv3x3, winograd
from gantool.runtime import keep_freed_blocks

Form = Callable[[Tensor], Tensor]
CHANNELS = {"same": (64, 128, 256), **dict.fromkeys(("doubled", "pooled"), (16, 64, 256))}
CHANNELS |= dict.fromkeys(("doubling", "halving"), (64, 128, 256, 512))


def seconds(form: Form, conv: nn.Module, x: Tensor, bfloat16: bool) -> float:
    if x.is_cuda:
        torch.cuda.synchronize()
    began = time.perf_counter()
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bfloat16):
        out = form(x)
    torch.autograd.grad(out.float().sum(), [x, *conv.parameters()])
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def forms(name: str, channels: int) -> tuple[nn.Module, Form, Form]:
    """The layer, and how it is computed in both forms."""
    if name == "same":
        conv = nn.Conv2d(channels, channels, 3, padding=1)
        return conv, conv, lambda x: winograd(x, conv.weight, conv.bias)
    if name in ("doubled", "pooled"):
        conv = Conv3x3(channels, channels, bias=False)  # plain, or by Winograd where the rules of a training say so
        if name == "doubled":
            return conv, lambda x: conv(F.interpolate(x, scale_factor=2)), lambda x: resampling.strided_doubled(x, conv)
        return conv, lambda x: F.avg_pool2d(conv(x), 2), lambda x: resampling.strided_pooled(x, conv)
    layer = (Doubling if name == "doubling" else Halving)(
        *((channels, channels // 2) if name == "doubling" else (channels // 2, channels)), bias=False
    )

    def library(x: Tensor) -> Tensor:
        with rewritten(False):
            return layer(x)

    def product(x: Tensor) -> Tensor:
        rule, resampling._pays_as_product = resampling._pays_as_product, lambda weight, pixels: True
        try:
            return layer(x)
        finally:
            resampling._pays_as_product = rule

    return layer, library, product


def main() -> None:
    parser = argparse.ArgumentParser(description="Two forms of convolutions that change the size.")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.device == "cpu":
        keep_freed_blocks()  # as in a training
    print("form     channels  size  float32  bfloat16")
    for name in ("same", "doubled", "pooled", "doubling", "halving"):
        if given.device != "cpu" and name in ("same", "doubling", "halving"):
            continue
        for channels in CHANNELS[name]:
            for size in (8, 16, 32):
                conv, *both = forms(name, channels)
                conv = conv.to(given.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
                side = size // 2 if name in ("doubled", "doubling") else size
                inputs = channels // 2 if name == "halving" else channels
                x = torch.randn(given.batch, inputs, side, side, device=given.device)
                x = x.contiguous(memory_format=torch.channels_last).requires_grad_(True)
                ratios: list[str] = []
                for bfloat16 in (False, True) if name != "same" else (False,):
                    found = []
                    for number in range(given.rounds + 2):
                        pair = [seconds(form, conv, x, bfloat16) for form in both]
                        if number > 1:
                            found.append(pair[0] / pair[1])
                    ratios.append(f"{statistics.median(found):7.2f}")
                print(f"{name:8} {channels:8} {size:5}  {'   '.join(ratios)}", flush=True)


if __name__ == "__main__":
    main()
