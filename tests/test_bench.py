"""`gantool bench`: what it counts and what it prints. Its times are nobody's business here."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from conftest import Gantool

from gantool.bench import bench, sharing
from gantool.config.loader import load_run_config
from gantool.counts import flop_and_traffic
from gantool.data.pack import ensure_packed
from gantool.progress import Silent

SHORT = ("--rounds", "2", "--steps", "2", "--format", "json")


def test_arithmetic_of_a_step_is_that_of_its_layers(tiny: Path, data_dir: Path) -> None:
    batch, n_dis = 8, 2
    generator, discriminator = [8, 16, 192], [192, 32, 1]  # 8x8 RGB images
    options = ["generator={kind: mlp, latent_dim: 8, widths: [16]}", "discriminator={kind: mlp, widths: [32]}"]
    config = load_run_config(tiny, [*options, f"batch={batch}", f"n_dis={n_dis}", "augment=none"])
    result = bench(config, ensure_packed(config.data, data_dir, Silent()), rounds=1, steps=1, progress=Silent())

    def products(images: int, widths: list[int]) -> list[int]:
        return [2 * images * a * b for a, b in pairwise(widths)]

    forward_g, forward_d = products(batch, generator), products(batch, discriminator)
    both = products(2 * batch, discriminator)
    # The discriminator's update: images without a graph, one pass over both halves, gradients of all weights and of all
    # inputs but the first. The generator's: through a frozen discriminator.
    update_d = sum(forward_g) + sum(both) + sum(both) + sum(both[1:])
    update_g = sum(forward_g) + sum(forward_d) + sum(forward_d) + sum(forward_g) + sum(forward_g[1:])
    assert result.flop_per_step == n_dis * update_d + update_g


def test_a_penalty_now_and_then_counts_by_its_share(tiny: Path, data_dir: Path) -> None:
    """Two updates a step and a penalty in every third: two thirds of one in a step."""

    def flop(*options: str) -> int:
        config = load_run_config(tiny, ["discriminator={kind: mlp, widths: [32]}", "n_dis=2", *options])
        data = ensure_packed(config.data, data_dir, Silent())
        return bench(config, data, rounds=1, steps=1, progress=Silent()).flop_per_step

    none, each, third = flop(), flop("penalty={kind: r1}"), flop("penalty={kind: r1, interval: 3}")
    assert none < third < each and third - none == round((each - none) / 3)


def test_grouped_convolutions_count_their_groups_forward_and_backward() -> None:
    for transposed in (False, True):
        kind = torch.nn.ConvTranspose2d if transposed else torch.nn.Conv2d
        conv = kind(8, 12, 4, stride=2, padding=1, groups=4)
        x = torch.randn(3, 8, 6, 6, requires_grad=True)
        forward, _ = flop_and_traffic(lambda conv=conv, x=x: conv(x))
        both, _ = flop_and_traffic(lambda conv=conv, x=x: conv(x).sum().backward())
        pixels = 36 if transposed else 9  # each meets 4x4 weights of 2 channels for 12 outputs, or of 8 for 3
        assert [forward, both] == [2 * 3 * pixels * 16 * 24, 3 * 2 * 3 * pixels * 16 * 24]


def test_gradients_of_images_are_counted() -> None:
    """As penalties take them: with respect to a leaf that goes through a layer, and with a gradient of that."""
    conv = torch.nn.Conv2d(3, 5, 3, bias=False)
    x = torch.randn(2, 3, 6, 6, requires_grad=True)
    forward = 2 * 2 * 16 * 5 * 27

    def penalty() -> None:
        (gradient,) = torch.autograd.grad(conv(x).sum(), x, create_graph=True)
        gradient.square().sum().backward()

    assert flop_and_traffic(lambda: torch.autograd.grad(conv(x).sum(), x))[0] == 2 * forward
    # Forward, its gradient, and of that one the gradients of both factors: the weight, and what came back to the layer.
    assert flop_and_traffic(penalty)[0] == 4 * forward
    with torch.inference_mode():
        assert flop_and_traffic(lambda: conv(x))[0] == forward


def test_traffic_is_what_operators_read_and_write() -> None:
    a, b = torch.ones(10, 10), torch.ones(10, 10)
    one = torch.ones(1)
    parameters = [torch.nn.Parameter(torch.ones(100)) for _ in range(2)]
    optimizer = torch.optim.Adam(parameters, fused=True)
    for parameter in parameters:
        parameter.grad = torch.ones(100)
    optimizer.step()
    cases = {
        2 * 3 * 400: lambda: (a + b, a - b),
        400 + 400: lambda: a.t()[3:].unsqueeze(0) is None or a.mul_(2.0),  # a view, then one that is read and written
        400 + 400 + 0: lambda: a.copy_(b),
        400: lambda: a.zero_(),
        0: lambda: torch.empty_like(a),
        4 + 400 + 400: lambda: one.expand(10, 10) + a,
        3 * 400: lambda: torch._foreach_add_([a], [b]),
        # Weights and both moments are read and written, gradients (which it may scale) too; and two counters of steps.
        2 * (4 * 2 * 400 + 4 + 8): lambda: optimizer.step(),
    }
    for expected, work in cases.items():
        assert flop_and_traffic(work) == (0, expected)


def test_numbers_fit_together(gantool: Gantool, tiny: Path) -> None:
    penalised = ("--set", "penalty=gp", "--set", "discriminator.norm=none")
    done = gantool("bench", tiny, *SHORT, "--compare", "plain", "--set", "n_dis=2", *penalised)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["images_per_second"]["median"] == pytest.approx(16 * found["steps_per_second"]["median"])
    assert sum(found["shares"].values()) == pytest.approx(1) and min(found["shares"].values()) > -0.01
    assert set(found["shares"]) == {"data", "discriminator", "generator", "ranks", "average", "report", "the rest"}
    for name in ("images_per_second", "against_bare", "against_plain"):
        assert 0 < found[name]["least"] <= found[name]["median"] <= found[name]["most"]
    used = found["flop_per_step"] * found["steps_per_second"]["median"] / found["ceiling_flops"]
    assert found["share_of_ceiling"] == pytest.approx(used)
    parts = found["flop_per_step"] / found["ceiling_flops"], found["traffic_per_step"] / found["ceiling_bytes"]
    assert found["floor_seconds"] == pytest.approx(max(parts)) and min(parts) > 0
    assert (found["device"], found["ranks"], found["threads"]) == ("cpu", 1, 1)
    assert "leaked" not in done.stderr  # triton's, if it was loaded


def test_ranks_do_the_arithmetic_of_one_together(gantool: Gantool, tiny: Path) -> None:
    one, two = (gantool("bench", tiny, *SHORT, "--ranks", number) for number in (1, 2))
    assert two.returncode == 0, two.stderr
    first, second = json.loads(one.stdout), json.loads(two.stdout)
    assert first["shares"]["ranks"] < second["shares"]["ranks"]  # nothing is sent by one alone
    assert second["ranks"] == 2 and second["flop_per_step"] == first["flop_per_step"]


def test_packed_runs_share_the_threads(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    for wanted, number, each in ((0, 1, 6), (0, 3, 2), (0, 9, 1), (4, 3, 4)):
        assert sharing(load_run_config(tiny, [f"runtime.threads={wanted}"]), number).runtime.threads == each


def test_packed_runs_beside_one_alone(gantool: Gantool, tiny: Path) -> None:
    done = gantool("bench", tiny, *SHORT, "--packed", "2")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["packed"] == 2 and found["ratio"] == pytest.approx(found["images_per_second"] / found["one_alone"])


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--compare", "speed"), "--compare: found 'speed', expected one of plain"),
        (("--packed", "2", "--nproc", "2"), "--packed goes without"),
        (("--nproc", "3"), "8 images cannot be shared by 3 processes"),
    ],
)
def test_wrong_words(words: tuple[str, ...], text: str, gantool: Gantool, tiny: Path) -> None:
    done = gantool("bench", tiny, *words)
    assert done.returncode == 2 and text in done.stderr
