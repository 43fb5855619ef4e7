"""The verb `eval`: images, of a snapshot or of other origin, to features to scores, against real images.

Nothing touches the disk but the statistics of the real images, which are kept beside the data, and what an interrupted
evaluation has found. Every score comes with the same scores of real test images: what a generator that reproduces the
data would get.
"""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

import gantool
from gantool.config.evaluation import EvalConfig, eval_problems
from gantool.config.schema import DataConfig
from gantool.data.image_sets import ImageSet, packed_set
from gantool.data.pack import PackedDataset, check_digest, ensure_packed
from gantool.errors import GantoolError, UsageError
from gantool.metrics import classification, intervals, table
from gantool.metrics.classifier import check_classes, open_classifier
from gantool.metrics.collection import Work, collect
from gantool.metrics.extractors import Setting, open_extractor
from gantool.metrics.features import Extractor
from gantool.metrics.moments import inception_score
from gantool.metrics.reference import RealStatistics, Reference, gather, source
from gantool.metrics.scores import Score, class_rows, score_rows, write_score
from gantool.metrics.statistics import Need, Statistics, distance
from gantool.nearest import picture_of_nearest
from gantool.progress import Progress
from gantool.sample import Snapshot, generated_set, save_grid

__all__ = ["Score", "class_rows", "evaluate", "evaluate_images", "keep", "score_rows"]

_ENOUGH = 10_000  # images; below, the bias of FID is larger than most differences


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
) -> Evaluation | None:
    """Score images 0..num-1 of the sample `seed` of a snapshot, on the device of its generator; None on ranks > 0.

    weights: of the extractor (see `metrics.inception.find_weights`), instead of those of the settings. UsageError when
    the packed data are not those of the snapshot, or the extractor cannot be had; GantoolError when the generator's
    numbers are not finite; InterruptedRun when `work.stop()` says so.
    """
    began = time.monotonic()
    data = ensure_packed(snapshot.config.data, data_dir, work.progress)
    check_digest(data)
    _check(snapshot, data)
    _refuse(settings, snapshot.num_classes > 0)
    device = next(snapshot.generator.parameters()).device
    reference = Reference(packed_set(data, "train", None), data, data_dir)
    extractor = _open(settings, reference, device, work, weights, allow_unknown_weights)
    subject = _Subject(
        generated_set(snapshot, settings.num, seed), str(snapshot.path), snapshot.step, snapshot.ema, seed,
        snapshot.digest, _discriminator_accuracy(snapshot), _accuracy_protocol(snapshot),
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
    settings = settings.model_copy(update={"num": images.num})
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
    if settings.every:
        _stage(data, settings, data_dir, device, work)
    elif settings.extractor == "classifier":
        check_classes(data)
    else:
        _open(settings, Reference(packed_set(data, "train", None), data, data_dir), device, work, None, False)
    if "overfit" in settings.metrics and "test" not in data.splits:
        text = f"{data.title}: there are no test images, which the metric overfit compares with"
        raise UsageError(text, "leave overfit out of eval.metrics, or pack the data with a test folder")


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
    return open_extractor(settings.extractor, setting)


def _score(
    subject: _Subject, reference: Reference, extractor: Extractor, settings: EvalConfig, work: Work, began: float
) -> Evaluation | None:
    images = subject.images
    if settings.per_class and tuple(images.classes) != tuple(reference.images.classes):
        text = f"the classes of {images.title} are not those of {reference.images.title}"
        raise UsageError(text, "give both the same class folders, or leave --per-class out")
    real = gather(reference, extractor, settings, images.num, work)
    need = table.need_of(settings.metrics) | Need(features=settings.per_class or settings.ci)
    need |= Need(features=images.num <= extractor.feature_dim)  # few rows allow the exact distance
    scored = collect(images, extractor, need, work, "features of the generated images")
    recognised = None
    if "classification" in settings.metrics:
        recognised = _recognise(images, reference, extractor, scored, work)
    if not work.is_main:
        return None
    values, protocol = _values(scored, real.train, extractor, settings, source(reference))
    yardstick = _values(real.test, real.train, extractor, settings, source(reference)) if real.test else None
    per_class = {name: dict(row) for name, row in subject.per_class.items()}
    _add_special(values, protocol, per_class, scored, real, reference, extractor, settings, work.progress)
    if recognised is not None:
        _classify(values, protocol, per_class, recognised, subject, reference, extractor, work)
    for key in ("accuracy_real", "accuracy_fake"):
        found = [row[key] for row in per_class.values() if key in row]
        if found:
            values[key] = round(sum(found) / len(found), 6)
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
        warnings=tuple(_warnings(images, scored, real, reference, extractor, settings)),
        versions=_versions(),
        device=extractor.device.type,
        num_ranks=work.ranks.num_ranks,
        seconds=round(time.monotonic() - began, 3),
    )
    shown = None
    if "overfit" in settings.metrics:
        assert scored.features is not None and real.train.features is not None
        shown = picture_of_nearest(images, scored.features, real.rows_of, real.train.features, extractor.device)
    return Evaluation(score, shown)


