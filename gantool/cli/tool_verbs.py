"""bench, config-schema, doctor."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from gantool.cli import completion
from gantool.cli.program import Assignments, Device, format_option, register, terminal_progress
from gantool.errors import EXIT_DONE, EXIT_FAILED, UsageError, choose
from gantool.launch import quick_imports


@register("bench")
def bench(
    config: Annotated[Path, typer.Argument(help="A run config.", autocompletion=completion.configs)],
    assignments: Assignments = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each contender after the warm-up.")] = 7,
    steps: Annotated[int, typer.Option(min=1, help="Steps in each turn.")] = 20,
    compare: Annotated[
        str | None,
        typer.Option(
            help="plain: also the trainer in float32 without rewritten layers.",
            autocompletion=completion.among("plain"),
        ),
    ] = None,
    packed: Annotated[
        int | None,
        typer.Option(min=2, help="Instead: this many runs together on one device, beside one alone."),
    ] = None,
    nproc: Annotated[int, typer.Option("--nproc", "--ranks", min=1, help="Processes of one run.")] = 1,
    form: Annotated[str, format_option("table", "json")] = "table",
    device: Device = None,
) -> int | None:
    """Speed of the trainer beside a bare loop of the same networks, where its time goes, and how far it is from what
    the machine can do."""
    from gantool.config.loader import load_run_config
    from gantool.start import world_size

    choose("--format", form, ("table", "json"))
    if compare is not None:
        choose("--compare", compare, ("plain",))
    if packed and (compare or nproc > 1):
        raise UsageError("--packed goes without --compare and --nproc", "measure one after the other")
    sets = [*(assignments or []), *([f"runtime.device={device}"] if device else [])]
    settings = load_run_config(config, sets)
    if settings.batch % nproc:
        raise UsageError(f"batch: {settings.batch} images cannot be shared by {nproc} processes", "set batch=N")
    from gantool.data.pack import ensure_packed

    with terminal_progress() as progress:
        data = ensure_packed(settings.data, Path(settings.runtime.data_dir), progress)
        if nproc > 1 and world_size() == 1:
            from gantool.launch import launch

            return launch(nproc, sys.argv[1:])
        with quick_imports(progress):
            from gantool import bench as run

        if packed:
            alone, together = run.bench_packed(settings, packed, rounds, steps, progress)
            found = {"packed": packed, "images_per_second": together, "one_alone": alone, "ratio": together / alone}
            words = f"images/s, {packed} together", "images/s, one alone", "together / alone"
            rows = [[name, f"{value:.4g}", ""] for name, value in zip(words, list(found.values())[1:], strict=True)]
        else:
            result = run.bench(settings, data, rounds, steps, progress, compare == "plain")
            found, rows = dataclasses.asdict(result), result.table()
            found |= {"share_of_ceiling": result.share_of_ceiling, "floor_seconds": result.floor_seconds}
    if os.environ.get("RANK", "0") != "0":
        return None
    if form == "json":
        print(json.dumps(found, indent=1))
    else:
        from gantool.terminal import print_table

        print_table(["", "median", "least to most"], rows)
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
    form: Annotated[str, format_option("table", "json")] = "table",
) -> int | None:
    """What works on this machine, and what to do about the rest; exit code 1 if something is broken."""
    from gantool import tables
    from gantool.doctor import examine

    choose("--format", form, ("table", "json"))
    with terminal_progress() as progress, quick_imports(progress):
        findings = examine()
    if form == "json":
        print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=1))
    else:
        tables.print_findings(findings)
    return EXIT_FAILED if any(finding.state == "problem" for finding in findings) else EXIT_DONE
