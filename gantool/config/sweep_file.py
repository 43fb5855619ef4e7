"""What can be written in a sweep file: pydantic models, one line of text under each field.

Only the form of the file is known here; what it stands for is in `grid`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from gantool.config.base import NAME_PATTERN, Model, Positive, refuse

MAX_RUNS = 20_000
"""Most runs of one sweep: a slip of the hand should not fill a disk."""


def _check_base(value: Any) -> Any:
    if not isinstance(value, str | dict):
        raise refuse(
            f"found {value!r}, expected the path of a run config, or a mapping", "write for example base: gan.yaml"
        )
    return value


def _check_axis(value: Any) -> Any:
    bundles = isinstance(value, dict) and all(isinstance(overrides, dict) for overrides in value.values())
    if not isinstance(value, list) and not bundles:
        text = "expected a list of values, or named bundles of overrides"
        raise refuse(text, "write for example augment: [none, basic], or big: {no: {}, yes: {generator.width: 128}}")
    if not value:
        raise refuse("the axis is empty, so there would be no run at all", "give it a value, or remove the axis")
    return value


def _check_seeds(value: Any) -> Any:
    hint = "write a number of seeds (3 means 0, 1, 2), or a list of different ones"
    if isinstance(value, list):
        if (
            not value
            or not all(type(seed) is int and 0 <= seed < 2**63 for seed in value)
            or len(set(value)) < len(value)
        ):
            raise refuse(f"found {value!r}, expected different whole numbers from 0 on", hint)
        return tuple(value)
    if value is not None and (type(value) is not int or not 1 <= value <= MAX_RUNS):
        raise refuse(f"found {value!r}, expected a whole number from 1 to {MAX_RUNS}, or a list", hint)
    return value


_TIME = re.compile(r"^(?:(\d+) *d)? *(?:(\d+) *h)? *(?:(\d+) *m)?$")


def _check_time(value: Any) -> Any:
    if value is None:
        return None
    found = _TIME.match(value) if isinstance(value, str) else None
    days, hours, minutes = (int(part or 0) for part in found.groups()) if found else (0, 0, 0)
    if days + hours + minutes == 0:
        raise refuse(f"found {value!r}, expected a time like 4h, 90m or '2d 12h'", "Slurm counts in whole minutes")
    return value


def minutes_of(time: str) -> int:
    """`4h`, `90m`, `2d 12h` in minutes."""
    found = _TIME.match(time)
    assert found
    days, hours, minutes = (int(part or 0) for part in found.groups())
    return (days * 24 + hours) * 60 + minutes


class SlurmConfig(Model):
    """What each run asks of a Slurm cluster; account, partition and the like stand in the site's site.yaml."""

    time: Annotated[str | None, BeforeValidator(_check_time)] = None
    """Time limit of a job, e.g. 4h, 90m, 2d 12h; a run that needs more saves, and goes on in the next one. null: the
    partition's default."""
    gpus: Annotated[int, Field(ge=0, le=64)] | None = None
    """GPUs on each node, with a process for each; null: 1, or none where runtime.device is cpu."""
    nodes: Positive = 1
    """Nodes of each run."""
    tasks: Positive | None = None
    """Processes on each node; null: as many as GPUs."""
    cpus: Positive | None = None
    """CPUs of each process; null: as site.yaml says."""
    mem: Annotated[str, Field(pattern=r"^\d+[KMGT]?$")] | None = None
    """Memory of each node, e.g. 32G; null: as site.yaml says."""
    pack: Annotated[int, Field(ge=1, le=64)] = 1
    """Runs that share one GPU at the same time."""
    at_once: Positive | None = None
    """Jobs of one submitted array at the same time; null: as many as Slurm gives."""

    @model_validator(mode="after")
    def _check_pack(self) -> SlurmConfig:
        if self.pack > 1 and (self.nodes > 1 or (self.gpus or 0) > 1 or (self.tasks or 0) > 1):
            raise refuse("pack: several runs share one GPU of one node", "leave out nodes, gpus and tasks, or pack")
        return self

    def num_ranks(self) -> int:
        """Processes of each run."""
        return 1 if self.pack > 1 else self.nodes * (self.tasks or self.gpus or 1)


class ReportConfig(Model):
    """What the table of a sweep looks at."""

    metric: str | None = None
    """The score that sorts the table and picks the best row (fid, precision, ..); null: the first of `eval.metrics`."""
    best: Literal["min", "max"] | None = None
    """Which end of the metric is the better one; null: that which is known to be."""
    against: dict[str, Any] = Field(default_factory=dict)
    """Labels of the baseline, not necessarily of all axes; each row is compared with its baseline, seed by seed."""


class SweepConfig(Model):
    """A sweep: runs that differ in some keys and in their seeds."""

    HINT_OF_RUNS: ClassVar[str] = "a setting of runs: it belongs into base, or is said with --set"

    name: Annotated[str, Field(pattern=NAME_PATTERN)] | None = None
    """Name of the sweep and of its folder; null: the file's name without its ending."""
    base: Annotated[str | dict[str, Any], BeforeValidator(_check_base)]
    """The run config that all runs share: a path relative to this file, or the config itself."""
    vary: dict[str, Annotated[list[Any] | dict[str, dict[str, Any]], BeforeValidator(_check_axis)]] = Field(
        default_factory=dict
    )
    """The axes: each a (dotted) config key with a list of values, or a name with named bundles of overrides. One run
    for each combination."""
    also: Annotated[tuple[dict[str, Any], ...], Field(strict=False)] = ()
    """Single runs beside the product: labels of axes, and other config keys with their value."""
    except_: Annotated[tuple[dict[str, Any], ...], Field(strict=False, alias="except")] = ()
    """Labels of axes, not necessarily of all: combinations to take out of the product."""
    seeds: Annotated[int | tuple[int, ...] | None, BeforeValidator(_check_seeds)] = None
    """Number of seeds (from 0 on) or a list of them, for every combination; null: the seed of the base."""
    slots: Positive | None = None
    """Runs at the same time on this machine; null: one for each GPU, or else one for each CPU (4 at most)."""
    slurm: SlurmConfig = SlurmConfig()
    """What each run asks of a Slurm cluster, where there is one."""
    report: ReportConfig = ReportConfig()
    """The table of results."""
