"""The record of a score: values, the whole protocol, and what it was computed from.

Two values may be compared when their protocol strings are equal. No torch: tables and reports read records too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from gantool import files
from gantool.config.evaluation import HIGHER_IS_BETTER, VALUES
from gantool.config.schema import digest_of

_ORDER = ("fid", "kid", "sfid", "is", "precision_recall", "density_coverage", "overfit", "classification")
BEST = {metric: (VALUES[metric][0], -1 if VALUES[metric][0] in HIGHER_IS_BETTER else 1) for metric in _ORDER}
"""Metric, those that decide before others first: its value that counts, and whether less (1) or more (-1) is better."""


def direction(value: str) -> int:
    """Whether more (1) or less (-1) of a value is better, or neither (0), as of the discriminator's accuracies.

    More authpct is better in that copies are fewer; noise has the most.
    """
    ranked = value == "fid_debiased" or any(value in values for values in VALUES.values())
    return 1 if value in HIGHER_IS_BETTER else -1 if ranked else 0


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
    """Whether the averaged generator was scored."""
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
    settings: dict[str, Any]
    """The `eval` section, as far as it decides which numbers come out."""
    batch_norm: Literal["running moments"] = "running moments"
    """What the generator normalises by: the averages of the training, never the images of a batch."""
    versions: dict[str, str]
    device: str
    num_ranks: int = 1
    seconds: float
    """Wall clock of the evaluation, with everything it had to prepare."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return self.model_dump(mode="json")


def write_score(folder: Path, score: Score) -> Path:
    """Write `<folder>/scores/<step>-<extractor>-<digest>.json`, atomically; the same evaluation has the same name."""
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


def fits(score: Score, settings: Mapping[str, Any]) -> bool:
    """Whether a score is by these settings, with seed 0, as those of a training are."""
    return score.settings == settings and score.seed == 0


def kept_score(folder: Path, digest: str, settings: Mapping[str, Any]) -> Score | None:
    """The score of the snapshot of a run directory with this digest that fits the settings, if there is one."""
    found = read_scores(folder)
    return next((score for score in found if score.snapshot_digest == digest and fits(score, settings)), None)


def best_score(folder: Path) -> Score | None:
    """The best score of a run directory, of the snapshots that are still there; None when there is none.

    By fid if there is one, else by the first metric of `BEST`. Of several protocols and seeds that one counts by which
    most snapshots were scored, and then the one that was used last.
    """
    there = {path.name for path in (folder / "snapshots").glob("step-*.safetensors")}
    scores = [score for score in read_scores(folder) if Path(score.snapshot).name in there]
    for metric, (name, sign) in BEST.items():
        groups: dict[tuple[str, int | None], list[Score]] = {}
        for score in scores:
            if metric in score.protocol and name in score.values:
                groups.setdefault((score.protocol[metric], score.seed), []).append(score)
        if groups:
            rivals = max(groups.values(), key=lambda group: (len({s.step for s in group}), group[-1].step or 0))
            return min(rivals, key=lambda score: (sign * score.values[name], -(score.step or 0)))
    return None


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
    rows = [{"class": name, **{key: row.get(key) for key in keys}} for name, row in score.per_class.items()]
    return [row | ({"num": int(num)} if isinstance(num := row.get("num"), float) else {}) for row in rows]
