"""What some work is made of, counted and not timed: floating point operations, and bytes that operators move."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gantool.without_triton import without_triton


def flop_and_traffic(work: Callable[[], object]) -> tuple[int, int]:
    """(floating point operations of convolutions and matrix products, a multiplication and an addition counting as 2;
    bytes that all operators read and write, each for itself) of `work`, which is done once."""
    counts = _Counts(_formulas())
    with counts:
        work()
    return counts.flop, counts.traffic


def _formulas() -> dict[Any, Callable[..., int]]:
    """What operators cost, as torch knows it. Not by its FlopCounterMode, which follows modules by hooks that fail
    where gradients of images are taken, as penalties do."""
    log = logging.getLogger("torch.utils.flop_counter")
    log.disabled = True  # it warns that triton is not there
    try:
        with without_triton():
            import torch._dynamo  # which the first count loads
            from torch.utils.flop_counter import flop_registry
    finally:
        log.disabled = False
    return flop_registry | {torch.ops.aten.convolution_backward: _of_conv_backward}


def _of_conv_backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    _bias: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    _output_padding: Any,
    _groups: int,
    wanted: list[bool],
    out_val: Any,
) -> int:
    """torch's own count takes no notice of groups. Each gradient costs what the forward pass does."""
    pixels = math.prod((x if transposed else gradient).shape[2:])
    return 2 * len(x) * pixels * weight.numel() * sum(wanted[:2])


_WRITTEN_ONLY = ("copy_", "zero_", "fill_", "_foreach_copy_", "_foreach_zero_")
_ONLY_ALLOCATE = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")


class _Counts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations by their formulas, and the bytes that operators read and write; views, and memory that is only
    allocated, move nothing."""

    def __init__(self, formulas: dict[Any, Callable[..., int]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.formulas, self.flop, self.traffic = formulas, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the operator, and count."""
        kwargs = kwargs or {}
        if func._overloadpacket not in self.formulas:
            with self:  # in inference mode what consists of other operators comes here as a whole
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        if (formula := self.formulas.get(func._overloadpacket)) is not None:
            self.flop += int(formula(*args, **kwargs, out_val=out))
        schema, name = func._schema, func._schema.name.partition("::")[2]
        is_view = any(one.alias_info is not None for one in schema.returns) and not schema.is_mutable
        if is_view or name in _ONLY_ALLOCATE:
            return out
        for argument, value in itertools.zip_longest(schema.arguments, args):
            if argument is None:
                break
            size = _bytes(kwargs.get(argument.name) if value is None else value)
            written = argument.alias_info is not None and argument.alias_info.is_write
            self.traffic += size * (2 if written and not argument.is_out and name not in _WRITTEN_ONLY else 1)
        results = out if isinstance(out, tuple) else (out,)
        for one, value in zip(schema.returns, results, strict=False):
            self.traffic += _bytes(value) if one.alias_info is None else 0
        return out


def _bytes(value: Any) -> int:
    """Of the tensors in it; what is repeated by a stride of 0 counts once."""
    tensors = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
    return sum(
        t.element_size() * math.prod(size for size, stride in zip(t.shape, t.stride(), strict=True) if stride)
        for t in tensors
        if t.layout is torch.strided and t.numel()
    )
