"""From what `gantool eval` is given to scores: which snapshots or images, against what, by which settings."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from gantool import container
from gantool.config.evaluation import EXTRACTOR_PATTERN, EvalConfig, MetricName, ProtocolName
from gantool.config.loader import load_run_config
from gantool.errors import GantoolError, UsageError, choose
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


def snapshots_of(paths: list[Path]) -> tuple[list[Path], list[str]]:
    """The snapshot files that paths mean: a file itself; of a run its best (if scored) and its last; a quoted glob all
    that it matches. Second, what a glob matches that has none, in words. UsageError when a path means none."""
    found: list[Path] = []
    without: list[str] = []
    for path in paths:
        matches = [path]
        is_glob = not path.exists() and glob.has_magic(str(path))
        if is_glob:
            matches = sorted(Path(name) for name in glob.glob(str(path)))  # noqa: PTH207 (absolute patterns)
            if not matches:
                raise UsageError(f"{path}: nothing matches", "give run directories or snapshot files")
        for match in (match.absolute() for match in matches):
            best = best_score(match) if match.is_dir() else None
            if best is not None:
                found.append(match / "snapshots" / Path(best.snapshot).name)
            try:
                found.append(find_snapshot(match))
            except UsageError as error:
                if not is_glob:
                    raise
                without.append(f"passed over: {error.message}")
    return [_short(path) for path in dict.fromkeys(found)], without


def _short(path: Path) -> Path:
    """Relative to the working directory where that is shorter; with its folders, which say whose snapshot it is."""
    try:
        relative = path.relative_to(Path.cwd())
    except ValueError:
        return path
    return relative if len(relative.parts) > 2 else path


def score_snapshots(
    paths: list[Path], asked: Asked, device: torch.device, ranks: Ranks, progress: Progress
) -> tuple[list[Score], bool]:
    """Score snapshots one after the other; scores of runs are kept below them. No scores on ranks > 0. Second: whether
    all could be scored; one that cannot does not keep the others from it, unless it is the only one."""
    from gantool import evaluate as evaluation
    from gantool.metrics.collection import Work
    from gantool.sample import load_snapshot

    scores: list[Score] = []

    def score(path: Path) -> None:
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
            return
        if of_run:
            try:
                kept = evaluation.keep(run, found)
                if found.nearest is not None:
                    progress.say(f"nearest neighbours: {kept.with_name(kept.stem + '-nearest.png')}")
            except GantoolError as error:  # someone else's run: the score is printed all the same
                progress.say(f"not kept: {error.message}")
        scores.append(found.score)

    return scores, _each(paths, score, progress)


def score_images(
    images: list[Path],
    against: Path,
    asked: Asked,
    device: torch.device,
    ranks: Ranks,
    progress: Progress,
    out: Path | None = None,
) -> tuple[list[Score], bool]:
    """Score folders, zips or npz files of images against `against`: another of these, a run, or a config with its
    packed data. What comes out is as in `score_snapshots`; pictures go beside `out`, the file of the table."""
    from gantool import evaluate as evaluation
    from gantool.data.image_sets import open_images
    from gantool.metrics.collection import Work
    from gantool.sample import save_grid

    reference, base = _reference(against, asked, progress)
    settings = changed(base, asked.changes)
    scores: list[Score] = []

    def score(path: Path) -> None:
        work = Work(progress, ranks, reference.folder / "metrics" / "parts")
        opened = open_images(path, progress)
        found = evaluation.evaluate_images(
            opened, reference, settings, device, work, asked.weights, asked.allow_unknown_weights
        )
        if found is not None:
            scores.append(found.score)
            if found.nearest is not None:
                if out is None:
                    progress.say("with --out FILE the picture of nearest neighbours is written beside it")
                else:
                    name = f"{out.stem}-{opened.title.replace('/', '-')}-nearest.png"
                    save_grid(out.with_name(name), found.nearest)
                    progress.say(f"nearest neighbours: {out.with_name(name)}")

    return scores, _each(images, score, progress)


def _each(paths: list[Path], score: Callable[[Path], None], progress: Progress) -> bool:
    """Score all paths; what is wrong with one of several is said. Whether nothing was."""
    complete = True
    for path in paths:
        try:
            score(path)
        except GantoolError as error:
            if len(paths) == 1:
                raise
            progress.say(f"not scored: {path}: {error.message}")
            complete = False
    return complete


def _reference(against: Path, asked: Asked, progress: Progress) -> tuple[Reference, EvalConfig]:
    """The reference that a path means, and the settings that go with it."""
    from gantool.data.image_sets import open_images, packed_at, packed_set
    from gantool.data.pack import check_digest, open_packed
    from gantool.metrics.reference import Reference

    if not against.exists():
        hint = container.if_absent(against, "give a config, a run directory, or a folder or file of images")
        raise UsageError(f"--reference: {against}: there is no such file or folder", hint)
    config = None
    if against.suffix.lower() in (".yaml", ".yml"):
        config = load_run_config(against, [])
    elif (against / "config.yaml").is_file():
        config = load_run_config(against / "config.yaml", [])
    if config is not None:
        folder = asked.data_dir or Path(config.runtime.data_dir)
        data = open_packed(config.data, folder)
        check_digest(data, progress)
        return Reference(packed_set(data, "train", None), data, folder), config.eval or EvalConfig()
    packed = packed_at(against)
    if packed is not None:
        check_digest(packed, progress)
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
        choose("--protocol", protocol, get_args(ProtocolName))
    if precision is not None:
        choose("--precision", precision, ("float32", "bfloat16"))
    chosen = tuple(name.strip() for name in metrics.split(",")) if metrics is not None else None
    for name in chosen or ():
        choose("--metrics", name, get_args(MetricName))
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
