"""From what `gantool eval` is given to scores: which snapshots or images, against what, by which settings."""

from __future__ import annotations

import glob
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from gantool.config.evaluation import EXTRACTOR_PATTERN, EvalConfig, MetricName, ProtocolName
from gantool.config.loader import load_run_config
from gantool.errors import GantoolError, UsageError
from gantool.metrics.scores import Score, best_score
from gantool.progress import Progress
from gantool.runs import find_snapshot

if TYPE_CHECKING:
    import torch

    from gantool.metrics.collection import Ranks
    from gantool.metrics.reference import Reference


@dataclass(frozen=True)
class Asked:
    """What the command line says beside the images."""

    changes: dict[str, Any]  # of the `eval` section
    seed: int = 0
    weights: Path | None = None
    allow_unknown_weights: bool = False
    data_dir: Path | None = None


def snapshots_of(paths: list[Path]) -> list[Path]:
    """The snapshot files that paths mean: a file itself; of a run its best (if scored) and its last; a quoted glob all
    that it matches. UsageError when a path means none."""
    found: list[Path] = []
    for path in paths:
        matches = [path]
        if not path.exists() and glob.has_magic(str(path)):
            matches = sorted(Path(name) for name in glob.glob(str(path)))  # noqa: PTH207 (absolute patterns)
            if not matches:
                raise UsageError(f"{path}: nothing matches", "give run directories or snapshot files")
        for match in matches:
            best = best_score(match) if match.is_dir() else None
            if best is not None:
                found.append(match / "snapshots" / Path(best.snapshot).name)
            found.append(find_snapshot(match))
    return list(dict.fromkeys(found))


def score_snapshots(
    paths: list[Path], asked: Asked, device: torch.device, ranks: Ranks, progress: Progress
) -> list[Score]:
    """Score snapshots one after the other; scores of runs are kept below them. Empty on ranks > 0."""
    from gantool import evaluate as evaluation
    from gantool.metrics.collection import Work
    from gantool.sample import load_snapshot

    scores = []
    for path in paths:
        snapshot = load_snapshot(path, device)
        settings = changed(snapshot.config.eval or EvalConfig(), asked.changes)
        folder = asked.data_dir or Path(snapshot.config.runtime.data_dir)
        run = path.parent.parent
        of_run = path.parent.name == "snapshots" and (run / "config.yaml").is_file()
        work = Work(progress, ranks, run / "parts" if of_run else None)
        found = evaluation.evaluate(
            snapshot, settings, folder, asked.seed, work, asked.weights, asked.allow_unknown_weights
        )
        if found is None:
            continue
        if of_run:
            try:
                evaluation.keep(run, found)
            except GantoolError as error:  # someone else's run: the score is printed all the same
                progress.say(f"not kept: {error.message}")
        scores.append(found.score)
    return scores


def score_images(
    images: list[Path], against: Path, asked: Asked, device: torch.device, ranks: Ranks, progress: Progress
) -> list[Score]:
    """Score folders, zips or npz files of images against `against`: another of these, a run, or a config with its
    packed data. Empty on ranks > 0."""
    from gantool import evaluate as evaluation
    from gantool.data.image_sets import open_images
    from gantool.metrics.collection import Work

    reference, base = _reference(against, asked, progress)
    settings = changed(base, asked.changes)
    scores = []
    for path in images:
        work = Work(progress, ranks, reference.folder / "metrics" / "parts")
        opened = open_images(path, progress)
        found = evaluation.evaluate_images(
            opened, reference, settings, device, work, asked.weights, asked.allow_unknown_weights
        )
        if found is not None:
            scores.append(found.score)
            if found.nearest is not None:
                progress.say("the picture of nearest neighbours is written for runs only")
    return scores


def _reference(against: Path, asked: Asked, progress: Progress) -> tuple[Reference, EvalConfig]:
    """The reference that a path means, and the settings that go with it."""
    from gantool.data.image_sets import open_images, packed_at, packed_set
    from gantool.data.pack import check_digest, open_packed
    from gantool.metrics.reference import Reference

    config = None
    if against.suffix.lower() in (".yaml", ".yml"):
        config = load_run_config(against, [])
    elif (against / "config.yaml").is_file():
        config = load_run_config(against / "config.yaml", [])
    if config is not None:
        folder = asked.data_dir or Path(config.runtime.data_dir)
        data = open_packed(config.data, folder)
        check_digest(data)
        return Reference(packed_set(data, "train", None), data, folder), config.eval or EvalConfig()
    packed = packed_at(against)
    if packed is not None:
        check_digest(packed)
        return Reference(packed_set(packed, "train", None), packed, asked.data_dir or against.parent), EvalConfig()
    if asked.changes.get("extractor", "classifier") == "classifier":
        text = f"{against}: these images are no packed dataset, on which the extractor 'classifier' could be trained"
        hint = "add --extractor inception (or efficientnet-lite0), or give the config of the data as --reference"
        raise UsageError(text, hint)
    return Reference(open_images(against, progress), None, asked.data_dir or Path("data")), EvalConfig()


def changed(base: EvalConfig, changes: dict[str, Any]) -> EvalConfig:
    """`base` with what the command line says."""
    values = base.model_dump() | changes
    if "extractor" in changes and changes["extractor"] != base.extractor:
        values["protocol"] = changes.get("protocol", "tf1")
        values["weights"] = None
    return EvalConfig.model_validate(values)


def changes_of(
    extractor: str | None,
    protocol: str | None,
    precision: str | None,
    num: int | None,
    metrics: str | None,
    per_class: bool | None,
    ci: bool | None,
) -> dict[str, Any]:
    """What the options change of an `eval` section."""
    if extractor is not None and not re.match(EXTRACTOR_PATTERN, extractor):
        names = "classifier, inception, efficientnet-lite0, torchvision:NAME"
        raise UsageError(f"--extractor: found {extractor!r}, expected one of {names}")
    if protocol is not None:
        _choose("--protocol", protocol, get_args(ProtocolName))
    if precision is not None:
        _choose("--precision", precision, ("float32", "bfloat16"))
    chosen = tuple(name.strip() for name in metrics.split(",")) if metrics is not None else None
    for name in chosen or ():
        _choose("--metrics", name, get_args(MetricName))
    values = {
        "extractor": extractor,
        "protocol": protocol,
        "precision": precision,
        "num": num,
        "metrics": chosen,
        "per_class": per_class,
        "ci": ci,
    }
    return {key: value for key, value in values.items() if value is not None}


def _choose(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f"{option}: found {value!r}, expected one of {', '.join(choices)}")
