"""The verb `eval`: images, of a snapshot or of other origin, to features to scores, against real images.

Nothing touches the disk but the statistics of the real images, which are kept beside the data, and what an interrupted
evaluation has found. Every score comes with the same scores of real test images: what a generator that reproduces the
data would get.
"""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

import gantool
from gantool import container, revision
from gantool.class_accuracy import accuracies_by_class, accuracy_protocol
from gantool.config.evaluation import EvalConfig, eval_problems
from gantool.config.schema import DataConfig
from gantool.data.image_sets import ImageSet, packed_set
from gantool.data.pack import PackedDataset, check_digest, ensure_packed
from gantool.errors import GantoolError, InterruptedRun, UsageError
from gantool.metrics import classification, intervals, table
from gantool.metrics.cautions import cautions
from gantool.metrics.classifier import check_classes, open_classifier
from gantool.metrics.collection import Work, collect
from gantool.metrics.extractors import Setting, open_extractor
from gantool.metrics.features import Extractor
from gantool.metrics.moments import inception_score
from gantool.metrics.reference import RealStatistics, Reference, gather, kept_values, source
from gantool.metrics.scores import Score, class_rows, score_rows, write_score
from gantool.metrics.statistics import Need, Statistics, distance
from gantool.nearest import picture_of_nearest
from gantool.progress import Progress, told
from gantool.sample import Snapshot, generated_set, save_grid

_log = logging.getLogger(__name__)

__all__ = ["Score", "class_rows", "evaluate", "evaluate_images", "keep", "score_rows"]


Values = dict[str, float]


class Evaluation(NamedTuple):
    """A score, and for `overfit` a picture: scored images, beside each the real images nearest to it."""

    score: Score
    nearest: Image.Image | None


@dataclass(frozen=True)
class _Subject:
    """What is scored, and what is known about it."""

    images: ImageSet
    path: str
    step: int | None = None
    ema: bool | None = None
    seed: int | None = None
    digest: str = ""
    per_class: dict[str, dict[str, float]] = field(default_factory=dict)
    accuracy_protocol: str | None = None


def evaluate(
    snapshot: Snapshot,
    settings: EvalConfig,
    data_dir: Path,
    seed: int,
    work: Work,
    weights: Path | None = None,
    allow_unknown_weights: bool = False,
    data: PackedDataset | None = None,
) -> Evaluation | None:
    """Score images 0..num-1 of the sample `seed` of a snapshot, on the device of its generator; None on ranks > 0.

    weights: of the extractor (see `metrics.weights.find`), instead of those of the settings. data: the packed data, if
    they are open and checked already. UsageError when the packed data are not those of the snapshot, or the extractor
    cannot be had; GantoolError when the generator's numbers are not finite; InterruptedRun when `work.stop()` says so.
    """
    began = time.monotonic()
    if data is None:
        data = ensure_packed(snapshot.config.data, data_dir, work.progress)
        check_digest(data, work.progress)
    _check(snapshot, data)
    _refuse(settings, snapshot.num_classes > 0)
    device = next(snapshot.generator.parameters()).device
    reference = Reference(packed_set(data, "train", None), data, data_dir)
    extractor = _open(settings, reference, device, work, weights, allow_unknown_weights)
    subject = _Subject(
        generated_set(snapshot, settings.num, seed), str(snapshot.path), snapshot.step, snapshot.ema, seed,
        snapshot.digest, accuracies_by_class(snapshot), accuracy_protocol(snapshot),
    )  # fmt: skip
    return _score(subject, reference, extractor, settings, work, began)


def evaluate_images(
    images: ImageSet,
    reference: Reference,
    settings: EvalConfig,
    device: torch.device,
    work: Work,
    weights: Path | None = None,
    allow_unknown_weights: bool = False,
) -> Evaluation | None:
    """Score images of other origin, all of them, as `evaluate` scores those of a snapshot."""
    began = time.monotonic()
    settings = settings.model_copy(update={"num": images.num})
    _refuse(settings, images.labels is not None)
    if images.shape[2] != reference.images.shape[2]:
        kinds = [f"{one.title} is {'grey' if one.shape[2] == 1 else 'RGB'}" for one in (images, reference.images)]
        raise UsageError(f"{', '.join(kinds)}: both must have the same channels", "convert one of them")
    if settings.extractor == "classifier" and images.shape != reference.images.shape:
        text = f"{images.title} has images of {images.shape[1]}x{images.shape[0]} pixels, the classifier was trained on"
        text += f" {reference.images.shape[1]}x{reference.images.shape[0]}"
        raise UsageError(text, "use the extractor inception, which resizes all images, or resize them first")
    extractor = _open(settings, reference, device, work, weights, allow_unknown_weights)
    subject = _Subject(images, images.title, digest=images.digest)
    return _score(subject, reference, extractor, settings, work, began)


