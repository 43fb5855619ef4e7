"""A network and a loss from files outside of the package, named in the YAML: trained, resumed, sampled, refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import Gantool, tiny_config

NETS = """\
import torch
from torch import nn


class Generator(nn.Module):
    def __init__(self, size, channels, num_classes, latent_dim, width=8):
        super().__init__()
        self.shape = (channels, size, size)
        self.body = nn.Sequential(nn.Linear(latent_dim, width), nn.ReLU(), nn.Linear(width, channels * size * size))

    def forward(self, latents):
        return torch.tanh(self.body(latents)).unflatten(1, self.shape)


class Discriminator(nn.Module):
    def __init__(self, size, channels, num_classes, *, units):
        super().__init__()
        first = nn.Linear(channels * size * size, units)
        self.body = nn.Sequential(nn.Flatten(), first, nn.ReLU(), nn.Linear(units, 1))

    def forward(self, images):
        return self.body(images).squeeze(1)
"""
LOSS = """\
def discriminator(real, fake):
    return ((1 - real).relu() + (1 + fake).relu()).mean()


def generator(real, fake):
    return -fake.mean()
"""
LINES = """\
generator: {kind: custom, file: nets.py, latent_dim: 8, settings: {width: 12}}
discriminator: {kind: custom, file: nets.py, settings: {units: 10}}
loss: {kind: custom, file: loss.py}
"""


@pytest.fixture
def outside(tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with nets.py, loss.py and a config that names them; gantool is started there."""
    config = tiny_config(tmp_path, data_dir)
    kept = [line for line in config.read_text().splitlines() if not line.startswith(("generator", "discriminator"))]
    config.write_text("\n".join([*kept, LINES]))
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "loss.py").write_text(LOSS)
    monkeypatch.chdir(tmp_path)
    return config


def test_one_file_and_one_line_add_a_network_and_a_loss(gantool: Gantool, outside: Path, tmp_path: Path) -> None:
    run = Path(gantool("train", outside, "--set", "steps=20").stdout.strip())
    assert json.loads((run / "result.json").read_text())["step"] == 20
    done = gantool("sample", "--ckpt", run, "--num", "3", "--out", tmp_path / "x.npz")
    assert done.returncode == 0, done.stderr
    # The same files elsewhere are the same run; the built-in loss with the same formula gives the same numbers.
    (tmp_path / "elsewhere").mkdir()
    shutil.copy("nets.py", tmp_path / "elsewhere" / "nets.py")
    moved = ("--set", "generator.file=elsewhere/nets.py", "--set", "discriminator.file=elsewhere/nets.py")
    again = gantool("train", outside, "--set", "steps=20", *moved)
    assert again.stdout.strip() == str(run) and "done already" in again.stderr
    built_in = Path(gantool("train", outside, "--set", "steps=20", "--set", "loss=hinge").stdout.strip())
    rows = [(path / "journal.jsonl").read_text().splitlines() for path in (run, built_in)]
    for left, right in zip(*[map(json.loads, lines) for lines in rows], strict=True):
        assert left["loss_g"] == pytest.approx(right["loss_g"], rel=1e-6)
        assert left["loss_d"] == pytest.approx(right["loss_d"], rel=1e-6)


def test_a_changed_file_is_another_run_and_never_the_old_one(gantool: Gantool, outside: Path) -> None:
    run = Path(gantool("train", outside, "--set", "steps=5").stdout.strip())
    (run / "result.json").unlink()
    Path("nets.py").write_text(NETS.replace("nn.ReLU()", "nn.GELU()"))
    refused = gantool("train", run)
    assert refused.returncode == 2 and "nets.py" in refused.stderr and "changed" in refused.stderr
    assert "Traceback" not in refused.stderr
    sampled = gantool("sample", "--ckpt", run, "--out", "x.npz")
    assert sampled.returncode == 2 and "changed" in sampled.stderr and not Path("x.npz").exists()
    other = gantool("train", outside, "--set", "steps=5")
    assert other.returncode == 0 and other.stdout.strip() != str(run)
    assert gantool("status", "runs").returncode == 0  # the old run is still listed


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("file: nets.py, latent", "file: nest.py, latent", "nest.py: cannot be read"),
        ("settings: {width: 12}", "settings: {widht: 12}", "Generator.__init__ takes no argument 'widht'"),
        ("settings: {units: 10}", "settings: {}", "Discriminator.__init__ needs 'units'"),
        ("latent_dim: 8,", "latent_dim: 8, name: Net,", "has no class Net"),
        ("file: loss.py", "file: nets.py", "nets.py: has no function discriminator"),
    ],
)
def test_wrong_lines_are_refused_before_torch(old: str, new: str, text: str, gantool: Gantool, outside: Path) -> None:
    assert old in outside.read_text()
    outside.write_text(outside.read_text().replace(old, new))
    refused = gantool("train", outside)
    assert refused.returncode == 2 and text in refused.stderr and "tiny.yaml:" in refused.stderr
    assert "Traceback" not in refused.stderr and not Path("runs").exists()


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("super().__init__()", "raise ValueError('no luck')", "no luck"),
        (".unflatten(1, self.shape)", "", "it gives images of shape (2, 192)"),
        ("self.body(images).squeeze(1)", "self.body(images)", "it gives logits of shape (2, 1)"),
    ],
)
def test_code_that_fails_is_named(old: str, new: str, text: str, gantool: Gantool, outside: Path) -> None:
    Path("nets.py").write_text(NETS.replace(old, new))
    refused = gantool("train", outside)
    assert refused.returncode in (1, 2) and text in refused.stderr and "nets.py" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_the_network_in_the_readme_works(gantool: Gantool, outside: Path) -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    (source,) = [part.split("```")[0] for part in readme.split("```python\n")[1:] if "class Generator" in part]
    (line,) = [part.split("`")[0] for part in readme.split("`generator: ")[1:] if "mynet.py" in part]
    assert len(source.strip().splitlines()) == 6
    Path("mynet.py").write_text(source)
    done = gantool("train", outside, "--set", f"generator={line}", "--set", "steps=3")
    assert done.returncode == 0, done.stderr
