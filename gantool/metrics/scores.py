"""What is computed from statistics, and the record of it: values, the whole protocol, and what it was computed from.

Two values may be compared when their protocol strings are equal. No torch: tables and reports read records too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from gantool import files
from gantool.config.schema import digest_of
from gantool.metrics.moments import Statistics, frechet_distance, inception_score

SPLITS = 10
SHUFFLE_SEED = 2020


class Facts(NamedTuple):
    """What the protocol strings are made of."""

    features: str  # Extractor.protocol
    logits: str  # Extractor.logits_protocol
    num: int  # images that are scored
    num_reference: int
    reference: str  # title:split:digest


class Metric(NamedTuple):
    """Values from the statistics of (scored images, reference images), and the protocol that goes with them."""

    values: Callable[[Statistics, Statistics], dict[str, float]]
    protocol: Callable[[Facts], str]


def _fid(scored: Statistics, reference: Statistics) -> dict[str, float]:
    return {"fid": frechet_distance(scored.moments, reference.moments)}


def _inception_score(scored: Statistics, _: Statistics) -> dict[str, float]:
    mean, deviation = inception_score(scored.logits, SPLITS, SHUFFLE_SEED)
    return {"is": mean, "is_std": deviation}


METRICS: dict[str, Metric] = {
    "fid": Metric(_fid, lambda f: f"fid|{f.features}|n={f.num}/{f.num_reference}|ref={f.reference}|ddof1|fp32"),
    "is": Metric(
        _inception_score,
        lambda f: f"is|{f.logits}|n={f.num}|splits={min(SPLITS, f.num)}|shuffle={SHUFFLE_SEED}|fp32",
    ),
}


class Score(BaseModel):
    """The scores of one snapshot by one protocol."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: Literal[1] = 1
    snapshot: str
    """File of the snapshot."""
    snapshot_digest: str
    """SHA-256 of its tensors."""
    step: int
    ema: bool
    """Whether the averaged generator was scored."""
    seed: int
    """Seed of the images."""
    num: int
    """Number of generated images."""
    data_title: str
    data_digest: str
    extractor: str
    extractor_digest: str
    """SHA-256 of the extractor's weights."""
    values: dict[str, float]
    """fid, is, is_std; for class-conditional runs also accuracy_real and accuracy_fake, the means over the classes."""
    protocol: dict[str, str]
    """For each metric, all that its value depends on but the images."""
    real: dict[str, float] | None
    """The same values for real images that were not trained on: the yardstick; None without a test split."""
    real_protocol: dict[str, str] | None
    per_class: dict[str, dict[str, float]] = {}
    """For each class of a class-conditional run: accuracy_real and accuracy_fake, the share of real and of generated
    images that the discriminator takes for what they are."""
    accuracy_protocol: str | None = None
    """On which images they were measured."""
    warnings: tuple[str, ...]
    versions: dict[str, str]
    device: str
    seconds: float
    """Wall clock of the evaluation, with everything it had to prepare."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return self.model_dump(mode="json")


def write_score(folder: Path, score: Score) -> Path:
    """Write `folder`/scores/<step>-<extractor>-<digest>.json, atomically; the same evaluation has the same name."""
    identity = [score.snapshot_digest, score.protocol, score.seed]
    path = folder / "scores" / f"{score.step:08d}-{score.extractor}-{digest_of(identity)[:8]}.json"
    files.write_json(path, score.to_json())
    return path


def score_rows(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """One flat row for each score, for tables; all rows have the same columns, None where there is no value."""
    names = list(dict.fromkeys(name for score in scores for name in score.values))
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
        row |= {f"real_{name}": (score.real or {}).get(name) for name in names if not name.startswith("accuracy")}
        protocols = [*score.protocol.values(), *([score.accuracy_protocol] if score.accuracy_protocol else [])]
        row |= {"warnings": "; ".join(score.warnings), "protocol": "; ".join(protocols)}
        rows.append(row)
    return rows


def class_rows(score: Score) -> list[dict[str, Any]]:
    """One row for each class of a class-conditional run."""
    keys = dict.fromkeys(key for values in score.per_class.values() for key in values)
    return [{"class": name, **{key: row.get(key) for key in keys}} for name, row in score.per_class.items()]
