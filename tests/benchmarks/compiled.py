"""A bare step of both networks, compiled by torch.compile against plain, in turns: speeds, and the warm-up.

    python tests/benchmarks/compiled.py configs/bench.yaml [--device cuda] [--mode reduce-overhead]

Without data, augmentation, penalty or average. `reduce-overhead` records CUDA graphs. Networks with dropout of
gantool's own kind cannot be measured here.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from gantool.config.loader import load_run_config
from gantool.config.schema import RunConfig
from gantool.runtime import choose_device
from gantool.state import State


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--mode", default="default", help="of torch.compile")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3)
    given = parser.parse_args()
    config, device = load_run_config(given.config, []), choose_device(given.device)
    for reduced in (False, True):
        steps = {"plain": _step(config, device, reduced, None), "compiled": _step(config, device, reduced, given.mode)}
        began = time.perf_counter()
        for _ in range(3):
            steps["compiled"]()
        _wait(device)
        warm_up = time.perf_counter() - began
        ratios = []
        for _ in range(given.rounds + 1):  # the first does not count
            seconds = {name: _seconds(step, given.steps, device) for name, step in steps.items()}
            ratios.append(seconds["plain"] / seconds["compiled"])
        low, high = min(ratios[1:]), max(ratios[1:])
        print(
            f"{'bfloat16' if reduced else 'float32':8} compiled is {statistics.median(ratios[1:]):.2f} ({low:.2f} to "
            f"{high:.2f}) times as fast, after {warm_up:.0f} s"
        )


def _step(config: RunConfig, device: torch.device, reduced: bool, mode: str | None) -> Callable[[], None]:
    """One update of each player on images and latents that do not change; None: not compiled."""
    torch.manual_seed(0)
    state = State(config, device)
    size, channels = config.data.image_size, config.data.image_channels
    real = torch.rand(config.batch, channels, size, size, device=device).to(memory_format=torch.channels_last)
    latents = torch.randn(config.batch, config.generator.latent_dim, device=device)
    generate, judge = (
        network if mode is None else torch.compile(network, mode=mode)
        for network in (state.generator, state.discriminator)
    )

    def precision() -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=reduced)

    def descend(player: str, loss: torch.Tensor) -> None:
        state.optimizers[player].zero_grad(set_to_none=True)
        loss.backward()
        state.optimizers[player].step()

    def step() -> None:
        with torch.no_grad(), precision():
            fake = generate(latents).float().clone()
        with precision():
            logits = judge(torch.cat([real, fake])).float()
        real_logits, fake_logits = logits.chunk(2)
        descend("discriminator", F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean())
        with precision():
            logits = judge(generate(latents)).float()
        descend("generator", F.softplus(-logits).mean())

    return step


def _seconds(step: Callable[[], None], steps: int, device: torch.device) -> float:
    _wait(device)
    began = time.perf_counter()
    for _ in range(steps):
        step()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
