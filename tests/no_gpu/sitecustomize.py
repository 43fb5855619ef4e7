"""Found first by each Python process that runs on the stand-in: what torch must do without there (see stand_in.py)."""

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import Any

if importlib.util.find_spec("torch"):  # not in Pythons that only install something
    import torch

    _flags = torch.backends.cudnn.flags

    @contextlib.contextmanager
    def _without(enabled: bool = False, *arguments: Any, **options: Any) -> Iterator[None]:
        with _flags(False, *arguments, **options):
            yield

    torch.backends.cudnn.enabled = False
    torch.backends.cudnn.flags = _without  # type: ignore[assignment]
    # The kernels of these two are compiled when they are first used, which needs a GPU.
    torch.Tensor.exp2 = torch.Tensor.exp  # type: ignore[assignment, method-assign]
    torch.Tensor.erfinv = torch.Tensor.erf  # type: ignore[assignment, method-assign]
