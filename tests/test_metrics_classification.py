"""GAN-test and GAN-train: what accuracies come out for good, shuffled, constant and incomplete generated images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gantool.config.schema import DataConfig
from gantool.data.image_sets import ImageSet, packed_set
from gantool.data.pack import PackedDataset, open_packed
from gantool.errors import DataError
from gantool.metrics import classifier
from gantool.metrics.classification import (
    AccuracyScore,
    classification_accuracy_score,
    classifier_accuracy,
    labels_among,
)
from gantool.metrics.classifier import RECIPE, open_classifier
from gantool.progress import Silent

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _short_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "FEWEST_IMAGES", 6000)


@pytest.fixture(scope="module")
def shapes(data_dir: Path) -> PackedDataset:
    return open_packed(DataConfig(name="shapes", size=8), data_dir)


def cas(train: ImageSet, test: ImageSet, seed: int = 0) -> AccuracyScore:
    return classification_accuracy_score(train, test, CPU, seed, Silent())


def stripes(num: int, shape: tuple[int, int, int] = (8, 8, 1), seed: int = 0, classes: int = 3) -> ImageSet:
    """Noisy images with vertical, horizontal or no stripes."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(num) % classes).astype(np.int64)
    images = rng.integers(0, 60, (num, *shape))
    images[labels == 0, ::2] += 150
    images[labels == 1, :, ::2] += 150
    return image_set(images.astype(np.uint8), labels)


def image_set(
    images: np.ndarray, labels: np.ndarray | None, title: str = "x", classes: tuple[str, ...] = ()
) -> ImageSet:
    _, height, width, channels = images.shape
    pixels = torch.from_numpy(images)
    return ImageSet(title, "0", len(images), (height, width, channels), lambda a, b: pixels[a:b], labels, classes)


# --- GAN-test


def test_accuracy_against_counting_by_hand() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((500, 5)).astype(np.float32), rng.integers(-1, 4, 500)
    pairs = [(int(np.argmax(row)), int(label)) for row, label in zip(logits, labels, strict=True) if label >= 0]
    by_class = [[guess == label for guess, label in pairs if label == k] for k in range(5)]
    accuracy, per_class = classifier_accuracy(logits, labels, 5)
    assert accuracy == pytest.approx(sum(guess == label for guess, label in pairs) / len(pairs), abs=1e-15)
    assert per_class == [pytest.approx(np.mean(found)) if found else None for found in by_class]
    assert per_class[4] is None
    assert classifier_accuracy(torch.from_numpy(logits), torch.from_numpy(labels), 5) == (accuracy, per_class)


def test_a_generator_of_one_class_is_right_as_often_as_chance() -> None:
    labels = np.arange(100) % 10
    logits = np.tile(np.arange(10, dtype=np.float32), (100, 1))
    assert classifier_accuracy(logits, labels, 10) == (0.1, [0.0] * 9 + [1.0])
    assert classifier_accuracy(np.zeros((100, 10), np.float32), labels, 10) == (0.1, [1.0] + [0.0] * 9)


def test_labels_that_do_not_fit_the_logits() -> None:
    logits = np.zeros((3, 2), np.float32)
    with pytest.raises(DataError, match="found an image of class 2, expected classes 0 to 1"):
        classifier_accuracy(logits, np.array([0, 1, 2]), 2)
    with pytest.raises(DataError, match="no image with a label"):
        classifier_accuracy(logits, np.array([-1, -1, -1]), 2)


def test_real_images_are_what_a_real_classifier_says(shapes: PackedDataset, tmp_path: Path) -> None:
    """GAN-test of the real test images is the accuracy that the classifier itself was measured to have."""
    words: list[str] = []

    class Listening(Silent):
        def say(self, text: str) -> None:
            words.append(text)

    extractor = open_classifier(shapes, tmp_path, CPU, Listening())
    test = packed_set(shapes, "test", None)
    assert test.labels is not None
    logits = torch.cat([extractor(part).logits for part in test.parts()])
    accuracy, _ = classifier_accuracy(logits, test.labels, 10)
    assert f"{accuracy:.1%} right on the test images" in words[0]


# --- GAN-train


def test_real_shapes_teach_their_classes_and_shuffled_labels_do_not(shapes: PackedDataset) -> None:
    train, test = packed_set(shapes, "train", 3000), packed_set(shapes, "test", 999)
    assert train.labels is not None and test.labels is not None
    good = cas(train, test)
    assert good.accuracy > 0.95 and good.num_train == 3000 and good.num_test == 999
    counts = np.bincount(test.labels, minlength=10)
    assert None not in good.per_class
    assert np.dot(np.array(good.per_class, float), counts) / 999 == pytest.approx(good.accuracy, abs=1e-12)
    assert good.baseline == counts.max() / 999
    assert good.protocol == f"cas|classifier-{RECIPE}|train=3000|test=shapes:test:999|seed=0"
    shuffled = cas(replace(train, labels=np.random.default_rng(0).permutation(train.labels)), test)
    assert abs(shuffled.accuracy - 0.1) < 0.05