def keep(folder: Path, found: Evaluation) -> Path:
    """Write a score, and its picture beside it, below a run directory; the path of the score."""
    path = write_score(folder, found.score)
    if found.nearest is not None:
        save_grid(path.with_name(f"{path.stem}-nearest.png"), found.nearest)
    return path


def stage(wanted: DataConfig, settings: EvalConfig, data_dir: Path, device: torch.device, work: Work) -> None:
    """Make and keep all that `evaluate` needs beside a generator: the extractor, the statistics of the real images."""
    _stage(ensure_packed(wanted, data_dir, work.progress), settings, data_dir, device, work)


def _stage(data: PackedDataset, settings: EvalConfig, data_dir: Path, device: torch.device, work: Work) -> None:
    """`stage` for data that are packed."""
    reference = Reference(packed_set(data, "train", None), data, data_dir)
    gather(reference, _open(settings, reference, device, work, None, False), settings, settings.num, work)


def ready(settings: EvalConfig, data: PackedDataset, data_dir: Path, device: torch.device, work: Work) -> None:
    """Fail now and not after a long training when a run cannot be scored by its settings: UsageError, DataError.

    With scores in training all is made ready for them, so that their times are those of scores alone.
    """
    reference = Reference(packed_set(data, "train", None), data, data_dir)
    _with_labels_of(reference.images, reference, settings)
    if settings.every:
        _stage(data, settings, data_dir, device, work)
    elif settings.extractor == "classifier":
        check_classes(data)
    else:
        _open(settings, reference, device, work, None, False)


def _refuse(settings: EvalConfig, has_classes: bool) -> None:
    for keys, text, hint in eval_problems(settings, has_classes):
        raise UsageError(f"{keys[0]}: {text}", hint)


def _open(
    settings: EvalConfig, reference: Reference, device: torch.device, work: Work, weights: Path | None, unknown: bool
) -> Extractor:
    given = weights or (Path(settings.weights) if settings.weights else None)
    setting = Setting(
        data=reference.data,
        data_dir=reference.folder,
        device=device,
        channels=reference.images.shape[2],
        weights=given,
        allow_unknown_weights=unknown,
        protocol=settings.protocol,
        precision=settings.precision,
        progress=work.progress,
    )
    extractor = open_extractor(settings.extractor, setting)
    _log.info("extractor %s %s in %s on %s", extractor.name, extractor.digest[:12], settings.precision, device)
    number, highest = int(extractor.digest[:8], 16), work.ranks.highest
    if highest(number) != -highest(-number):
        text = f"ranks have different weights of the extractor {extractor.name}"
        raise GantoolError(text, "make the folder of the data writable, or let gantool prepare make them ready once")
    return extractor


def _score(
    subject: _Subject, reference: Reference, extractor: Extractor, settings: EvalConfig, work: Work, began: float
) -> Evaluation | None:
    images = _with_labels_of(subject.images, reference, settings)
    real = gather(reference, extractor, settings, images.num, work)
    few = images.num <= extractor.feature_dim  # rows allow the exact distance then
    need = table.need_of(settings.metrics) | Need(features=settings.per_class or settings.ci or few)
    need |= Need(logits="classification" in settings.metrics and extractor.name == "classifier")
    scored = collect(images, extractor, need, work, f"features of {images.title}")
    recognised = None
    if "classification" in settings.metrics:
        recognised = _seen_by_classifier(images, reference, extractor, scored, work)
    if not work.is_main:
        return None
    values, protocol = _values(scored, real.train, extractor, settings, source(reference), work)
    yardstick, unmeasured = None, list[str]()
    if real.test:
        yardstick = _values(
            real.test, real.train, extractor, settings, source(reference), work, unmeasured,
            lambda protocol, make: kept_values(reference, real, protocol, make, work.progress),
        )  # fmt: skip
    per_class = {name: dict(row) for name, row in subject.per_class.items()}
    _add_special(values, protocol, per_class, scored, real, reference, extractor, settings, work.progress)
    if recognised is not None:
        _classify(values, protocol, per_class, recognised, images, reference, extractor, work)
    _add_means(values, per_class)
    warnings = cautions(images, subject.step is not None, scored, real, reference, extractor, settings)
    score = Score(
        snapshot=subject.path,
        snapshot_digest=subject.digest,
        step=subject.step,
        ema=subject.ema,
        seed=subject.seed,
        num=images.num,
        data_title=reference.data.title if reference.data else reference.images.title,
        data_digest=reference.data.digest if reference.data else reference.images.digest,
        extractor=extractor.name,
        extractor_digest=extractor.digest,
        values=values,
        protocol=protocol,
        real=yardstick[0] if yardstick else None,
        real_protocol=yardstick[1] if yardstick else None,
        per_class=per_class,
        accuracy_protocol=subject.accuracy_protocol,
        warnings=(*warnings, *unmeasured),
        settings=settings.identity(),
        versions=_versions(),
        device=extractor.device.type,
        num_ranks=work.ranks.num_ranks,
        seconds=round(time.monotonic() - began, 3),
    )
    shown = None
    if "overfit" in settings.metrics:
        assert scored.features is not None and real.train.features is not None
        shown = picture_of_nearest(images, scored.features, reference.images, real.train.features, extractor.device)
    return Evaluation(score, shown)


