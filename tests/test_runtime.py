"""What the process asks of the machine."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
from gantool import runtime

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(5_000_000)  # 20 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

found = []
for policy in ("return_large_blocks", "keep_freed_blocks", "return_large_blocks"):
    getattr(runtime, policy)()
    faults()
    blocks = [torch.ones(5_000_000) for _ in range(10)]
    above = torch.ones(1_000)
    del blocks
    found += [faults(), resident()]
print(*found)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is of glibc")
def test_freed_memory_is_kept_between_steps_and_given_back_for_scores() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    faults, resident = [[int(number) for number in done.stdout.split()][i::2] for i in (0, 1)]
    assert faults[0] > 20 * max(faults[1], 1)
    assert resident[1] > resident[0] + 150e6 and resident[2] < resident[0] + 30e6
