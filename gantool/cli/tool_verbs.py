"""bench, config-schema, doctor."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from gantool.cli.program import Assignments, Device, choose, register, terminal_progress
from gantool.errors import EXIT_DONE, EXIT_FAILED


@register("bench")
def bench(
    config: Annotated[Path, typer.Argument(help="A run config.")],
    assignments: Assignments = None,
    rounds: Annotated[int, typer.Option(min=1, help="Pairs of measurements after the warm-up.")] = 7,
    steps: Annotated[int, typer.Option(min=1, help="Steps in each measurement.")] = 20,
    form: Annotated[str, typer.Option("--format", "-f", help="table or json.")] = "table",
    device: Device = None,
) -> int | None:
    """Images per second of the trainer, beside a bare loop of the same networks on random tensors."""
    from gantool.config.loader import load_run_config

    choose("--format", form, ("table", "json"))
    sets = [*(assignments or []), *([f"runtime.device={device}"] if device else [])]
    settings = load_run_config(config, sets)
    from gantool.bench import bench as run
    from gantool.data.pack import ensure_packed
    from gantool.terminal import print_table

    with terminal_progress() as progress:
        data = ensure_packed(settings.data, Path(settings.runtime.data_dir), progress)
        result = dataclasses.asdict(run(settings, data, rounds, steps, progress))
    if form == "json":
        print(json.dumps(result, indent=1))
    else:
        print_table(["measure", "value"], [[key, str(value)] for key, value in result.items()])
    return None


@register("config-schema")
def config_schema(
    sweep: Annotated[bool, typer.Option("--sweep", help="The schema of sweep files instead of run configs.")] = False,
) -> int | None:
    """Print the JSON schema of configs, for completion and checks in editors."""
    from gantool.config.json_schema import run_schema, sweep_schema

    print(json.dumps(sweep_schema() if sweep else run_schema(), indent=1))
    return None


@register("doctor")
def doctor(
    form: Annotated[str, typer.Option("--format", "-f", help="table or json.")] = "table",
) -> int | None:
    """What works on this machine, and what to do about the rest; exit code 1 if something is broken."""
    from gantool import tables
    from gantool.doctor import examine

    choose("--format", form, ("table", "json"))
    findings = examine()
    if form == "json":
        print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=1))
    else:
        tables.print_findings(findings)
    return EXIT_FAILED if any(finding.state == "problem" for finding in findings) else EXIT_DONE
