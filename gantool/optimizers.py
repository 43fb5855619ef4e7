"""The optimizers of torch without its compiler.

torch.optim marks its methods as none for torch.compile, and loads the whole compiler to do so when the first of them is
called: a thousand modules, which take as long as torch itself, and longer from a disk that a cluster shares. Nothing
here compiles an optimizer, so what torch has marked is called directly: the arithmetic is torch's, to the bit.
"""

from __future__ import annotations

import inspect
from typing import Any, TypeVar, cast

import torch
from torch.optim import Optimizer

_Kind = TypeVar("_Kind", bound=Optimizer)
_MARKED = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")


def _unmarked(kind: type[_Kind]) -> type[_Kind]:
    """The same optimizer, whose methods are those that torch wrapped."""
    methods: dict[str, Any] = {name: inspect.unwrap(getattr(kind, name)) for name in _MARKED}
    step = torch.no_grad()(inspect.unwrap(kind.step))  # as torch's own wrapper does
    words = {"__module__": __name__, "__doc__": f"torch.optim.{kind.__name__}."}
    return cast("type[_Kind]", type(kind.__name__, (kind,), {**methods, **words, "step": step}))


Adam = _unmarked(torch.optim.Adam)
AdamW = _unmarked(torch.optim.AdamW)
RMSprop = _unmarked(torch.optim.RMSprop)
SGD = _unmarked(torch.optim.SGD)
