"""Training in bfloat16: products are, all that is kept is not; a run that was stopped goes on to the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import Gantool
from test_resume import sets, train_whole

from gantool import checkpoint
from gantool.config.loader import load_run_config
from gantool.models import build_discriminator, build_generator
from gantool.precision import call, float32_products

NETWORKS = {
    "conv": ("{kind: conv, width: 4, max_width: 8, norm: instance}", "{kind: conv, width: 4, spectral_norm: true}"),
    "resnet": ("{kind: resnet, width: 4, max_width: 8}", "{kind: resnet, width: 4, attention: 4, spectral_norm: true}"),
    "mlp": ("{kind: mlp, widths: [16]}", "{kind: mlp, widths: [16], dropout: 0.3}"),
}


def test_products_are_rounded_and_outputs_are_float32() -> None:
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(64, 1000), torch.randn(8, 64)
    exact, rounded = call(layer, x, None, False), call(layer, x, None, True)
    assert exact.dtype == rounded.dtype == torch.float32
    assert torch.equal(exact, layer(x))
    assert torch.equal(rounded, rounded.bfloat16().float()) and not torch.equal(exact, rounded)
    torch.testing.assert_close(rounded, exact, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("tf32", [False, True])
def test_settings_come_back(tf32: bool) -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    with float32_products(tf32):
        assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")
        assert torch.backends.cudnn.allow_tf32 is tf32 and torch.backends.cudnn.deterministic
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


@pytest.mark.parametrize("networks", NETWORKS)
def test_both_players_get_gradients_in_float32_near_those_of_float32(networks: str, tiny: Path) -> None:
    generator, discriminator = NETWORKS[networks]
    config = load_run_config(tiny, [f"generator={generator}", f"discriminator={discriminator}"])
    torch.manual_seed(0)
    players = build_generator(config, 0), build_discriminator(config, 0)
    for player in players:
        player.eval()  # no dropout
    latents = torch.randn(16, config.generator.latent_dim)
    found = []
    for bfloat16 in (False, True):
        images = call(players[0], latents, None, bfloat16)
        call(players[1], images, None, bfloat16).mean().backward()
        found.append([parameter.grad for player in players for parameter in player.parameters()])
        for player in players:
            player.zero_grad(set_to_none=True)
    exact, rounded = (torch.cat([g.flatten() for g in one if g is not None]) for one in found)
    assert rounded.dtype == torch.float32 and torch.isfinite(rounded).all()
    assert torch.nn.functional.cosine_similarity(exact, rounded, dim=0) > 0.99


def test_a_stopped_run_ends_with_the_same_bits(gantool: Gantool, tiny: Path, tmp_path: Path) -> None:
    options = ("penalty=gp", "discriminator.norm=instance", "runtime.checkpoint_every=7")
    words = sets((*options, "precision=bfloat16"))
    whole = train_whole(gantool, tiny, *words, "--set", f"runtime.runs_dir={tmp_path / 'whole'}")
    run = train_whole(gantool, tiny, *words)
    for path in [*(run / "checkpoints").glob("*40*"), *(run / "snapshots").glob("*"), run / "result.json"]:
        path.unlink()
    resumed = train_whole(gantool, tiny, *words)
    assert resumed == run
    one, other = (checkpoint.load(sorted((path / "snapshots").glob("*"))[-1])[0] for path in (whole, run))
    assert all(torch.equal(one[key], other[key]) for key in one)
    exact = train_whole(gantool, tiny, *sets(options))
    assert exact.name != run.name  # another experiment, with another name
    weights = checkpoint.load(sorted((exact / "snapshots").glob("*"))[-1])[0]
    assert all(value.dtype == weights[key].dtype for key, value in one.items())
    assert any(not torch.equal(one[key], weights[key]) for key in one)
