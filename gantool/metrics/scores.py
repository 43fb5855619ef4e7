"""The record of a score: values, the whole protocol, and what it was computed from.

Two values may be compared when their protocol strings are equal. No torch: tables and reports read records too.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from gantool import files
from gantool.config.schema import digest_of

_DISTANCES = ("fid", "kid", "sfid")


class Score(BaseModel):
    """The scores of one snapshot by one protocol."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: Literal[2] = 2
    snapshot: str
    """File of the snapshot, or of the images."""
    snapshot_digest: str
    """SHA-256 of its tensors, or of the images."""
    step: int | None
    """Step of the snapshot; None for images of other origin, as in the next two."""
    ema: bool | None
    """Whether the averaged generator was scored; its batch normalisation uses running moments (eval mode) always."""
    seed: int | None
    """Seed of the images."""
    num: int
    """Number of scored images."""
    data_title: str
    """The real images that are the reference."""
    data_digest: str
    extractor: str
    extractor_digest: str
    """SHA-256 of the extractor's weights."""
    values: dict[str, float]
    """By name, e.g. fid, is, is_std; for class-conditional runs also accuracy_real and accuracy_fake, the means over
    the classes."""
    protocol: dict[str, str]
    """For each metric, all that its value depends on but the images."""
    real: dict[str, float] | None
    """The same values for real images that were not trained on: the yardstick; None without a test split."""
    real_protocol: dict[str, str] | None
    per_class: dict[str, dict[str, float]] = {}
    """For each class: fid and is where they were asked for; accuracy_classifier (share of its generated images that a
    fixed classifier recognises) and cas; accuracy_real and accuracy_fake, the share of real and of generated images
    that the discriminator takes for what they are."""
    accuracy_protocol: str | None = None
    """On which images the discriminator's accuracies were measured."""
    warnings: tuple[str, ...]
    versions: dict[str, str]
    device: str
    num_ranks: int = 1
    seconds: float
    """Wall clock of the evaluation, with everything it had to prepare."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return self.model_dump(mode="json")


def write_score(folder: Path, score: Score) -> Path:
    """Write `folder`/scores/<step>-<extractor>-<digest>.json, atomically; the same evaluation has the same name."""
    identity = [score.snapshot_digest, score.protocol, score.seed]
    name = f"{score.step or 0:08d}-{score.extractor.replace(':', '-')}-{digest_of(identity)[:8]}.json"
    path = folder / "scores" / name
    files.write_json(path, score.to_json())
    return path


def read_scores(folder: Path) -> list[Score]:
    """The scores of a run directory, by step; files of other formats are passed over."""
    found = []
    for path in sorted((folder / "scores").glob("*.json")):
        with contextlib.suppress(OSError, ValueError):
            found.append(Score.model_validate_json(path.read_bytes()))
    return found


def has_score(folder: Path, digest: str, metrics: Sequence[str], num: int) -> bool:
    """Whether the snapshot of a run directory with this digest has been scored by these metrics on so many images."""
    for score in read_scores(folder):
        if score.snapshot_digest == digest and score.num == num and set(metrics) <= set(score.protocol):
            return True
    return False


def best_score(folder: Path) -> Score | None:
    """The best score of a run directory among those by the protocol of the newest one, whose snapshots are still there.

    By the first of its metrics: the lowest distance (fid, kid, sfid), the highest of all others.
    """
    there = {path.name for path in (folder / "snapshots").glob("step-*.safetensors")}
    scores = [score for score in read_scores(folder) if score.protocol and Path(score.snapshot).name in there]
    if not scores:
        return None
    protocol = max(scores, key=lambda score: score.step or 0).protocol
    rivals = [score for score in scores if score.protocol == protocol and score.values]
    name = next(iter(rivals[0].values))
    sign = 1.0 if name.startswith(_DISTANCES) else -1.0
    return min(rivals, key=lambda score: (sign * score.values.get(name, sign * math.inf), -(score.step or 0)))


def words_of(values: Mapping[str, float], real: Mapping[str, float] | None = None) -> str:
    """Values as words, beside those of real images where they are given; without spreads and errors."""
    shown = {name: value for name, value in values.items() if not name.endswith(("_std", "_error"))}
    beside = {name: f" (real images {real[name]:.4g})" for name in shown if real and name in real}
    return ", ".join(f"{name} {value:.4g}{beside.get(name, '')}" for name, value in shown.items())


def score_rows(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """One flat row for each score, for tables; all rows have the same columns, None where there is no value."""
    names = list(dict.fromkeys(name for score in scores for name in score.values))
    known = [name for name in names if any(name in (score.real or {}) for score in scores)]
    rows = []
    for score in scores:
        row: dict[str, Any] = {
            "snapshot": score.snapshot,
            "step": score.step,
            "data": score.data_title,
            "extractor": score.extractor,
            "num": score.num,
            "seed": score.seed,
        }
        row |= {name: score.values.get(name) for name in names}
        row |= {f"real_{name}": (score.real or {}).get(name) for name in known}
        protocols = [*score.protocol.values(), *([score.accuracy_protocol] if score.accuracy_protocol else [])]
        row |= {"warnings": "; ".join(score.warnings), "protocol": "; ".join(protocols)}
        rows.append(row)
    return rows


def class_rows(score: Score) -> list[dict[str, Any]]:
    """One row for each class of a class-conditional run."""
    keys = dict.fromkeys(key for values in score.per_class.values() for key in values)
    return [{"class": name, **{key: row.get(key) for key in keys}} for name, row in score.per_class.items()]
