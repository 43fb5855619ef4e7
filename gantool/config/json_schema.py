"""JSON schemas of configs, for completion and checks in editors."""

from __future__ import annotations

from typing import Any

from gantool.config.schema import RunConfig
from gantool.config.sweep_file import SweepConfig


def run_schema() -> dict[str, Any]:
    """JSON schema of run configs, with `extends`."""
    schema = RunConfig.model_json_schema()
    parent = {"type": "string", "title": "Extends", "description": "Another config, below this one in precedence."}
    schema["properties"]["extends"] = parent
    return schema


def sweep_schema() -> dict[str, Any]:
    """JSON schema of sweep files."""
    return SweepConfig.model_json_schema()
