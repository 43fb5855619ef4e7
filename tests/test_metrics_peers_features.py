"""Features of the same PNG files by gantool and by the packages whose protocols it names, all with one weights file.

The weights are random, in the layout of the real ones and under the names where each package looks for them, so nothing
is downloaded; gamma is one everywhere, as in the real network, because NVIDIA's file has none.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_metrics_inception import random_state, scripted_network
from torch import Tensor

from gantool.config.evaluation import EvalConfig
from gantool.data.image_sets import open_images
from gantool.evaluate import evaluate_images
from gantool.metrics.collection import Work
from gantool.metrics.features import Features
from gantool.metrics.inception import open_inception
from gantool.metrics.inception_weights import FILE_NAMES, SCRIPTED
from gantool.metrics.reference import Reference
from gantool.progress import Silent

CPU = torch.device("cpu")
BATCH = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TORCH_HOME with the weights under all names, and PNG files in folders by size."""
    folder = tmp_path_factory.mktemp("peers")
    state = {
        name: torch.ones_like(tensor) if name.endswith("bn.weight") else tensor
        for name, tensor in random_state().items()
    }
    hub = folder / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    torch.save(state, hub / FILE_NAMES[0])
    (hub / FILE_NAMES[1]).symlink_to(hub / FILE_NAMES[0])
    scripted_network(state).save(hub / SCRIPTED)
    rng = np.random.default_rng(4)
    for size, num in ((32, 12), (64, 6)):
        (folder / str(size)).mkdir()
        for number in range(num):
            coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)  # some structure, some noise
            smooth = np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC), np.float64)
            pixels = (smooth + rng.normal(0, 20, smooth.shape)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / str(size) / f"{number:03}.png")
    return folder


@pytest.fixture(autouse=True)
def _torch_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(folder))
    monkeypatch.delenv("GANTOOL_WEIGHTS", raising=False)


def files(folder: Path, size: int) -> list[Path]:
    return sorted((folder / str(size)).glob("*.png"))


def read(folder: Path, size: int) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(Image.open(path)) for path in files(folder, size)]))


_found: dict[tuple[str, int], Features] = {}


def ours(folder: Path, size: int, protocol: str) -> Features:
    if (protocol, size) not in _found:
        extractor = dataclasses.replace(open_inception(CPU, 3, None, True, protocol), block=BATCH)
        assert extractor.digest
        _found[protocol, size] = extractor(read(folder, size))
    return _found[protocol, size]


def assert_same(found: Tensor, expected: Tensor | np.ndarray) -> None:
    """Within 1e-4, absolutely and of the scale of the features, which do differ from image to image."""
    expected = torch.as_tensor(np.asarray(expected), dtype=torch.float32)
    assert found.shape == expected.shape
    spread, error = float(expected.std(0).max()), float((found - expected).abs().max())
    assert spread > 0.05
    assert error < 1e-4 * min(1.0, float(expected.abs().max())), (error, float(expected.abs().max()))


@pytest.mark.parametrize("size", [32, 64])
def test_torch_fidelity(size: int, folder: Path) -> None:
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    # Its option for float64 inside is silently float32 (0.4.0), so there is no more exact truth to be had from it.
    network = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"])
    with torch.inference_mode():
        parts = [network(part) for part in read(folder, size).permute(0, 3, 1, 2).split(BATCH)]
    pooled, logits = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    found = ours(folder, size, "tf1")
    assert_same(found.pooled, pooled)
    error = float((found.logits - logits).abs().max())
    assert error < 1e-4 * float(logits.abs().max())  # sums of 2048 features, some ten times larger
    assert torch.equal(found.logits.argmax(1), logits.argmax(1))


