"""What the process asks of the machine."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import Gantool

from gantool import runtime
from gantool.runtime import freed_blocks

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


def test_memory_is_kept_while_training_but_for_scores_and_never_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    for name in ("keep_freed_blocks", "return_large_blocks"):
        monkeypatch.setattr(runtime, name, lambda name=name: told.append(name))
    for kind in ("cpu", "cuda"):
        device = torch.device(kind)
        with pytest.raises(ZeroDivisionError), freed_blocks(kept=True, device=device):
            with freed_blocks(kept=False, device=device):
                told.append("score")
            told.append(str(1 / 0))
    keep, give = "keep_freed_blocks", "return_large_blocks"
    assert told == [keep, give, "score", keep, give, "score"]


def test_nonsense_in_the_environment_of_accelerate_is_named(gantool: Gantool, tiny: Path) -> None:
    done = gantool("train", tiny, ACCELERATE_USE_CPU="perhaps")
    assert done.returncode == 2 and "error: accelerate does not start: " in done.stderr
    assert "hint: unset or correct ACCELERATE_USE_CPU" in done.stderr