def _values(
    scored: Statistics, real: Statistics, extractor: Extractor, settings: EvalConfig, source: str
) -> tuple[dict[str, float], dict[str, str]]:
    """(values, protocols) of the metrics that are functions of two statistics."""
    facts = _facts(scored, real, extractor, source)
    values: dict[str, float] = {}
    protocol: dict[str, str] = {}
    for name in settings.metrics:
        if name in table.METRICS:
            values |= table.METRICS[name].values(scored, real, extractor.device)
            protocol[name] = table.METRICS[name].protocol(facts)
    return values, protocol


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
        values |= table.overfit(scored, real.train, real.test, extractor.device)
        protocol["overfit"] = table.overfit_protocol(facts, min(scored.count, facts.num_rows, real.test.count))
    if settings.ci and "fid" in settings.metrics:
        assert scored.features is not None
        sides = scored.features, real.train.moments, scored.ddof, real.train.rows()
        values["fid_debiased"] = intervals.debiased_fid(*sides, values["fid"])
        found = intervals.fid_interval(*sides, values["fid"], progress=progress)
        values |= {"fid_low": found.low, "fid_high": found.high}
        protocol["ci"] = "ci|half-samples|jackknife=20|95%"
    if settings.per_class:
        names = [str(name) for name in reference.images.classes]
        for label, whole in real.classes.items():
            part = table.class_moments(scored, label)
            row = per_class.setdefault(names[label], {})
            if part.count >= 2 and whole.count >= 2:
                row["fid"] = distance(part, whole)
            if part.logits is not None and part.count and "is" in settings.metrics:
                row["is"] = inception_score(part.logits, 1, None)[0]
        protocol["per_class"] = f"per-class|{extractor.protocol}|fid and is of each class|splits=1|ddof{scored.ddof}"


def _classify(
    values: dict[str, float],
    protocol: dict[str, str],
    per_class: dict[str, dict[str, float]],
    recognised: Statistics,
    subject: _Subject,
    reference: Reference,
    extractor: Extractor,
    work: Work,
) -> None:
    """Do classes look like themselves? A classifier of real images on the scored ones, and the other way round."""
    assert recognised.logits is not None and subject.images.labels is not None and reference.data is not None
    names = [str(name) for name in reference.data.classes]
    found = classification.classifier_accuracy(recognised.logits, subject.images.labels, len(names))
    values["accuracy_classifier"], by_class = found
    split = "test" if "test" in reference.data.splits else "train"
    test = packed_set(reference.data, split, 10_000)
    cas = classification.classification_accuracy_score(subject.images, test, extractor.device, 0, work.progress)
    values["cas"] = cas.accuracy
    for label, name in enumerate(names):
        row = per_class.setdefault(name, {})
        for key, value in (("accuracy_classifier", by_class[label]), ("cas", cas.per_class[label])):
            if value is not None:
                row[key] = value
    protocol["classification"] = f"{recognised.protocol}|n={recognised.count}; {cas.protocol}"


def _recognise(
    images: ImageSet, reference: Reference, extractor: Extractor, scored: Statistics, work: Work
) -> Statistics:
    if reference.data is None or tuple(images.classes) != tuple(map(str, reference.data.classes)):
        text = f"classification needs images with the classes of the reference; {images.title} has others"
        raise UsageError(text, "leave classification out, or score against the dataset they imitate")
    if extractor.name == "classifier" and scored.logits is not None:
        return scored
    classifier = open_classifier(reference.data, reference.folder, extractor.device, work.progress)
    return collect(images, classifier, Need(logits=True), work, "what the classifier sees")


def _warnings(
    images: ImageSet,
    scored: Statistics,
    real: RealStatistics,
    reference: Reference,
    extractor: Extractor,
    settings: EvalConfig,
) -> list[str]:
    warnings = [*extractor.notes, *images.notes]
    if scored.moments.constant():
        warnings.append(f"all {images.num} images are the same to the extractor: the generator has collapsed")
    if "fid" in settings.metrics and images.num < _ENOUGH:
        text = f"FID of {images.num} images is biased upwards: compare it with FIDs of {images.num} images only"
        if images.num <= extractor.feature_dim:
            text += (
                f"; more than {extractor.feature_dim} are needed for the covariance of {extractor.feature_dim} features"
            )
        warnings.append(text)
    if "kid" in settings.metrics and min(images.num, real.rows_of.num) < table.SUBSET_SIZE:
        size = min(images.num, real.rows_of.num)
        warnings.append(f"KID from subsets of {size} images, {table.SUBSET_SIZE} is usual")
    if images.labels is not None and reference.data is not None and _unbalanced(reference.data):
        warnings.append("the training images are not evenly spread over the classes, the generated ones are")
    return warnings


def _facts(scored: Statistics, real: Statistics, extractor: Extractor, source: str) -> table.Facts:
    num_rows = 0 if real.features is None else len(real.features)
    protocols = extractor.protocol, extractor.logits_protocol, extractor.spatial_protocol
    return table.Facts(*protocols, scored.count, real.count, num_rows, source, extractor.ddof)


def _versions() -> dict[str, str]:
    return {
        "gantool": gantool.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def _unbalanced(data: PackedDataset) -> bool:
    labels = data.split("train")[1]
    counts = np.bincount(labels[labels >= 0], minlength=len(data.classes))
    return bool(len(counts) and counts.max() > 1.1 * counts.min())


def _discriminator_accuracy(snapshot: Snapshot) -> dict[str, dict[str, float]]:
    """The accuracies that training measured for the snapshot, by class; {} for unconditional networks."""
    facts = snapshot.accuracy or {}
    rows: dict[str, dict[str, float]] = {}
    for number, name in enumerate(snapshot.data["classes"] if facts else ()):
        found = {key: facts[key][number] for key in ("accuracy_real", "accuracy_fake")}
        rows[str(name)] = {key: float(value) for key, value in found.items() if value is not None}
    return rows


def _accuracy_protocol(snapshot: Snapshot) -> str | None:
    facts = snapshot.accuracy
    return f"accuracy|discriminator|eval|n={facts['num']}/class|real={facts['split']}" if facts else None


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
