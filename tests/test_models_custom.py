"""Networks from a file of the user's own: the way it is promised, and each way it goes wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from gantool import models
from gantool.config.networks import CustomDiscriminator, CustomGenerator
from gantool.config.schema import RunConfig
from gantool.custom import load
from gantool.errors import UsageError
from gantool.models import custom

SOURCE = """\
import dataclasses
import torch
from torch import nn

@dataclasses.dataclass
class Shape:
    size: int

class Generator(nn.Module):
    def __init__(self, size, channels, num_classes, latent_dim, slope=0.2):
        super().__init__()
        self.shape = (channels, Shape(size).size, size)
        self.linear = nn.Linear(latent_dim, channels * size * size)
        self.slope = slope

    def forward(self, latents, labels=None):
        return torch.tanh(self.linear(latents) * self.slope).unflatten(1, self.shape)

class Discriminator(nn.Module):
    def __init__(self, **settings):
        super().__init__()
        self.settings = settings
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images):
        return self.scale * images.flatten(1).mean(1)

class Broken(nn.Module):
    def __init__(self, **settings):
        super().__init__()
        nn.Linear(2, 3)(torch.zeros(1, 4))

class NoModule:
    def __init__(self, **settings):
        pass
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return path


def test_a_generator_gets_its_arguments_and_settings(file: Path) -> None:
    settings = CustomGenerator(file=str(file), latent_dim=5, settings={"slope": 0.5})
    network = custom.build(settings, 8, 1, 3)
    assert network.linear.weight.shape == (64, 5) and network.slope == 0.5
    assert network(torch.randn(2, 5)).shape == (2, 1, 8, 8)
    assert network.training


def test_a_discriminator_gets_no_latent_dim(file: Path) -> None:
    network = custom.build(CustomDiscriminator(file=str(file), settings={"depth": 2}), 12, 3, 0)
    assert network.settings == {"size": 12, "channels": 3, "num_classes": 0, "depth": 2}


def test_a_run_config_builds_them_from_its_seed(file: Path) -> None:
    config = RunConfig.model_validate(
        {
            "data": {"name": "shapes", "size": 8, "channels": 3},
            "generator": {"kind": "custom", "file": str(file), "latent_dim": 4},
            "discriminator": {"kind": "custom", "file": str(file)},
        }
    )
    first, again = models.build_generator(config), models.build_generator(config)
    assert type(first) is not type(again), "each is made from a fresh module"
    assert torch.equal(first.linear.weight, again.linear.weight)
    assert isinstance(models.build_discriminator(config), nn.Module)


def test_two_files_of_the_same_name_stay_apart(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "mine.py"
    other.parent.mkdir()
    other.write_text(SOURCE.replace("slope=0.2", "slope=0.9"))
    networks = [custom.build(CustomGenerator(file=str(path), latent_dim=4), 8, 1, 0) for path in (file, other, file)]
    assert [network.slope for network in networks] == [0.2, 0.9, 0.2]


def error_of(settings: CustomDiscriminator) -> UsageError:
    with pytest.raises(UsageError) as caught:
        custom.build(settings, 8, 1, 0)
    return caught.value


def test_a_missing_file(file: Path) -> None:
    settings = CustomDiscriminator(file=str(file))
    file.unlink()
    error = error_of(settings)
    assert str(file) in error.message and "cannot be read: No such file" in error.message
    assert error.hint is not None and "keeps a copy" in error.hint


def test_a_file_changed_since_the_run_was_made(file: Path) -> None:
    settings = CustomDiscriminator(file=str(file))
    file.write_text(SOURCE + "\n")
    error = error_of(settings)
    assert settings.digest is not None
    assert error.message.startswith(f"{file}: found the digest ") and f"expected {settings.digest}" in error.message
    assert error.hint is not None and "put the old file back" in error.hint


def test_an_exception_in_the_users_class_names_file_line_and_class(file: Path) -> None:
    error = error_of(CustomDiscriminator(file=str(file), name="Broken"))
    line = SOURCE.splitlines().index("        nn.Linear(2, 3)(torch.zeros(1, 4))") + 1
    assert error.message.startswith(f"{file}: class Broken: RuntimeError: ")
    assert f"(line {line})" in error.message
    assert isinstance(error.__cause__, RuntimeError)


def test_an_exception_while_the_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "reads.py"
    path.write_text("import torch\nimport no_such_package_here\nclass Discriminator(torch.nn.Module): ...\n")
    error = error_of(CustomDiscriminator(file=str(path)))
    assert error.message.startswith(f"{path}: ModuleNotFoundError: ") and "(line 2)" in error.message


def test_a_class_that_is_no_module(file: Path) -> None:
    error = error_of(CustomDiscriminator(file=str(file), name="NoModule"))
    assert error.message == f"{file}: class NoModule: is no torch.nn.Module"
    assert error.hint == "class NoModule(torch.nn.Module): ..."


def test_logits_of_a_wrong_shape(file: Path) -> None:
    file.write_text(SOURCE.replace("images.flatten(1).mean(1)", "images.flatten(1).mean(1, keepdim=True)"))
    error = error_of(CustomDiscriminator(file=str(file)))
    assert "logits of shape (2, 1), expected a tensor of shape (2,)" in error.message


def test_a_conditional_network_is_given_labels(file: Path) -> None:
    error = error_of(CustomDiscriminator(file=str(file), conditional=True))
    assert "class Discriminator: TypeError: " in error.message and "takes 2 positional arguments" in error.message
    file.write_text(SOURCE.replace("forward(self, images):", "forward(self, images, labels):"))
    assert isinstance(custom.build(CustomDiscriminator(file=str(file), conditional=True), 8, 1, 2), nn.Module)


def test_a_setting_that_is_given_anyway(file: Path) -> None:
    with pytest.raises(ValidationError, match="'size' is given to the class already"):
        CustomDiscriminator(file=str(file), settings={"size": 3})


def test_the_source_with_the_digest_is_what_runs(file: Path) -> None:
    # A new text of the same length in the same second: bytecode of the old one would be taken for it.
    file.write_text(SOURCE + "FACTOR = 1\n")
    assert load(CustomDiscriminator(file=str(file))).FACTOR == 1
    file.write_text(SOURCE + "FACTOR = 2\n")
    assert load(CustomDiscriminator(file=str(file))).FACTOR == 2
    assert not list(file.parent.glob("**/*.pyc"))


@pytest.mark.parametrize(
    ("layer", "mixes", "text"),
    [
        ("nn.Dropout(0.5)", False, "has a torch dropout layer"),
        ("nn.BatchNorm2d(1)", False, "says batch_statistics: false"),
        ("nn.BatchNorm2d(1)", True, None),
        ("gantool.models.layers.Dropout(0.5)", False, None),
    ],
)
def test_layers_that_would_break_what_a_run_promises(file: Path, layer: str, mixes: bool, text: str | None) -> None:
    source = SOURCE.replace("images.flatten", "self.layer(images).flatten")
    source = source.replace("self.settings = settings", f"self.settings = settings\n        self.layer = {layer}")
    file.write_text("import gantool.models.layers\n" + source)
    wanted = CustomDiscriminator(file=str(file), batch_statistics=mixes)
    if text is None:
        assert isinstance(custom.build(wanted, 8, 1), nn.Module)
    else:
        assert text in error_of(wanted).message
