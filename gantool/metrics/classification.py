"""Do generated images show the class that was asked for, and are they enough to learn the classes from?

Two scores of class-conditional generators, which fail on different faults (Shmelkov et al., 2018, "How good is my
GAN?"). GAN-test: a classifier trained on real images is right about generated ones; blind to missing variety.
GAN-train, or CAS (Ravuri and Vinyals, 2019, "Classification Accuracy Score for Conditional Generative Models"): a
classifier trained on generated images is right about real ones; falls with quality and with variety. The published
CAS use a ResNet-50; here it is the small network of `classifier`, so numbers compare within gantool only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from gantool.data.image_sets import ImageSet, packed_set
from gantool.data.images import Labels, Pixels
from gantool.data.pack import PackedDataset
from gantool.errors import DataError
from gantool.metrics.classifier import RECIPE, Classifier, train_network
from gantool.precision import float32_products
from gantool.progress import Progress


@dataclass(frozen=True)
class AccuracyScore:
    """Shares of right answers, 0..1."""

    accuracy: float
    per_class: list[float | None]  # for each class of the test images; None where they have none of it
    baseline: float  # what always answering the most frequent class of the test images gives
    num_train: int
    num_test: int
    protocol: str


def classifier_accuracy(
    logits: npt.ArrayLike, labels: npt.ArrayLike, num_classes: int
) -> tuple[float, list[float | None]]:
    """GAN-test: the share of images whose largest logit is that of their class, over all and by class.

    logits: float32 [n, num_classes] of a fixed classifier; labels: int64 [n], -1 (left out) to num_classes - 1. Equal
    logits count as the first class. A class without images is None. DataError when no image has a label.
    """
    found, wanted = np.asarray(logits), np.asarray(labels)
    assert found.shape == (len(wanted), num_classes), (found.shape, wanted.shape, num_classes)
    return _accuracy(found.argmax(1), wanted, num_classes)


def classification_accuracy_score(
    train: ImageSet, test: ImageSet, device: torch.device, seed: int, progress: Progress
) -> AccuracyScore:
    """CAS, or GAN-train: train the classifier on `train` (generated), test it on all labelled images of `test` (real).

    A generator is judged against the same call with the real training set as `train`. The training images are held in
    memory: n * H * W * C bytes. On a CPU the same number of threads gives the same bits. DataError when the sizes or
    classes of the sets do not fit, or one has no labels.
    """
    _check_shapes(train, test)
    wanted = _labels_of(test)
    num_classes = len(test.classes) or int(wanted.max()) + 1
    labels = labels_among(train, test.classes, num_classes)
    usable = np.flatnonzero(labels >= 0)
    if len(usable) < 2:
        raise DataError(f"{train.title}: found {len(usable)} images with a label, expected 2 or more")
    images = _in_memory(train, progress)
    what = f"training a classifier on {train.title}"
    network = train_network(images.__getitem__, labels, train.shape, num_classes, device, what, progress, seed)
    del images
    guesses = _guesses(network, test, device, progress)
    accuracy, per_class = _accuracy(guesses, wanted, num_classes)
    num_test = int((wanted >= 0).sum())
    return AccuracyScore(
        accuracy=accuracy,
        per_class=per_class,
        baseline=float(np.bincount(wanted[wanted >= 0]).max() / num_test),
        num_train=len(usable),
        num_test=num_test,
        protocol=f"cas|classifier-{RECIPE}|train={len(usable)}|test={test.title}:{num_test}|seed={seed}",
    )


@dataclass(frozen=True)
class BothWays:
    """GAN-test and GAN-train of one set of generated images."""

    classes: list[str]
    accuracy: float  # GAN-test
    per_class: list[float | None]
    cas: AccuracyScore  # GAN-train
    protocol: str


def both_ways(
    images: ImageSet, logits: npt.NDArray[np.float32], seen_by: str, data: PackedDataset, device: torch.device,
    progress: Progress,
) -> BothWays:  # fmt: skip
    """Both scores of images with the classes of `data`. logits: of its classifier, whose protocol is `seen_by`."""
    assert images.labels is not None
    classes = [str(name) for name in data.classes]
    accuracy, per_class = classifier_accuracy(logits, images.labels, len(classes))
    cas = classification_accuracy_score(images, labelled_images(data), device, 0, progress)
    return BothWays(classes, accuracy, per_class, cas, f"{seen_by}|n={images.num}; {cas.protocol}")


def labelled_images(data: PackedDataset) -> ImageSet:
    """Up to 10,000 real images with labels to test on: of the test split, where it has two or more."""
    has_test = "test" in data.splits and int((data.split("test")[1] >= 0).sum()) >= 2
    return packed_set(data, "test" if has_test else "train", 10_000)


def labels_among(images: ImageSet, classes: tuple[str, ...], num_classes: int) -> Labels:
    """The labels of `images` as numbers of other classes: int64 [num], -1 where there is none.

    By name where both sets have names; else by number: the one in a .npz, or a folder's name that is one. DataError
    when they do not fit.
    """
    labels = _labels_of(images)
    if images.classes and classes:
        if set(images.classes) <= set(classes):
            numbers = [classes.index(name) for name in images.classes]
        elif all(name.isascii() and name.isdigit() for name in images.classes):
            numbers = [int(name) for name in images.classes]
        else:
            strangers = ", ".join(sorted(set(images.classes) - set(classes))[:5])
            hint = f"the classes are {', '.join(classes[:10])}{', ...' if len(classes) > 10 else ''}"
            raise DataError(f"{images.title}: found classes that the real images have not: {strangers}", hint)
        labels = np.array([*numbers, -1], np.int64)[labels]
    if labels.max() >= num_classes:
        text = f"{images.title}: found the class {labels.max()}, expected 0 to {num_classes - 1}"
        raise DataError(text, "number the classes as the real images do")
    return labels


def _labels_of(images: ImageSet) -> Labels:
    if images.labels is None or not (images.labels >= 0).any():
        hint = "save `labels` in the .npz, or put the images of each class into a folder of its name"
        raise DataError(f"{images.title}: found no labels, expected a class for each image", hint)
    return images.labels


def _check_shapes(train: ImageSet, test: ImageSet) -> None:
    if train.shape != test.shape:
        sizes = (f"{one.title} has [H, W, C] {list(one.shape)}" for one in (train, test))
        raise DataError(f"images of different shapes: {', '.join(sizes)}", "make both of one size, both grey or RGB")


def _in_memory(images: ImageSet, progress: Progress) -> Pixels:
    pixels = np.empty((images.num, *images.shape), np.uint8)
    done = 0
    for part in images.parts():
        pixels[done : done + len(part)] = part.cpu().numpy()
        done += len(part)
        progress.step(f"images of {images.title}", done, images.num)
    return pixels


@torch.inference_mode()
def _guesses(network: Classifier, images: ImageSet, device: torch.device, progress: Progress) -> Labels:
    """The class of the largest logit of each image: int64 [num]."""
    network.eval()
    found: list[Labels] = []
    with float32_products(tf32=False):
        for part in images.parts():
            found.append(network(part.to(device))[1].argmax(1).cpu().numpy())
            progress.step(f"classes of {images.title}", sum(map(len, found)), images.num)
    return np.concatenate(found)


def _accuracy(guesses: Labels, labels: Labels, num_classes: int) -> tuple[float, list[float | None]]:
    guesses, labels = guesses[labels >= 0], labels[labels >= 0]
    if not len(labels):
        raise DataError("found no image with a label, expected one or more")
    if labels.max() >= num_classes:
        raise DataError(f"found an image of class {labels.max()}, expected classes 0 to {num_classes - 1}")
    counts = np.bincount(labels, minlength=num_classes)
    right = np.bincount(labels[guesses == labels], minlength=num_classes)
    shares = [float(r / n) if n else None for r, n in zip(right, counts, strict=True)]
    return float(right.sum() / len(labels)), shares