@pytest.mark.parametrize("size", [32, 64])
def test_pytorch_fid(size: int, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    score = pytest.importorskip("pytorch_fid.fid_score")
    network = pytest.importorskip("pytorch_fid.inception").InceptionV3([3])
    # It reads 'png' but not 'PNG', and stops at images of different sizes: hence one folder for each size.
    expected = score.get_activations(files(folder, size), network, BATCH, 2048, "cpu", num_workers=0)
    assert_same(ours(folder, size, "pytorch-fid").pooled, expected)


@pytest.mark.parametrize("size", [32, 64])
def test_clean_fid(size: int, folder: Path) -> None:
    resizing = pytest.importorskip("cleanfid.resize")
    scripted = pytest.importorskip("cleanfid.inception_torchscript")
    network = scripted.InceptionV3W(str(folder / "hub" / "checkpoints"), download=False, resize_inside=False)
    resize = resizing.build_resizer("clean")  # by Pillow, on the CPU
    resized = [torch.from_numpy(resize(image)).permute(2, 0, 1) for image in read(folder, size).numpy()]
    with torch.inference_mode():
        expected = torch.cat([network(part) for part in torch.stack(resized).split(BATCH)])
    assert_same(ours(folder, size, "clean").pooled, expected)


def test_clean_fids_mode_legacy_tensorflow_is_tf1(folder: Path) -> None:
    """Its resize is NVIDIA's grid_sample, which is what stylegan2-ada and stylegan3 do as well."""
    scripted = pytest.importorskip("cleanfid.inception_torchscript")
    network = scripted.InceptionV3W(str(folder / "hub" / "checkpoints"), download=False, resize_inside=True)
    with torch.inference_mode():
        expected = network(read(folder, 64).permute(0, 3, 1, 2))
    assert_same(ours(folder, 64, "tf1").pooled, expected)
    assert_same(ours(folder, 64, "stylegan3").pooled, expected)


def test_torchmetrics(folder: Path) -> None:
    image = pytest.importorskip("torchmetrics.image.fid")
    weights = str(folder / "hub" / "checkpoints" / FILE_NAMES[1])
    # Since 1.8.0 it antialiases unless told not to, and then agrees with nobody.
    for antialias in (False, True):
        network = image.NoTrainInceptionV3("inception-v3-compat", ["2048"], weights, antialias)
        with torch.inference_mode():
            expected = network(read(folder, 64).permute(0, 3, 1, 2))
        found = ours(folder, 64, "tf1").pooled
        if antialias:
            assert float((found - expected).abs().max()) > 1e-2
        else:
            assert_same(found, expected)


def test_fid_of_two_folders_of_png_files(folder: Path, tmp_path: Path) -> None:
    """From the files to the number: `evaluate_images` beside torch-fidelity. (pytorch-fid and clean-fid resize in other
    ways: their features are compared above, their distance in test_metrics_peers_numbers.)"""
    package = pytest.importorskip("torch_fidelity")
    other = tmp_path / "other"
    other.mkdir()
    for number, path in enumerate(files(folder, 32)):
        Image.fromarray(255 - np.asarray(Image.open(path))).save(other / f"{number}.png")
    progress = Silent()
    reference = Reference(open_images(other, progress), None, tmp_path / "data")
    settings = EvalConfig(extractor="inception", metrics=("fid", "sfid"), num=12)
    found = evaluate_images(
        open_images(folder / "32", progress), reference, settings, CPU, Work(progress), allow_unknown_weights=True
    )
    assert found is not None
    expected = package.calculate_metrics(
        input1=str(folder / "32"), input2=str(other), fid=True, cuda=False, verbose=False, cache=False, batch_size=6
    )["frechet_inception_distance"]
    # With fewer images than features its eigenvalues of a singular product are a little off: 4e-3 of 112 at most.
    assert found.score.values["fid"] == pytest.approx(expected, rel=1e-4)
    # sFID by its definition, from the features themselves and by another route to the trace.
    extractor = open_inception(CPU, 3, None, True)
    rows = [
        extractor(image_set.part(0, 12)).spatial
        for image_set in (open_images(folder / "32", progress), reference.images)
    ]
    assert rows[0] is not None and rows[1] is not None and rows[0].shape == (12, 2023)
    a, b = (np.asarray(part, np.float64) for part in rows)
    centred = [(x - x.mean(0)) / np.sqrt(11) for x in (a, b)]
    root = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    sfid = ((a.mean(0) - b.mean(0)) ** 2).sum() + sum((x**2).sum() for x in centred) - 2 * root
    assert found.score.values["sfid"] == pytest.approx(sfid, rel=1e-4)