def _values(
    scored: Statistics,
    real: Statistics,
    extractor: Extractor,
    settings: EvalConfig,
    source: str,
    work: Work,
    problems: list[str] | None = None,
    values_by: Callable[[str, Callable[[], Values]], Values] = lambda _, make: make(),
) -> tuple[Values, dict[str, str]]:
    """(values, protocols) of the metrics that are functions of two statistics; InterruptedRun between two parts.
    What cannot be computed is an error, or, with a list of `problems`, left out and added there. values_by: has the
    values by a protocol, or makes them."""
    facts = _facts(scored, real, extractor, source)
    values: dict[str, float] = {}
    protocol: dict[str, str] = {}
    wanted = [name for name in settings.metrics if name in table.METRICS]
    for done, name in enumerate(wanted):
        told = partial(_tell_of_metric, work, name, done, len(wanted))
        told(0, 1)
        metric = table.METRICS[name]
        make = partial(metric.values, scored, real, extractor.device, told)
        try:
            values |= values_by(metric.protocol(facts), make)
        except GantoolError as error:
            if problems is None:
                raise
            problems.append(f"no {name} of the real test images: {error.message}")
            continue
        protocol[name] = metric.protocol(facts)
    work.progress.step("scores from features", 100 * len(wanted), 100 * len(wanted))
    return values, protocol


