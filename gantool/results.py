"""From the scores of finished runs to groups: mean and sample standard deviation over seeds. No torch.

Scores with different protocols (extractor, number of images, reference data) are never averaged or ranked together.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gantool import files
from gantool.config.grid import Labels, Report
from gantool.config.schema import digest_of
from gantool.errors import GantoolError
from gantool.local import last_output
from gantool.manifest import Trial
from gantool.progress import Progress, told
from gantool.submissions import Jobs, ask

SPREADS = ("_std", "_error", "_low", "_high")
"""Ends of the names of the spreads and intervals of single scores."""
NOT_WHAT_THEY_SHOULD_BE = (ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError)
"""What values of other kinds than those that gantool writes do to who reads them."""
MOST = 1e100  # larger numbers are no scores, and their squares no numbers
ENDED_BADLY = ("failed", "diverged", "lost")


@dataclass(frozen=True)
class Row:
    """One score of one run, or a run without a score (then `values` and `protocol` are empty)."""

    labels: Labels
    seed: int
    run: str
    state: str
    step: int | None = None
    values: dict[str, float] = field(default_factory=dict)
    real: dict[str, float] = field(default_factory=dict)
    data_title: str = ""
    protocol: Any = None
    warnings: tuple[str, ...] = ()
    cause: str = ""
    """Why it failed, stopped or was cancelled, what it waits for, or what it is doing; empty when done."""
    output: tuple[str, ...] = ()
    """The last lines it wrote, unless it is done or has not begun."""
    trained_by: dict[str, str] = field(default_factory=dict)
    """Version and commit of gantool, version of torch, digest of the image (none: no image), as far as known."""
    scored_by: dict[str, str] = field(default_factory=dict)
    trained_before_by: tuple[dict[str, str], ...] = ()
    """The same of its earlier starts, where they differ."""

    @property
    def protocol_digest(self) -> str:
        """Twelve digits that tell protocols apart; empty without a score."""
        return digest_of(self.protocol) if self.values else ""


@dataclass(frozen=True)
class Spread:
    """Mean of `n` numbers and their sample standard deviation (n - 1 in the denominator; None for n = 1)."""

    mean: float
    sd: float | None
    n: int

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Spread | None:
        """None for no numbers."""
        if not numbers:
            return None
        return cls(statistics.fmean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else None, len(numbers))

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % confidence interval of the mean by Student's t; None for one number."""
        if self.sd is None:
            return None
        half = t_quantile(self.n - 1) * self.sd / math.sqrt(self.n)
        return self.mean - half, self.mean + half


def t_quantile(freedom: float) -> float:
    """The 97.5 % quantile of Student's t distribution: half of a 95 % interval, in standard errors."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975))


@dataclass(frozen=True)
class Group:
    """The runs that differ by nothing but their seed, scored by one protocol."""

    labels: Labels
    spreads: dict[str, Spread]
    """Spread of each metric over the seeds."""
    num_missing: int
    """Runs without a score."""
    best: bool
    """Whether no group with the same protocol has a better mean of the report's metric."""
    differences: dict[str, Spread]
    """Of each metric from the baseline's, over the seeds that both have; empty without a baseline."""
    real: dict[str, float]
    """What real images score: the yardstick."""
    data_title: str
    protocol: Any
    protocol_digest: str
    mixed: bool
    """Whether runs with these labels were scored by other protocols too."""


def collect(trials: Sequence[Trial], progress: Progress) -> list[Row]:
    """A row for each score of each run that is done, and one for each other run."""
    jobs = ask(trials, progress)
    return [row for trial in told(trials, "scores", progress) for row in _rows_of(trial, jobs)]


def scores_of(trial: Trial) -> dict[str, float]:
    """All numbers of the scores of a run that is done."""
    return scores_in(trial.run.result())


def scores_in(result: dict[str, Any] | None) -> dict[str, float]:
    """All numbers of the scores in a result.json."""
    scores = (result or {}).get("scores")
    scores = [score for score in scores if isinstance(score, dict)] if isinstance(scores, list) else []
    found = [_numbers(score.get("values")) for score in scores]
    return {name: value for values in found for name, value in values.items()}


def _rows_of(trial: Trial, jobs: Jobs) -> list[Row]:
    try:
        return _read_rows(trial, jobs)
    except (GantoolError, OSError, *NOT_WHAT_THEY_SHOULD_BE) as error:  # one damaged run must not hide the others
        cause = error.message if isinstance(error, GantoolError) else f"cannot be read: {error}"
        return [Row(trial.labels, trial.seed, str(trial.run.path), "failed", cause=cause)]


def _read_rows(trial: Trial, jobs: Jobs) -> list[Row]:
    look = trial.look()
    state, words = jobs.state(trial.run, look.state, look.status)
    result = (look.result if state == "done" else None) or {}
    step, scores = result.get("step"), result.get("scores")
    bare = Row(trial.labels, trial.seed, str(trial.run.path), state, step)
    if state not in ("done", "planned"):
        said = words or trial.run.said_by("cancelled") or str(look.status.get("message", ""))
        bare = replace(bare, cause=said, output=last_output(trial.run))
    rows = []
    facts = files.read_json(trial.run.path / "run.json") if state != "planned" else None
    if isinstance(facts, dict):
        before = facts.get("before")
        earlier = (
            [_made_by(one.get("versions"), one.get("image")) for one in before if isinstance(one, dict)]
            if (isinstance(before, list))
            else []
        )
        trained_by = _made_by(facts.get("versions"), facts.get("image"))
        bare = replace(bare, trained_by=trained_by, trained_before_by=tuple(earlier))
    for score in scores if isinstance(scores, list) else []:
        values = _numbers(score.get("values"))
        if values:
            title, texts = str(score.get("data_title", "")), tuple(map(str, score.get("warnings") or ()))
            real, protocol = _numbers(score.get("real")), score.get("protocol")
            versions = score.get("versions")
            image = versions.get("image") if isinstance(versions, dict) else None
            found = {"values": values, "real": real, "data_title": title, "protocol": protocol, "warnings": texts}
            rows.append(replace(bare, **found, scored_by=_made_by(versions, image)))
    return rows or [bare]


