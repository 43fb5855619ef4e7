"""What the page tells of each run, read from its directory alone: curves, scores by step, grids, cost, identity."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gantool import files
from gantool.config.schema import digest_of
from gantool.errors import GantoolError
from gantool.manifest import Trial
from gantool.results import MOST, Row

_MOST_ROWS = 2000  # of a journal that are read
_BINS = 150  # points of a curve
_MOST_HEADER = 10**7  # bytes of a snapshot's header
CURVES = ("loss_d", "loss_g", "penalty", "accuracy_real", "accuracy_fake")


@dataclass(frozen=True)
class Curve:
    """Numbers by step, averaged within at most 150 intervals of steps."""

    steps: tuple[float, ...] = ()
    values: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """loss_d, loss_g, penalty, accuracy_real, accuracy_fake."""


@dataclass(frozen=True)
class RunFacts:
    """One run. What its files do not say is empty or None."""

    trial: Trial
    rows: tuple[Row, ...]
    """Its scores, or one row without."""
    status: dict[str, Any] = field(default_factory=dict)
    """Its last words: step, total, message."""
    config: dict[str, Any] = field(default_factory=dict)
    """Its whole config, with dotted keys."""
    curve: Curve = field(default_factory=Curve)
    images_per_second: float | None = None
    train_hours: float | None = None
    """Device hours of training: times GPUs, by the share of them; without the steps that were done twice."""
    score_hours: float = 0.0
    """Device hours of scoring."""
    num_starts: int = 0
    device: str = ""
    identity: dict[str, str] = field(default_factory=dict)
    """Versions, commit, image, data digest: what a second person needs to have the same."""
    series: dict[str, dict[str, list[tuple[int, float]]]] = field(default_factory=dict)
    """Protocol digest -> metric -> (step, value) of all scored snapshots."""
    titles: dict[str, str] = field(default_factory=dict)
    """Protocol digest -> the data of its reference."""
    per_class: dict[str, dict[str, float]] = field(default_factory=dict)
    """Class -> metric -> value, of the final score; without one, how often the discriminator was right at the newest
    snapshot."""
    grids: dict[int, Path] = field(default_factory=dict)
    """Sample grids by step."""
    has_curves: bool = False
    """Whether there is a picture of its curves."""
    nearest: Path | None = None
    """The picture of nearest neighbours of the last score that has one."""

    def accuracy_history(self) -> dict[int, dict[str, dict[str, float]]]:
        """Step -> class -> accuracy_real, accuracy_fake of the discriminator, of all snapshots that say it."""
        found = {}
        for path in sorted((self.path / "snapshots").glob("step-*.safetensors")):
            if path.stem[5:].isdecimal() and (rows := _accuracies(path)):
                found[int(path.stem[5:])] = rows
        return found

    @property
    def state(self) -> str:
        """The state of the run."""
        return self.rows[0].state

    @property
    def path(self) -> Path:
        """The run directory."""
        return self.trial.run.path


def read_run(trial: Trial, rows: Sequence[Row]) -> RunFacts:
    """Read one run; a file that is damaged counts as not there."""
    path = trial.run.path
    config = _config(trial)
    facts = _mapping(files.read_json(path / "run.json"))
    result = _mapping(files.read_json(path / "result.json"))
    journal, stride = _journal(path / "journal.jsonl")
    device = str(facts.get("device", ""))
    devices = _num_devices(facts, device)
    starts, _ = _journal(path / "starts.jsonl")
    share = _share_of_device(starts, journal)
    seconds = _number(result.get("seconds")) or stride * sum(_number(row.get("seconds")) or 0 for row in journal)
    rates = [rate for row in journal if (rate := _number(row.get("images_per_second")))]
    scores = list(_scores(path))
    final = next((score for score in reversed(_list(result.get("scores"))) if isinstance(score, dict)), {})
    nearest = sorted((path / "scores").glob("*-nearest.png"))
    return RunFacts(
        trial=trial,
        rows=tuple(rows),
        status=trial.run.status(),
        config=config,
        curve=_curve(journal),
        images_per_second=statistics.median(rates) if rates else None,
        train_hours=seconds * devices * share / 3600 if journal else None,
        score_hours=_share(starts[-1:])
        * sum((_number(score.get("seconds")) or 0) * _num_devices(score, device) for score in scores)
        / 3600,
        num_starts=len(starts),
        device=device,
        identity=_identity(facts),
        series=_series(scores),
        titles={digest_of(score.get("protocol")): str(score.get("data_title", "")) for score in scores},
        per_class=_classes(final.get("per_class")) or _newest_accuracies(path / "snapshots"),
        has_curves=(path / "curves.png").exists(),
        grids=_grids(path / str(config.get("runtime.samples_dir", "samples"))),
        nearest=nearest[-1] if nearest else None,
    )


def flattened(tree: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= flattened(value, f"{above}{key}.")
        else:
            flat[above + key] = value
    return flat


def _config(trial: Trial) -> dict[str, Any]:
    if trial.written is not None:
        return flattened(trial.written)
    try:
        return flattened(trial.config.model_dump(mode="json"))
    except GantoolError:  # damaged; its row says so
        return {}


def _journal(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Every n-th row, so that there are at most 2,000, and n."""
    lines = list(_lines(path))
    stride = max(1, math.ceil(len(lines) / _MOST_ROWS))
    rows = []
    for line in lines[::stride]:
        try:
            row = json.loads(line)
        except ValueError:  # a torn line
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows, stride


