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

runtime.return_large_blocks()
found = [faults(), resident()]
runtime.keep_freed_blocks()
blocks = [torch.ones(5_000_000) for _ in range(10)]
above = torch.ones(1_000)
del blocks
faults()  # the first may still find its place
found += [faults(), resident()]
runtime.return_large_blocks()
print(*found, resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is of glibc")
def test_freed_memory_is_kept_between_steps_and_given_back_for_scores() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    first, at_first, kept, at_kept, returned = (int(number) for number in done.stdout.split())
    assert first > 20 * max(kept, 1)
    assert at_kept > at_first + 150e6 and returned < at_first + 30e6
