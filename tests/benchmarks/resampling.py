"""Forward and backward of a convolution beside a change of size, plain and as one strided convolution, in turns.

    python tests/benchmarks/resampling.py [--batch 64] [--rounds 9] [--threads 2] [--device cpu]

A ratio is the time of the plain form over that of the strided one, median of the rounds; `models/resampling.py` takes
the strided form where these are above 1. Sizes are those of the feature map on the large side.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gantool.models import resampling


def seconds(form: str, conv: nn.Conv2d, x: Tensor, bfloat16: bool) -> float:
    if x.is_cuda:
        torch.cuda.synchronize()
    began = time.perf_counter()
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bfloat16):
        if form == "doubled":
            out = conv(F.interpolate(x, scale_factor=2))
        elif form == "pooled":
            out = F.avg_pool2d(conv(x), 2)
        elif form == "doubled, strided":
            out = resampling.strided_doubled(x, conv)
        else:
            out = resampling.strided_pooled(x, conv)
    torch.autograd.grad(out.float().sum(), [x, conv.weight])
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description="Plain and strided convolutions beside a change of size.")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print("form     channels  size  float32  bfloat16")
    for form in ("doubled", "pooled"):
        for channels in (16, 64, 256):
            for size in (8, 16, 32):
                conv = nn.Conv2d(channels, channels, 3, padding=1, device=given.device)
                conv = conv.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
                side = size // 2 if form == "doubled" else size
                x = torch.randn(given.batch, channels, side, side, device=given.device)
                x = x.contiguous(memory_format=torch.channels_last).requires_grad_(True)
                ratios: list[str] = []
                for bfloat16 in (False, True):
                    found = []
                    for number in range(given.rounds + 2):
                        pair = [seconds(name, conv, x, bfloat16) for name in (form, f"{form}, strided")]
                        if number > 1:
                            found.append(pair[0] / pair[1])
                    ratios.append(f"{statistics.median(found):7.2f}")
                print(f"{form:8} {channels:8} {size:5}  {'   '.join(ratios)}", flush=True)


if __name__ == "__main__":
    main()
