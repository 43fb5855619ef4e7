"""A network and a loss from files outside of the package, named in the YAML: trained, resumed, sampled, refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import Gantool, tiny_config

from gantool import checkpoint

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


def test_an_interrupt_in_code_from_a_string_ends_as_any_other(outside: Path) -> None:
    """As in the dataclasses and namedtuples of torch while that is loaded: Python would end by SIGINT, code 130."""
    code = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(9)\n"
    (outside.parent / "nets.py").write_text(f"exec({code!r})\n{NETS}")
    command = [sys.executable, "-m", "gantool", "train", str(outside)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (75, "") and "interrupted: stopped by SIGINT" in done.stderr


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


def test_a_run_goes_on_with_the_code_it_was_started_with(gantool: Gantool, outside: Path, tmp_path: Path) -> None:
    words = ("--set", "steps=10", "--set", "runtime.checkpoint_every=5", "--set", "runtime.snapshot_every=5")
    run = Path(gantool("train", outside, *words).stdout.strip())
    whole, _ = checkpoint.load(run / "snapshots" / "step-00000010.safetensors")
    for path in (run / "result.json", *run.glob("*/step-00000010.safetensors")):
        path.unlink()
    Path("nets.py").write_text(NETS.replace("nn.ReLU()", "nn.GELU()"))
    Path("loss.py").unlink()
    again = gantool("train", run)
    assert again.returncode == 0 and "resuming at step 5" in again.stderr, again.stderr
    resumed, _ = checkpoint.load(run / "snapshots" / "step-00000010.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert gantool("sample", "--ckpt", run, "--out", "x.npz").returncode == 0
    # Alone, without the run that keeps the code, a snapshot needs the file; to a config a changed file is another run.
    shutil.copy(run / "snapshots" / "step-00000010.safetensors", tmp_path / "alone.safetensors")
    refused = gantool("sample", "--ckpt", tmp_path / "alone.safetensors", "--out", "y.npz")
    assert refused.returncode == 2 and "changed since the run was made" in refused.stderr and not Path("y.npz").exists()
    other = gantool("train", outside, *words, "--set", "loss=hinge")
    assert other.returncode == 0 and other.stdout.strip() != str(run)


def test_a_file_is_found_from_the_config_that_names_it(gantool: Gantool, outside: Path, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("nets.py", "loss.py"):
        shutil.move(tmp_path / name, tmp_path / "deep" / name)
    shutil.move(outside, tmp_path / "deep" / "tiny.yaml")
    (tmp_path / "top.yaml").write_text("extends: deep/tiny.yaml\nsteps: 3\n")
    done = gantool("train", "top.yaml")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("file: nets.py, latent", "file: nest.py, latent", "nest.py: cannot be read"),
        ("settings: {width: 12}", "settings: {widht: 12}", "Generator.__init__ takes no argument 'widht'"),
        ("settings: {units: 10}", "settings: {}", "Discriminator.__init__ needs 'units'"),
        ("latent_dim: 8,", "latent_dim: 8, name: Net,", "has no class Net"),
        ("file: loss.py", "file: nets.py", "nets.py: has no function discriminator"),
        ("file: loss.py", "file: ''", "cannot be read"),
        ("settings: {units: 10}", "settings: {units: [10]}", "found [10], expected a number, a text, true or false"),
        ("loss: {kind: custom, file: loss.py}", "loss: custom", "loss.file: this key is required"),
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
        ("super().__init__()", "raise SystemExit", "SystemExit"),
        ("torch.tanh(self.body(latents))", "torch.tanh(self.body(latents)).detach()", "a tensor without gradient"),
        ("torch.tanh(self.body(latents))", "torch.tanh(self.body(latents)).double()", "float64"),
        ("torch.tanh(self.body(latents))", "torch.tanh(self.body(latents if not self.training else 0))", "TypeError"),
        (".unflatten(1, self.shape)", "", "it gives images of shape (2, 192)"),
        ("self.body(images).squeeze(1)", "self.body(images)", "it gives logits of shape (2, 1)"),
    ],
)
def test_code_that_fails_is_named(old: str, new: str, text: str, gantool: Gantool, outside: Path) -> None:
    Path("nets.py").write_text(NETS.replace(old, new))
    refused = gantool("train", outside)
    assert refused.returncode in (1, 2) and text in refused.stderr and "nets.py" in refused.stderr
    assert "Traceback" not in refused.stderr
    (status,) = json.loads(gantool("status", "runs", "-f", "json").stdout)
    assert status["state"] == "failed" and text in status["message"]


def test_what_the_code_prints_is_not_taken_for_a_result(gantool: Gantool, outside: Path) -> None:
    Path("nets.py").write_text(
        "print('HELLO')\n" + NETS.replace("return torch.tanh", "print('AGAIN'); return torch.tanh")
    )
    done = gantool("train", outside, "--set", "steps=2")
    assert done.returncode == 0 and "HELLO" in done.stderr
    assert done.stdout.startswith("runs/") or Path(done.stdout.strip()).is_dir()
    assert len(done.stdout.splitlines()) == 1


def test_tied_weights_are_saved_and_resumed(gantool: Gantool, outside: Path) -> None:
    lines = ("self.other = nn.Linear(latent_dim, width)", "self.other.weight = self.body[0].weight", "", "")
    made = (
        "channels * size * size))\n" + "".join(f"        {line}\n" for line in lines) + "    def forward(self, latents)"
    )
    tied = NETS.replace("channels * size * size))\n\n    def forward(self, latents)", made)
    tied = tied.replace("torch.tanh(self.body(latents))", "torch.tanh(self.body(latents) + self.other(latents).mean())")
    assert "self.other.weight" in tied and "self.other(latents)" in tied
    Path("nets.py").write_text(tied)
    words = ("--set", "steps=10", "--set", "runtime.checkpoint_every=5")
    run = Path(gantool("train", outside, *words).stdout.strip())
    whole, _ = checkpoint.load(run / "checkpoints" / "step-00000010.safetensors")
    for path in (run / "result.json", *run.glob("*/step-00000010.safetensors")):
        path.unlink()
    assert gantool("train", run).returncode == 0
    resumed, _ = checkpoint.load(run / "checkpoints" / "step-00000010.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_the_network_in_the_readme_works(gantool: Gantool, outside: Path) -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    (source,) = [part.split("```")[0] for part in readme.split("```python\n")[1:] if "class Generator" in part]
    lines = [part.split("`")[0] for part in readme.split("`generator: ")[1:]]
    (line,) = [line for line in lines if "mynet.py" in line]
    assert len([line for line in source.splitlines() if line]) == 6
    Path("mynet.py").write_text(source)
    done = gantool("train", outside, "--set", f"generator={line}", "--set", "steps=3")
    assert done.returncode == 0, done.stderr