def _share_of_device(starts: list[dict[str, Any]], journal: list[dict[str, Any]]) -> float:
    """The part of its device that a run had, over the time of its training; it may change with each start."""
    times = [(row["step"], _number(row.get("seconds")) or 0.0) for row in journal]
    whole = sum(seconds for _, seconds in times)
    if not whole:
        return _share(starts[-1:])
    # A start may begin before the one ahead of it, at an older checkpoint; what it did anew has replaced the rows.
    made_by = [next((start for start in reversed(starts) if start["step"] < step), None) for step, _ in times]
    shares = [_share([start] if start else starts[:1]) for start in made_by]
    return sum(share * seconds for share, (_, seconds) in zip(shares, times, strict=True)) / whole


def _share(starts: list[dict[str, Any]]) -> float:
    return 1 / max(1, _number(starts[0].get("shared_by")) or 1) if starts else 1.0


def _num_devices(facts: dict[str, Any], device: str) -> float:
    """A GPU for each process; those on a CPU share it."""
    return 1 if device == "cpu" else _number(facts.get("num_ranks")) or 1


def _lines(path: Path) -> Iterator[bytes]:
    try:
        yield from (line for line in path.read_bytes().split(b"\n") if line)
    except OSError:
        return


def _curve(journal: list[dict[str, Any]]) -> Curve:
    kept = [row for row in journal if all(_number(row.get(key)) is not None for key in CURVES)]
    if not kept:
        return Curve()
    size = math.ceil(len(kept) / _BINS)
    bins = [kept[start : start + size] for start in range(0, len(kept), size)]

    def means(key: str) -> tuple[float, ...]:
        return tuple(sum(row[key] for row in rows) / len(rows) for rows in bins)

    return Curve(means("step"), {key: means(key) for key in CURVES})


def _scores(path: Path) -> Iterator[dict[str, Any]]:
    for file in sorted((path / "scores").glob("*.json")):
        score = files.read_json(file)
        if isinstance(score, dict):
            yield score


def _series(scores: list[dict[str, Any]]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    found: dict[str, dict[str, dict[int, float]]] = {}
    for score in scores:
        step, values = score.get("step"), _mapping(score.get("values"))
        if isinstance(step, int) and score.get("seed") == 0:
            series = found.setdefault(digest_of(score.get("protocol")), {})
            for name, value in values.items():
                if _number(value) is not None:
                    series.setdefault(name, {})[step] = float(value)
    return {
        digest: {name: sorted(points.items()) for name, points in series.items()} for digest, series in found.items()
    }


def _identity(facts: dict[str, Any]) -> dict[str, str]:
    image, data = facts.get("image"), _mapping(facts.get("data"))
    found = {key: str(value) for key, value in _mapping(facts.get("versions")).items()}
    if isinstance(image, dict):
        found["image"] = str(image.get("digest", "unknown"))
    if "digest" in data:
        found["data"] = f"{data.get('title', '')} {data['digest']}"
    if "device" in facts:
        found["device"] = str(facts["device"])
    if "num_ranks" in facts and "threads" in facts:
        found["processes"] = f"{facts['num_ranks']} x {facts['threads']}"
    return found


def _classes(value: Any) -> dict[str, dict[str, float]]:
    return {
        str(name): {key: float(number) for key, number in row.items() if _number(number) is not None}
        for name, row in _mapping(value).items()
        if isinstance(row, dict)
    }


def _newest_accuracies(folder: Path) -> dict[str, dict[str, float]]:
    newest = max(folder.glob("step-*.safetensors"), default=None)
    return _accuracies(newest) if newest else {}


def _accuracies(snapshot: Path) -> dict[str, dict[str, float]]:
    """What `gantool.class_accuracy` measured, from the header of a snapshot: JSON after its length in 8 bytes (the
    format of safetensors), so that nothing is needed that a login node has not."""
    try:
        with snapshot.open("rb") as file:
            header = json.loads(file.read(min(int.from_bytes(file.read(8), "little"), _MOST_HEADER)))
        facts = json.loads(header["__metadata__"]["gantool"])
        rows = {key: facts["accuracy"][key] for key in ("accuracy_real", "accuracy_fake")}
        classes = {
            name: {key: values[number] for key, values in rows.items()}
            for number, name in enumerate(facts["data"]["classes"])
        }
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return {}
    return {name: row for name, row in _classes(classes).items() if row}


def _grids(folder: Path) -> dict[int, Path]:
    return {int(path.stem[5:]): path for path in sorted(folder.glob("step-*.png")) if path.stem[5:].isdecimal()}


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _number(value: Any) -> float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and -MOST < value < MOST
    return float(value) if good else None