def test_the_seed_decides_and_the_global_generator_does_not() -> None:
    train, test = stripes(300), stripes(200, seed=1)
    assert train.labels is not None
    train = replace(train, labels=np.random.default_rng(0).permutation(train.labels))  # so that nothing is certain
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = cas(train, test)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert cas(train, test) == one
    other = cas(train, test, seed=1)
    assert other.per_class != one.per_class and other.protocol.endswith("|seed=1")


@pytest.mark.parametrize("shape", [(4, 4, 1), (12, 20, 3), (68, 66, 1)])
def test_any_shape(shape: tuple[int, int, int]) -> None:
    score = cas(stripes(90, shape), stripes(60, shape, seed=1))
    assert score.accuracy > 0.9 and score.num_train == 90 and len(score.per_class) == 3


def test_constant_images_give_chance() -> None:
    """A function of images that are all the same is right for one class and wrong for the others."""
    labels = (np.arange(150) % 3).astype(np.int64)
    for value in (0, 255):
        same = image_set(np.full((150, 8, 8, 1), value, np.uint8), labels)
        score = cas(same, same)
        assert sorted(score.per_class) == [0.0, 0.0, 1.0] and score.accuracy == pytest.approx(1 / 3)
        assert 0 <= cas(same, stripes(90, seed=1)).accuracy <= 1 and score.baseline == pytest.approx(1 / 3)


def test_missing_classes() -> None:
    test = replace(stripes(90, seed=1), classes=("horizontal", "vertical", "none", "other"))
    two = stripes(100, classes=2)
    score = cas(two, test)
    assert score.per_class[0] == score.per_class[1] == 1 and score.per_class[2:] == [0.0, None]
    assert test.labels is not None
    without = cas(stripes(100), replace(test, labels=np.where(test.labels == 0, -1, test.labels)))
    assert without.per_class[0] is None and without.num_test == 60 and without.accuracy > 0.9
    one_class = cas(replace(two, labels=np.ones(100, np.int64)), test)
    assert one_class.per_class == [0.0, 1.0, 0.0, None] and one_class.accuracy == pytest.approx(1 / 3)


def test_generated_images_are_drawn_part_by_part_once() -> None:
    calls: list[tuple[int, int]] = []
    train = stripes(300)

    def part(start: int, stop: int) -> torch.Tensor:
        calls.append((start, stop))
        return train.part(start, stop)

    assert cas(replace(train, part=part), stripes(60, seed=1)).accuracy > 0.9
    assert calls == [(0, 256), (256, 300)]


def test_sets_that_do_not_fit() -> None:
    train, test = stripes(30), stripes(30)
    with pytest.raises(DataError, match=r"different shapes: x has \[H, W, C\] \[8, 8, 3\], x has .* \[8, 8, 1\]"):
        cas(stripes(30, (8, 8, 3)), test)
    for labels in (None, np.full(30, -1, np.int64)):
        with pytest.raises(DataError, match="x: found no labels, expected a class for each image"):
            cas(replace(train, labels=labels), test)
        with pytest.raises(DataError, match="x: found no labels"):
            cas(train, replace(test, labels=labels))
    with pytest.raises(DataError, match="found 1 images with a label, expected 2 or more"):
        cas(replace(train, labels=np.where(np.arange(30) == 4, 1, -1)), test)


# --- which class is which


@pytest.mark.parametrize(
    ("names", "real", "expected"),
    [
        ((), ("cat", "dog", "eel"), [0, 1, 2, -1]),
        ((), (), [0, 1, 2, -1]),
        (("cat", "dog", "eel"), (), [0, 1, 2, -1]),
        (("cat", "dog", "eel"), ("ant", "cat", "dog", "eel"), [1, 2, 3, -1]),
        (("0", "10", "2"), tuple("abcdefghijk"), [0, 10, 2, -1]),  # class folders named by number, sorted as text
        (("0", "10", "2"), ("0", "10", "2", "x"), [0, 1, 2, -1]),
    ],
)
def test_classes_are_matched_by_name_or_else_by_number(
    names: tuple[str, ...], real: tuple[str, ...], expected: list[int]
) -> None:
    images = image_set(np.zeros((4, 8, 8, 1), np.uint8), np.array([0, 1, 2, -1]), classes=names)
    assert labels_among(images, real, len(real) or 11).tolist() == expected


def test_classes_that_the_real_images_have_not() -> None:
    images = image_set(np.zeros((2, 8, 8, 1), np.uint8), np.array([0, 1]), classes=("cat", "unicorn"))
    with pytest.raises(DataError, match="classes that the real images have not: unicorn") as caught:
        labels_among(images, ("cat", "dog"), 2)
    assert caught.value.hint == "the classes are cat, dog"
    numbers = image_set(np.zeros((2, 8, 8, 1), np.uint8), np.array([0, 7]))
    with pytest.raises(DataError, match="found the class 7, expected 0 to 1"):
        labels_among(numbers, ("cat", "dog"), 2)
