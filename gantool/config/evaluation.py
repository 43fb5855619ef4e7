"""What can be written below `eval:`: the scores of a run. Stamped on each score, not part of a run's fingerprint."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from gantool.config.base import Duration, Model, Share

MetricName = Literal["fid", "is", "kid", "precision_recall", "density_coverage", "sfid", "overfit", "classification"]
ProtocolName = Literal["tf1", "pytorch-fid", "clean", "stylegan3"]
EXTRACTOR_PATTERN = r"^(classifier|inception|efficientnet-lite0|torchvision:[a-z0-9_]+)$"


def _check_extractor(value: Any) -> Any:
    if not isinstance(value, str) or not re.match(EXTRACTOR_PATTERN, value):
        text = f"found {value!r}, expected classifier, inception, efficientnet-lite0 or torchvision:NAME"
        raise PydanticCustomError("value_error", "{text}", {"text": text, "hint": "for example classifier"})
    return value


VALUES: dict[str, tuple[str, ...]] = {
    "fid": ("fid",),
    "is": ("is",),
    "kid": ("kid", "kid_full"),
    "sfid": ("sfid",),
    "precision_recall": ("recall", "precision"),
    "density_coverage": ("coverage", "density"),
    "overfit": ("fid_to_test", "fid_to_train", "authpct"),
    "classification": ("cas", "accuracy_classifier"),
}
"""The values of each metric that can be ranked, first the one that counts."""
HIGHER_IS_BETTER = ("is", "recall", "precision", "coverage", "density", "authpct", "cas", "accuracy_classifier")


class EvalConfig(Model):
    """The scores of a run."""

    extractor: Annotated[str, BeforeValidator(_check_extractor)] = "classifier"
    """Features: classifier (a small CNN trained on the real training set), inception (the FID network),
    efficientnet-lite0 (an optional package with its weights), or torchvision:NAME; the last and inception need a
    weights file."""
    protocol: ProtocolName = "tf1"
    """With inception, how FID is computed: tf1 (TTUR, torch-fidelity), pytorch-fid, clean (clean-fid), stylegan3."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the extractor; scores of different precisions cannot be compared."""
    weights: str | None = None
    """Weights file of the extractor, or the folder it is in; null: $GANTOOL_WEIGHTS and the usual caches."""
    metrics: Annotated[tuple[MetricName, ...], Field(strict=False, min_length=1)] = ("fid", "is")
    """Which scores to compute."""
    num: Annotated[int, Field(ge=2, le=10_000_000)] = 10_000
    """Number of generated images."""
    per_class: bool = False
    """Also FID and IS of each class."""
    ci: bool = False
    """Also the FID without its bias (estimated from halves) and a 95 % interval."""
    every: Duration | None = None
    """Score the generator during training too, at this interval; null: at the end only."""
    budget: Share = 0.1
    """Largest share of the training's time for scores; a score that would exceed it is left out. The first one of a
    process is always made, and so is the one at the end."""

    def identity(self) -> dict[str, object]:
        """What decides which numbers come out, as plain data."""
        return self.model_dump(mode="json", exclude={"every", "budget", "weights"})


def eval_problems(settings: EvalConfig, has_classes: bool) -> list[tuple[tuple[str, ...], str, str]]:
    """Combinations that cannot be scored, as (keys, what is wrong, what to do); has_classes: of the images."""
    problems: list[tuple[tuple[str, ...], str, str]] = []
    if settings.protocol != "tf1" and settings.extractor != "inception":
        text = f"{settings.protocol} is a protocol of the Inception network, not of {settings.extractor}"
        problems.append((("eval.protocol", "eval.extractor"), text, "set the extractor to inception, or leave it out"))
    if "sfid" in settings.metrics and settings.extractor != "inception":
        text = f"sfid is defined for the Inception network, not for {settings.extractor}"
        problems.append((("eval.metrics", "eval.extractor"), text, "set the extractor to inception, or leave sfid out"))
    for what, key, wanted, least in (
        ("an interval (ci)", "ci", settings.ci, 20),
        ("kid", "metrics", "kid" in settings.metrics, 3),
        ("precision_recall", "metrics", "precision_recall" in settings.metrics, 4),
        ("density_coverage", "metrics", "density_coverage" in settings.metrics, 6),
    ):
        if wanted and settings.num < least:
            text = f"found {settings.num} images, expected {least} or more for {what}"
            problems.append((("eval.num", f"eval.{key}"), text, f"set num to {least} or more"))
    for key, wanted in (("per_class", settings.per_class), ("metrics", "classification" in settings.metrics)):
        if wanted and not has_classes:
            what = "scores of each class need" if key == "per_class" else "classification needs"
            text = f"{what} images with classes, and these have none (the networks are not class-conditional)"
            problems.append(((f"eval.{key}",), text, "leave it out, or take class-conditional networks"))
    return problems
