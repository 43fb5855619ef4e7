"""The classifier that is trained on the data: what it learns, that it is the same each time, and where it is kept."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gantool.data.pack import PackedDataset
from gantool.errors import UsageError
from gantool.metrics import classifier
from gantool.metrics.classifier import RECIPE, Classifier, open_classifier
from gantool.progress import Silent

CPU = torch.device("cpu")


class Rows(Silent):
    """Remembers the words and the last progress of each activity."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.steps: dict[str, tuple[int, int | None]] = {}

    def say(self, text: str) -> None:
        self.words.append(text)

    def step(self, what: str, done: int, total: int | None, detail: str = "", left: float | None = None) -> None:
        self.steps[what] = done, total


def stripes(num: int = 400, size: int = 8, channels: int = 1, test: bool = True, seed: int = 0) -> PackedDataset:
    """Noisy images with vertical, horizontal or no stripes; every 20th image has no label."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(num) % 3).astype(np.int64)
    images = rng.integers(0, 60, (num, size, size, channels))
    images[labels == 0, ::2] += 150
    images[labels == 1, :, ::2] += 150
    labels[::20] = -1
    cut = num * 3 // 4
    splits = {"train": (0, cut), "test": (cut, num)} if test else {"train": (0, num)}
    classes = ("horizontal", "vertical", "none")
    return PackedDataset(Path("x.npy"), images.astype(np.uint8), labels, classes, splits, f"{seed}" * 64, "stripes")


@pytest.fixture(autouse=True)
def _short_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "FEWEST_IMAGES", 3000)


@pytest.mark.parametrize(("size", "channels", "test"), [(8, 1, True), (28, 1, False), (12, 3, True), (68, 3, True)])
def test_it_learns_at_any_size_and_says_how_well(size: int, channels: int, test: bool, tmp_path: Path) -> None:
    rows, data = Rows(), stripes(160 if size > 32 else 400, size, channels, test)
    extractor = open_classifier(data, tmp_path, CPU, rows)
    kind = "test images" if test else "training images"
    assert len(rows.words) == 1 and rows.words[0].endswith(f"right on the {kind}")
    assert float(rows.words[0].split("%")[0].split()[-1]) > 95
    features = extractor(torch.from_numpy(data.images[:5]))
    assert features.pooled.shape == (5, 128) and features.logits.shape == (5, 3)
    assert features.pooled.dtype == features.logits.dtype == torch.float32
    labels = data.labels[1:5]
    assert features.logits.argmax(1)[1:].tolist() == labels.tolist()
    assert extractor.notes == ()
    assert all(done == total for done, total in rows.steps.values())


def test_features_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    data = stripes(size=12, channels=3)
    extractor = open_classifier(data, tmp_path, CPU, Silent())
    images = torch.from_numpy(data.images[:130])
    whole = extractor(images)
    for batch in (1, 7, 64):
        parts = [extractor(part) for part in torch.split(images, batch)]
        assert torch.equal(torch.cat([part.pooled for part in parts]), whole.pooled)
        assert torch.equal(torch.cat([part.logits for part in parts]), whole.logits)


def test_folding_changes_nothing_but_rounding(tmp_path: Path) -> None:
    data = stripes(channels=3)
    extractor = open_classifier(data, tmp_path, CPU, Silent())
    (path,) = (tmp_path / "metrics").glob("*.safetensors")
    trained = classifier._read(path)
    assert trained is not None
    plain = Classifier(3, 8, 3)
    plain.load_state_dict(trained.state)
    images = torch.from_numpy(data.images[:64])
    with torch.inference_mode():
        pooled, logits = plain.eval()(images)
    found = extractor(images)
    torch.testing.assert_close(found.pooled, pooled, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.logits, logits, rtol=1e-4, atol=1e-4)


def test_training_gives_the_same_bits_and_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = open_classifier(stripes(), tmp_path / "1", CPU, Silent())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    two = open_classifier(stripes(), tmp_path / "2", CPU, Silent())
    assert one.digest == two.digest and one.protocol == two.protocol
    assert one.digest[:8] in one.protocol and RECIPE in one.protocol
    assert open_classifier(stripes(seed=1), tmp_path / "1", CPU, Silent()).digest != one.digest


def test_it_is_trained_once_and_again_when_damaged(tmp_path: Path) -> None:
    data = stripes()
    one = open_classifier(data, tmp_path, CPU, Silent())
    (path,) = (tmp_path / "metrics").glob("*.safetensors")
    whole = path.read_bytes()
    rows = Rows()
    assert open_classifier(data, tmp_path, CPU, rows).digest == one.digest
    assert not rows.words and not rows.steps
    for damaged in (whole[:-1000], whole[:-1] + bytes([whole[-1] ^ 1]), b"", b"junk" * 100):
        path.write_bytes(damaged)
        rows = Rows()
        assert open_classifier(data, tmp_path, CPU, rows).digest == one.digest
        assert "does not hold all" in rows.words[0] and path.read_bytes() == whole


def test_solved_sets_end_the_training_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    order = classifier._batches_in_order
    monkeypatch.setattr(classifier, "_batches_in_order", lambda *a: (steps.append(1) or batch for batch in order(*a)))
    monkeypatch.setattr(classifier, "FEWEST_IMAGES", 64 * 200)
    open_classifier(stripes(), tmp_path, CPU, Silent())
    assert len(steps) < 150


def test_a_poor_classifier_is_a_warning_on_every_score(tmp_path: Path) -> None:
    data = stripes()
    rng = np.random.default_rng(0)
    shuffled = rng.permuted(data.labels)
    data = PackedDataset(data.path, data.images, shuffled, data.classes, data.splits, "9" * 64, "noise")
    (note,) = open_classifier(data, tmp_path, CPU, Silent()).notes
    assert "read its scores with care" in note and "noise" in note


@pytest.mark.parametrize("kind", ["no classes", "no labels", "one class"])
def test_without_labels_inception_is_suggested(kind: str, tmp_path: Path) -> None:
    data = stripes()
    classes = () if kind == "no classes" else data.classes
    labels = {"no labels": np.full_like(data.labels, -1), "one class": np.zeros_like(data.labels)}.get(
        kind, data.labels
    )
    data = PackedDataset(data.path, data.images, labels, classes, data.splits, data.digest, data.title)
    with pytest.raises(UsageError, match="needs images of two or more classes") as caught:
        open_classifier(data, tmp_path, CPU, Silent())
    assert caught.value.hint is not None and "inception" in caught.value.hint
    assert not list(tmp_path.iterdir())


def test_two_processes_at_once_get_one_classifier(tmp_path: Path) -> None:
    program = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import torch; torch.set_num_threads(1)
from test_metrics_classifier import *
classifier.FEWEST_IMAGES = 3000
rows = Rows()
print(open_classifier(stripes(), Path({str(tmp_path)!r}), CPU, rows).digest, sum("right" in w for w in rows.words))
"""
    processes = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    found = [process.communicate(timeout=120)[0].split() for process in processes]
    assert found[0][0] == found[1][0]
    assert {found[0][1], found[1][1]} == {"0", "1"}  # one trained, the other one waited and read
    assert [p.suffix for p in (tmp_path / "metrics").iterdir() if not p.name.startswith(".")] == [".safetensors"]
