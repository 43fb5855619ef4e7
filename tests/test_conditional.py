"""Class-conditional runs: labels in training, grids and samples; the discriminator's accuracy by class."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Gantool
from PIL import Image
from test_resume import sets

from gantool.class_accuracy import class_accuracies
from gantool.config.schema import RunConfig
from gantool.data.loader import RealImages, to_float
from gantool.data.pack import PackedDataset, ensure_packed
from gantool.losses import build_loss
from gantool.manifest import load_trials
from gantool.players import Players
from gantool.progress import Silent
from gantool.report.facts import read_run
from gantool.runtime import Runtime
from gantool.sample import generate_with
from gantool.state import State

CONDITIONAL = (
    "generator={kind: resnet, latent_dim: 8, width: 8, max_width: 8, condition: batch_norm}",
    "discriminator={kind: resnet, width: 8, max_width: 8, spectral_norm: true, condition: projection}",
    "loss=hinge",
)


def state_of(data_dir: Path, loss: str = "hinge") -> tuple[RunConfig, State, PackedDataset]:
    config = RunConfig.model_validate(
        {
            "data": {"name": "shapes", "size": 8},
            "generator": {"kind": "mlp", "latent_dim": 6, "widths": [16], "condition": "concat"},
            "discriminator": {"kind": "mlp", "widths": [16], "condition": "projection"},
            "loss": loss,
            "batch": 8,
        }
    )
    data = ensure_packed(config.data, data_dir, Silent())
    return config, State(config, torch.device("cpu"), len(data.classes)), data


@pytest.mark.parametrize("loss", ["hinge", "relativistic", "least_squares"])
def test_accuracies_by_class_are_those_of_one_image_after_the_other(loss: str, data_dir: Path) -> None:
    config, state, data = state_of(data_dir, loss)
    found = class_accuracies(config, state, build_loss(config.loss), data, Silent())
    assert state.discriminator.training and found["num"] == 100 and found["split"] == "test"
    images, labels = data.split("test")
    state.discriminator.eval()
    for label in range(10):
        y = torch.tensor([label])
        chosen = np.flatnonzero(labels == label)[:100]
        fakes = torch.cat(list(generate_with(state.ema, 6, 0, 100, config.seed, lambda _, y=label: y)))  # type: ignore[misc]
        real = [state.discriminator(to_float(torch.from_numpy(images[k][None].copy())), y).item() for k in chosen]
        fake = [state.discriminator(to_float(image[None]), y).item() for image in fakes]
        boundary = 0.5 if loss == "least_squares" else 0.0
        expected = np.mean(np.array(real) > boundary), np.mean(np.array(fake) < boundary)
        if loss == "relativistic":
            expected = (np.mean(np.array(real) > np.array(fake)),) * 2
        assert (found["accuracy_real"][label], found["accuracy_fake"][label]) == pytest.approx(expected, abs=0.011)


def test_real_images_come_with_their_own_labels_and_generated_ones_with_all(data_dir: Path) -> None:
    config, state, data = state_of(data_dir)
    images, labels = data.split("train")
    runtime = Runtime(config.runtime.model_copy(update={"device": "cpu"}))
    real = RealImages(images, config.augment, 0, 8, torch.device("cpu"))
    players = Players(config, state, real, labels, 10, runtime, lambda length: 100)
    for draw in (0, 3):
        batch, own = real.batch(draw), players.labels_of(real, draw)
        assert own is not None
        for image, label in zip(batch, own, strict=True):
            same = (to_float(torch.from_numpy(np.ascontiguousarray(images))) == image).flatten(1).all(1)
            assert label.item() in labels[same.numpy()]
    drawn = [players.random_labels("generator", step) for step in range(200)]
    counts = torch.bincount(torch.cat([labels for labels in drawn if labels is not None]), minlength=10)
    assert counts.min() > 100 and counts.sum() == 1600
    assert not torch.equal(drawn[0], drawn[1])  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    """A finished class-conditional run with scores."""
    from conftest import start, tiny_config

    folder = tmp_path_factory.mktemp("conditional")
    options = sets((*CONDITIONAL, "eval={num: 50}", "runtime.grid=10x2"))
    process = start("train", tiny_config(folder, data_dir), *options)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return Path(out.strip())


def test_scores_hold_the_accuracy_of_each_class(run: Path, gantool: Gantool) -> None:
    (score,) = json.loads((run / "result.json").read_text())["scores"]
    assert len(score["per_class"]) == 10
    for key in ("accuracy_real", "accuracy_fake"):
        values = [row[key] for row in score["per_class"].values()]
        assert score["values"][key] == pytest.approx(np.mean(values), abs=1e-4)
        assert all(0 <= value <= 1 for value in values)
    assert "real=test" in score["accuracy_protocol"]
    printed = gantool("eval", "--ckpt", run, "--num", "50")
    assert printed.returncode == 0 and all(name in printed.stdout for name in score["per_class"])


def test_a_report_has_the_accuracy_of_each_class_also_without_scores(run: Path, tmp_path: Path) -> None:
    (score,) = json.loads((run / "result.json").read_text())["scores"]
    shutil.copytree(run, tmp_path / run.name)
    result = tmp_path / run.name / "result.json"
    result.write_text(json.dumps(json.loads(result.read_text()) | {"scores": []}))
    (trial,) = load_trials(tmp_path / run.name).trials
    assert read_run(trial, ()).per_class == {
        name: {key: row[key] for key in ("accuracy_real", "accuracy_fake")} for name, row in score["per_class"].items()
    }
    newest = max((tmp_path / run.name / "snapshots").glob("*"))
    newest.write_bytes(newest.read_bytes()[:500])
    assert read_run(trial, ()).per_class == {}


def test_classes_are_chosen_by_name_and_number(run: Path, gantool: Gantool, tmp_path: Path) -> None:
    names = json.loads((run / "run.json").read_text())["data"]["classes"]
    for words, expected in (((), [*range(10), 0]), (("--classes", f"{names[7]}, 2"), [7, 2] * 5 + [7])):
        done = gantool("sample", "--ckpt", run, "-n", 11, "--out", tmp_path / "x.npz", *words)
        assert done.returncode == 0, done.stderr
        with np.load(tmp_path / "x.npz", allow_pickle=False) as archive:
            assert archive["labels"].tolist() == expected and archive["images"].shape == (11, 8, 8, 3)
    refused = gantool("sample", "--ckpt", run, "--out", tmp_path / "y.npz", "--classes", "zebra")
    assert refused.returncode == 2 and "'zebra'" in refused.stderr and f"0 {names[0]}" in refused.stderr
    done = gantool("sample", "--ckpt", run, "--grid", "2x5", "--classes", "4", "--out", tmp_path / "g.png")
    assert done.returncode == 0 and Image.open(tmp_path / "g.png").size == (5 * 10 + 2, 2 * 10 + 2)


def test_images_without_classes_are_refused(gantool: Gantool, tiny: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "plain").mkdir()
    for k in range(12):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / "plain" / f"{k}.png")
    data = ("data={name: mine, size: 8}", f"runtime.data_dir={tmp_path / 'packed'}")
    assert gantool("prepare", tiny, "--source", tmp_path / "plain", *sets(data)).returncode == 0
    refused = gantool("train", tiny, *sets((*data, *CONDITIONAL)))
    assert refused.returncode == 1 and "class-conditional, but the images have" in refused.stderr
    refused = gantool("train", tiny, *sets((*CONDITIONAL, "data={name: celeba, size: 64}")))
    assert refused.returncode == 2 and "celeba has no classes" in refused.stderr