def _made_by(versions: Any, image: Any) -> dict[str, str]:
    """From what a run.json or a score says; `image`: a digest, or a mapping with one."""
    if not isinstance(versions, dict):
        return {}
    digest = image.get("digest", "unknown") if isinstance(image, dict) else image
    known = {key: str(versions[key]) for key in ("gantool", "commit", "torch") if key in versions}
    return {**known, "image": digest or "none"}


def origins(rows: Sequence[Row]) -> list[str]:
    """In words, the image that made the rows, and a warning where not all were made by the same."""
    lines = []
    for key, what in (
        ("image", "images"),
        ("gantool", "versions of gantool"),
        ("commit", "commits"),
        ("torch", "versions of torch"),
    ):
        makers = (made for row in rows for made in (row.trained_by, *row.trained_before_by, row.scored_by))
        found = dict.fromkeys(made[key] for made in makers if key in made)
        if len(found) > 1:
            lines.append(f"warning: trained and scored by several {what}: {', '.join(found)}")
        elif key == "image" and found.keys() - {"none"}:
            lines.append(f"image {next(iter(found))}")
    return lines


def _numbers(values: Any) -> dict[str, float]:
    items = values.items() if isinstance(values, dict) else ()
    return {
        key: float(v) for key, v in items if isinstance(v, int | float) and not isinstance(v, bool) and -MOST < v < MOST
    }


def grouped(rows: Sequence[Row], report: Report) -> list[Group]:
    """Rows that differ by their seed alone, in one group each; sorted by the report's metric within a protocol.

    Protocols stand in the order of the rows; groups without a score come last.
    """
    buckets = _buckets(rows)
    protocols = Counter(labels for labels, _ in buckets)
    groups = []
    for (_, digest), members in buckets.items():
        scored = [row for row in members if row.values]
        first = (scored or members)[0]
        names = dict.fromkeys(name for row in scored for name in row.values)
        spreads = {name: Spread.of([row.values[name] for row in scored if name in row.values]) for name in names}
        groups.append(
            Group(
                labels=first.labels,
                spreads={name: spread for name, spread in spreads.items() if spread},
                num_missing=len(members) - len(scored),
                best=False,
                differences=_differences(members, buckets, report),
                real=first.real,
                data_title=first.data_title,
                protocol=first.protocol,
                protocol_digest=digest,
                mixed=protocols[_key(first.labels)] > 1,
            )
        )
    return _ranked(groups, report)


_Bucket = tuple[tuple[tuple[str, str], ...], str]


def _key(labels: Labels) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(labels.items()))


def _buckets(rows: Sequence[Row]) -> dict[_Bucket, list[Row]]:
    """Rows by labels and protocol; a row without a score goes to the first protocol of its labels."""
    buckets: dict[_Bucket, list[Row]] = {}
    for row in rows:
        if row.values:
            buckets.setdefault((_key(row.labels), row.protocol_digest), []).append(row)
    first = {labels: (labels, digest) for labels, digest in reversed(buckets)}
    for row in rows:
        if not row.values:
            labels = _key(row.labels)
            buckets.setdefault(first.get(labels, (labels, "")), []).append(row)
    return buckets


def _differences(members: list[Row], buckets: dict[_Bucket, list[Row]], report: Report) -> dict[str, Spread]:
    """Differences to the baseline, paired by seed: what the seeds have in common cancels out."""
    labels = members[0].labels
    baseline = {**labels, **report.against}
    if not report.against or baseline == labels:
        return {}
    others = buckets.get((_key(baseline), next((row.protocol_digest for row in members if row.values), "")), [])
    theirs = {row.seed: row.values for row in others}
    found = {}
    for name in dict.fromkeys(name for row in members for name in row.values):
        pairs = [row.values[name] - theirs[row.seed][name] for row in members
                 if name in row.values and name in theirs.get(row.seed, {})]  # fmt: skip
        if spread := Spread.of(pairs):
            found[name] = spread
    return found


def _ranked(groups: list[Group], report: Report) -> list[Group]:
    sign = -1 if report.best == "max" else 1
    protocols = list(dict.fromkeys(group.protocol_digest for group in groups if group.spreads))

    def value(group: Group) -> float:
        spread = group.spreads.get(report.metric or "")
        return sign * spread.mean if spread else math.inf

    best = {digest: min(value(g) for g in groups if g.protocol_digest == digest) for digest in protocols}
    places = {digest: place for place, digest in enumerate(protocols)}
    marked = [
        replace(group, best=math.isfinite(value(group)) and value(group) == best[group.protocol_digest])
        for group in groups
    ]
    return sorted(marked, key=lambda group: (places.get(group.protocol_digest, len(places)), value(group)))
