"""Every config in configs/ trains, resumes, samples and is what its name says, at a size for seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gantool import models
from gantool.config.document import read_document
from gantool.config.loader import load_run_config
from gantool.config.schema import RunConfig
from gantool.data.pack import PackedDataset, ensure_packed
from gantool.interrupts import Interrupts
from gantool.progress import Silent
from gantool.runs import RunDirectory
from gantool.runtime import Runtime
from gantool.sample import draw_grid, generate, load_snapshot
from gantool.train import Trainer

CONFIGS = Path(__file__).parent.parent / "configs"
RUNS = [path.stem for path in sorted(CONFIGS.glob("*.yaml")) if not {"base", "vary"} & set(read_document(path).tree)]

SMALL = {
    "conv": {"width": 4, "max_width": 8},
    "mlp": {"widths": "[16, 8]"},
    "sngan_cnn": {"width": 4, "max_width": 8},
    "resnet": {"width": 8, "max_width": 8},
    "biggan": {"width": 8, "max_width": 8, "embedding_dim": 4},
    "r3gan": {"width": 8, "group": 4},
}
MILLIONS = {
    "sngan_cnn_32": (3.58, 5.86),
    "sngan_resnet_32": (4.277, 1.054),
    "wgan_gp_resnet_32": (4.277, 1.054),
    "projection_cgan_32": (4.304, 1.055),
    "biggan_32": (9.416, 2.415),
    "r3gan_32": (20.78, 21.28),
    "cifar10_baseline": (3.81, None),
}


def small(name: str, folder: Path, *more: str) -> RunConfig:
    """The config `name` with few channels, a small batch and `shapes` of its own size and channels."""
    config = load_run_config(CONFIGS / f"{name}.yaml")
    size, channels = config.data.image_size, config.data.image_channels
    data = [f"data={{name: shapes, size: {size}, channels: {channels}}}", f"runtime.data_dir={folder / 'data'}"]
    parts = [("generator", config.generator.kind), ("discriminator", config.discriminator.kind)]
    widths = [f"{player}.{key}={value}" for player, kind in parts for key, value in SMALL[kind].items()]
    run = [
        f"runtime.runs_dir={folder / 'runs'}",
        "runtime.device=cpu",
        "batch=4",
        "runtime.grid=2x2",
        "steps=3",
        "runtime.checkpoint_every=2",
    ]
    run += ["generator_batch=4"] if config.generator_batch else []
    return load_run_config(CONFIGS / f"{name}.yaml", [*data, *widths, *run, *more])


def trained(config: RunConfig, data: PackedDataset) -> Trainer:
    trainer = Trainer(
        RunDirectory.create(config), config, data, Runtime(config.runtime), Interrupts(), Silent(), lambda *_: None
    )  # fmt: skip
    trainer.run_to_end()
    return trainer


@pytest.mark.parametrize("name", RUNS)
def test_every_config_trains_moves_every_weight_resumes_and_samples(name: str, tmp_path: Path) -> None:
    config = small(name, tmp_path)
    data = ensure_packed(config.data, tmp_path / "data", Silent())
    trainer = trained(config, data)
    state = trainer.state
    for player, build in (("generator", models.build_generator), ("discriminator", models.build_discriminator)):
        fresh = dict(build(config, len(data.classes)).named_parameters())
        now = dict(getattr(state, player).named_parameters())
        # A bias that a norm takes away again has no gradient.
        same = [key for key, value in now.items() if torch.equal(value, fresh[key]) and not key.endswith("bias")]
        assert same == [], player
    (trainer.run.path / "checkpoints" / "step-00000003.safetensors").unlink()
    again = trained(config, data)  # goes on from step 2
    assert again.state.step == 3
    for key, value in again.state.tensors().items():
        assert torch.equal(value, state.tensors()[key]), key
    snapshot = load_snapshot(trainer.run.path, torch.device("cpu"))
    images = torch.cat(list(generate(snapshot, 0, 5, seed=1)))
    assert images.shape == (5, config.data.image_size, config.data.image_size, config.data.image_channels)
    assert images.dtype == torch.uint8
    draw_grid(snapshot, 2, 3, 0, Silent()).save(tmp_path / "grid.png")
    grids = trainer.run.path / config.runtime.samples_dir
    assert sorted(path.name for path in grids.iterdir()) == ["step-00000000.png", "step-00000003.png"]
    if config.runtime.final_images:
        found = sorted(path.name for path in (trainer.run.path / config.runtime.final_dir).iterdir())
        assert found == [f"img_{k:03d}.png" for k in range(config.runtime.final_images)]


@pytest.mark.parametrize("name", MILLIONS)
def test_networks_have_their_published_numbers_of_parameters(name: str) -> None:
    config = load_run_config(CONFIGS / f"{name}.yaml")
    for build, expected in zip((models.build_generator, models.build_discriminator), MILLIONS[name], strict=True):
        if expected is not None:
            found = sum(parameter.numel() for parameter in build(config, 10).parameters()) / 1e6
            assert found == pytest.approx(expected, abs=0.005 if expected > 3 else 0.0005)


def test_a_class_conditional_run_shows_one_class_in_each_row(tmp_path: Path) -> None:
    config = small("cifar10_conditional", tmp_path, "runtime.grid=3x2")
    data = ensure_packed(config.data, tmp_path / "data", Silent())
    snapshot = load_snapshot(trained(config, data).run.path, torch.device("cpu"))
    in_turn = torch.cat(list(generate(snapshot, 0, 12, seed=0)))
    threes = torch.cat(list(generate(snapshot, 0, 12, seed=0, labels=lambda _: 3)))
    assert torch.equal(in_turn[3], threes[3]) and not torch.equal(in_turn[4], threes[4])
    rows = torch.cat(list(generate(snapshot, 0, 6, seed=0, labels=lambda k: k // 2)))
    from numpy import asarray
    from PIL import Image

    grid = asarray(Image.open(tmp_path / "runs" / config.run_id / "samples" / "step-00000003.png"))
    for k, image in enumerate(rows.numpy()):
        y, x = (k // 2) * 34 + 2, (k % 2) * 34 + 2
        assert (grid[y : y + 32, x : x + 32] == image).all()
