"""The optimizers are torch's to the bit, and no training loads torch's compiler for them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from gantool import optimizers

KINDS: list[tuple[str, dict[str, Any]]] = [
    ("Adam", {"lr": 0.01, "betas": (0.5, 0.9), "fused": True}),
    ("AdamW", {"lr": 0.01, "weight_decay": 0.1, "fused": True}),
    ("RMSprop", {"lr": 0.01, "alpha": 0.9}),
    ("SGD", {"lr": 0.01, "momentum": 0.5, "fused": True}),
]


@pytest.mark.parametrize(("name", "settings"), KINDS, ids=[name for name, _ in KINDS])
def test_steps_and_state_are_those_of_torch(name: str, settings: dict[str, Any]) -> None:
    draws = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=draws) for shape in ((7, 5), (5,), (3, 2, 2, 2))]
    ours, theirs = ([value.clone().requires_grad_() for value in start] for _ in range(2))
    optimizer = getattr(optimizers, name)(ours, **settings)
    reference = getattr(torch.optim, name)(theirs, **settings)
    for step in range(20):
        if step == 10:  # as at a resumption
            state = optimizer.state_dict()
            optimizer = getattr(optimizers, name)(ours, **settings)
            optimizer.load_state_dict(state)
        optimizer.zero_grad(set_to_none=True)
        assert all(parameter.grad is None for parameter in ours)
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=draws)
            other.grad = one.grad.clone()
        optimizer.step()
        reference.step()
        assert torch.is_grad_enabled()
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    found, expected = optimizer.state_dict(), reference.state_dict()
    assert found["param_groups"] == expected["param_groups"]
    for index, values in expected["state"].items():
        assert found["state"][index].keys() == values.keys()
        assert all(
            torch.equal(torch.as_tensor(found["state"][index][key]), torch.as_tensor(values[key])) for key in values
        )
    assert isinstance(optimizer, getattr(torch.optim, name))


def test_a_scored_training_does_not_load_the_compiler(tiny: Path) -> None:
    words = ("train", tiny, "--set", "steps=2", "--set", "eval={num: 20, metrics: [fid]}")
    command = [sys.executable, "-X", "importtime", "-m", "gantool", *map(str, words)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    loaded = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert {"torch", "gantool.train", "gantool.metrics.classifier"} <= loaded
    assert not {"torch._dynamo", "sympy", "triton"} & loaded
