"""Imports without triton, the compiler of kernels, which nothing of gantool needs: where it has been loaded, a process
may end with fifty lines about its leaks."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def without_triton() -> Iterator[None]:
    """What is imported within finds that triton is not installed; a triton that has been loaded stays."""
    absent = "triton" not in sys.modules
    if absent:
        sys.modules["triton"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if absent:
            del sys.modules["triton"]