def _tell_of_metric(work: Work, name: str, finished: int, num: int, done: int, total: int) -> None:
    """Progress by a hundredth of a metric, of which `finished` of `num` are there; InterruptedRun if it is to stop."""
    work.progress.step(
        "scores from features", min(100 * finished + 100 * done // total, 100 * num - 1), 100 * num, name
    )
    if work.stop():
        raise InterruptedRun("stopped while computing scores", "run the same command again to go on")


def _add_special(
    values: dict[str, float],
    protocol: dict[str, str],
    per_class: dict[str, dict[str, float]],
    scored: Statistics,
    real: RealStatistics,
    reference: Reference,
    extractor: Extractor,
    settings: EvalConfig,
    progress: Progress,
) -> None:
    """Values that need more than two statistics: overfit, per class, the interval."""
    facts = _facts(scored, real.train, extractor, source(reference))
    if "overfit" in settings.metrics:
        assert real.test is not None
        tell = partial(progress.step, "overfit")
        values |= table.overfit(scored, real.train, real.test, extractor.device, tell)
        protocol["overfit"] = table.overfit_protocol(facts, min(facts.num_equal, real.test.count))
    if settings.ci and "fid" in settings.metrics:
        assert scored.features is not None
        sides = scored.features, real.train.moments, scored.ddof, real.train.features
        values["fid_debiased"] = intervals.debiased_fid(*sides, values["fid"], progress)
        found = intervals.fid_interval(*sides, values["fid"], progress=progress)
        values |= {"fid_low": found.low, "fid_high": found.high}
        protocol["ci"] = f"ci|{facts.features}|{facts.tail(facts.num_reference)}|halves|jackknife=20|95%|seed=2020"
    if settings.per_class:
        names = _class_names(reference.images)
        # One after the other: a Gram matrix of 2,048 features has 34 MB.
        for label in told(range(len(names)), "scores by class", progress):
            part, whole = table.class_moments(scored, label), table.class_moments(real.train, label)
            row = per_class.setdefault(names[label], {})
            row["num"] = part.count
            if part.count >= 2 and whole.count >= 2:
                row["fid"] = distance(part, whole)
            if part.logits is not None and part.count and "is" in settings.metrics:
                row["is"] = inception_score(part.logits, 1, None)[0]
        tail = facts.tail(facts.num_reference)
        protocol["per_class"] = f"per-class|{facts.features}|{tail} in all classes|ddof{scored.ddof}|splits=1"


def _classify(
    values: dict[str, float],
    protocol: dict[str, str],
    per_class: dict[str, dict[str, float]],
    recognised: Statistics,
    images: ImageSet,
    reference: Reference,
    extractor: Extractor,
    work: Work,
) -> None:
    """Add GAN-test and GAN-train, over all and by class."""
    assert recognised.logits is not None and reference.data is not None
    found = classification.both_ways(
        images, recognised.logits, recognised.protocol, reference.data, extractor.device, work.progress
    )
    values |= {"accuracy_classifier": found.accuracy, "cas": found.cas.accuracy}
    protocol["classification"] = f"classification|{found.protocol}"
    for label, name in enumerate(found.classes):
        row = {"accuracy_classifier": found.per_class[label], "cas": found.cas.per_class[label]}
        per_class.setdefault(name, {}).update({key: value for key, value in row.items() if value is not None})


def _add_means(values: dict[str, float], per_class: dict[str, dict[str, float]]) -> None:
    """The discriminator's accuracies, as means over the classes."""
    for key in ("accuracy_real", "accuracy_fake"):
        shares = [row[key] for row in per_class.values() if key in row]
        if shares:
            values[key] = round(sum(shares) / len(shares), 6)


def _with_labels_of(images: ImageSet, reference: Reference, settings: EvalConfig) -> ImageSet:
    """The images with labels in the numbers of the reference's classes, where they are needed; what cannot be scored is
    refused here, before any work: UsageError, DataError."""
    if "classification" in settings.metrics and reference.data is None:
        text = f"classification needs a packed dataset to train a classifier on, {reference.images.title} is none"
        raise UsageError(text, "give the config of the data as --reference, or leave classification out")
    if "overfit" in settings.metrics and (reference.data is None or "test" not in reference.data.splits):
        text = f"{reference.images.title}: there are no test images, which the metric overfit compares with"
        raise UsageError(text, "leave overfit out, or pack the data with a test folder")
    if not settings.per_class and "classification" not in settings.metrics:
        return images
    names = _class_names(reference.images)
    if len(names) < 2:
        text = f"{reference.images.title}: found {len(names)} classes, expected 2 or more for scores of each class"
        raise UsageError(text, "leave per_class and classification out")
    if "classification" in settings.metrics and reference.data is not None:
        check_classes(reference.data)
    labels = classification.labels_among(images, reference.images.classes, len(names))
    return replace(images, labels=labels)


def _class_names(images: ImageSet) -> list[str]:
    """Names of the classes, numbers where they have none."""
    if images.classes or images.labels is None:
        return [str(name) for name in images.classes]
    return [str(label) for label in range(int(images.labels.max()) + 1)]


def _seen_by_classifier(
    images: ImageSet, reference: Reference, extractor: Extractor, scored: Statistics, work: Work
) -> Statistics:
    """The scored images as the classifier of the reference sees them."""
    if extractor.name == "classifier" and scored.logits is not None:
        return scored
    assert reference.data is not None
    classifier = open_classifier(reference.data, reference.folder, extractor.device, work.progress)
    return collect(images, classifier, Need(logits=True), work, "what the classifier sees")


def _facts(scored: Statistics, real: Statistics, extractor: Extractor, source: str) -> table.Facts:
    protocols = extractor.protocol, extractor.logits_protocol, extractor.spatial_protocol
    return table.Facts(*protocols, scored.count, real.count, min(scored.count, real.count), source, extractor.ddof)


def _versions() -> dict[str, str]:
    found = {
        "gantool": gantool.__version__,
        "commit": revision.commit(),
        "torch": torch.__version__,
        "torchvision": _torchvision_version(),
        "numpy": np.__version__,
        "scipy": version("scipy"),
        "python": platform.python_version(),
    }
    image = container.image()
    return found | ({"image": image.get("digest", "unknown")} if image else {})


def _torchvision_version() -> str:
    try:
        return version("torchvision")
    except PackageNotFoundError:  # the image for the CPU has none
        return "none"


def _check(snapshot: Snapshot, data: PackedDataset) -> None:
    trained_on = snapshot.data["digest"]
    if data.digest != trained_on:
        raise UsageError(
            f"{data.path}: these are not the data of {snapshot.path}: found {data.title} with digest "
            f"{data.digest[:12]}, expected {snapshot.data['title']} with digest {trained_on[:12]}",
            "give the folder of the data it was trained on, or pack the same files again",
        )
    for name, tensor in snapshot.generator.state_dict().items():
        if not torch.isfinite(tensor).all():
            text = f"{snapshot.path}: weights of the generator are NaN or infinite (the first: {name})"
            raise GantoolError(text, "score an earlier snapshot")
