"""prepare, train, sample, eval."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gantool.cli import completion
from gantool.cli.program import (
    Assignments,
    Device,
    check_device,
    find_device,
    format_option,
    register,
    terminal_progress,
    warn_of_loss,
)
from gantool.errors import EXIT_DONE, EXIT_FAILED, GantoolError, UsageError, choose
from gantool.launch import quick_imports

if TYPE_CHECKING:
    from PIL import Image

    from gantool.config.schema import RunConfig
    from gantool.interrupts import Interrupts
    from gantool.terminal import TerminalProgress

_METRICS = ("fid", "is", "kid", "precision_recall", "density_coverage", "sfid", "overfit", "classification")
Ckpt = Annotated[
    Path,
    typer.Option(
        "--ckpt", "-c", help="A run directory (its last snapshot) or a snapshot file.", autocompletion=completion.runs
    ),
]


@register("prepare")
def prepare(
    config: Annotated[
        Path | None,
        typer.Argument(
            help="A run or sweep config: all datasets it names are packed.", autocompletion=completion.configs
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="Instead of a config: the name of the dataset.", autocompletion=completion.datasets),
    ] = None,
    source: Annotated[Path | None, typer.Option(help="Original files: a file or a folder; default: download.")] = None,
    size: Annotated[int | None, typer.Option(help="With --dataset: side of the packed images in pixels.")] = None,
    assignments: Assignments = None,
) -> int | None:
    """Pack the data a config needs into one file; everything that needs the internet, once, on a login node."""
    from gantool.config.document import Document
    from gantool.config.loader import overlay, validate_run
    from gantool.prepare import prepare as run

    if config is not None and size is not None:
        raise UsageError("--size goes with --dataset; a config has data.size", "use --set data.size=N")
    if (config is None) == (dataset is None):
        raise UsageError("give either a config or --dataset NAME", "for example: gantool prepare --dataset shapes")
    if config is not None:
        configs = _configs_of(config, assignments or [])
    else:
        from gantool.config.document import parse_assignment

        base = Document({"data": {"name": dataset, **({"size": size} if size is not None else {})}}, {}, "--dataset")
        configs = [validate_run(overlay(base, *map(parse_assignment, assignments or [])))]
    datasets = {c.data: c.runtime for c in configs}
    if source is not None and len(datasets) > 1:
        names = ", ".join(data.name for data in datasets)
        raise UsageError(f"--source is for one dataset, the sweep has several: {names}", "use --dataset NAME for each")
    with terminal_progress() as progress:
        warn_of_loss(progress, *(Path(where.data_dir) for where in datasets.values()))
        packed = [
            run(data, where.model_copy(update={"source": str(source)}) if source else where, progress)
            for data, where in datasets.items()
        ]
        for settings in {(c.data, c.eval): c for c in configs if c.eval}.values():
            _stage(settings, progress)
    for item in packed:
        print(item.path)
    return None


def _stage(settings: RunConfig, progress: TerminalProgress) -> None:
    """Make what the scores of a run need beside its generator: the extractor, the statistics of the real images."""
    with quick_imports(progress):
        from gantool.evaluate import stage
        from gantool.metrics.collection import Work
        from gantool.runtime import num_threads, set_threads

    set_threads(num_threads(settings.runtime.threads))
    assert settings.eval is not None
    device = find_device(settings.runtime.device, progress)
    stage(settings.data, settings.eval, Path(settings.runtime.data_dir), device, Work(progress))


def _configs_of(path: Path, assignments: list[str]) -> list[RunConfig]:
    """The run configs in a run or sweep file."""
    from gantool.config.document import read_document
    from gantool.config.loader import load_run_config

    if "base" in read_document(path).tree or "vary" in read_document(path).tree:
        from gantool.sweep import plan

        with terminal_progress() as progress:
            return [trial.config for trial in plan(path, assignments, progress=progress).trials]
    return [load_run_config(path, assignments)]


@register("train")
def train(
    config: Annotated[
        Path,
        typer.Argument(help="A config, or a run directory to go on with.", autocompletion=completion.configs_and_runs),
    ],
    assignments: Assignments = None,
    nproc: Annotated[int, typer.Option(min=1, help="Processes on this machine (one per GPU).")] = 1,
    device: Device = None,
    init: Annotated[bool, typer.Option("--init", help="Only make the run directory, and print it.")] = False,
) -> int | None:
    """Train one run. The same command again goes on where it was; prints the run directory."""
    from gantool.interrupts import Interrupts

    if init:
        from gantool.start import open_run

        print(
            open_run(config, [*(assignments or []), *([f"runtime.device={device}"] if device else [])], nproc)[1].path
        )
        return None
    return _train(config, assignments or [], nproc, device, Interrupts())


def _train(path: Path, assignments: list[str], nproc: int, device: str | None, interrupts: Interrupts) -> int | None:
    from gantool.start import open_run, signals_caught, train_here, world_size

    ranks = world_size()
    sets = [*assignments, *([f"runtime.device={device}"] if device else [])]
    settings, run = open_run(path, sets, max(nproc, ranks), with_data=True)
    state = run.state(settings)
    if state == "cancelled":
        raise GantoolError(f"{run.path}: this run was cancelled", f"to let it go on: gantool cancel {run.path} --undo")
    if state != "done" and nproc > 1 and ranks == 1:
        from gantool.launch import launch

        return launch(nproc, sys.argv[1:])
    with signals_caught(run, interrupts), terminal_progress() as progress:
        if state == "done":
            progress.say("this run is done already")
        else:
            train_here(settings, run, interrupts, progress)
    if os.environ.get("RANK", "0") == "0":
        print(run.path)
    return None


@register("sample")
def sample(
    ckpt: Ckpt,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A folder of PNGs, x.npz, x.zip; with --grid x.png.")
    ] = None,
    num: Annotated[int | None, typer.Option("--num", "-n", min=1, help="Number of images; default: 64.")] = None,
    grid: Annotated[
        str | None, typer.Option(metavar="ROWSxCOLS", help="One picture of images 0, 1, ... instead.")
    ] = None,
    show: Annotated[
        bool, typer.Option("--show", help="Draw the grid (default: 3x6) in the terminal; --out x.png keeps it too.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Image k depends on the seed and k alone.")] = 0,
    classes: Annotated[
        str | None, typer.Option(help="Comma-separated class names or numbers, for class-conditional generators.")
    ] = None,
    device: Device = None,
) -> int | None:
    """Draw images from a snapshot; prints where they are."""
    from gantool.runs import find_snapshot

    check_device(device)
    if show:
        from gantool.terminal import check_pictures

        check_pictures()
        grid = grid or "3x6"
    if out is None and not show:
        raise UsageError("give --out, where the images go, or --show", "for example --grid 5x5 --out grid.png")
    path = find_snapshot(ckpt)
    if grid and num:
        which = "--show" if show else "--grid"
        raise UsageError(f"--num has no effect with {which}, which draws rows x columns images", "leave it out")
    with terminal_progress() as progress, quick_imports(progress):
        from gantool.sample import choose_classes, draw_grid, load_snapshot, parse_grid, save_grid
        from gantool.sample import sample as run

    shape = parse_grid(grid) if grid else None
    if shape and out and out.suffix.lower() != ".png":
        raise UsageError(f"--out: found {out.name!r}, expected a .png file for a grid", "for example --out grid.png")
    picture = None
    with terminal_progress() as progress:
        warn_of_loss(progress, *filter(None, [out]))
        snapshot = load_snapshot(path, find_device(device or "auto", progress))
        chosen = choose_classes(snapshot, classes) if classes is not None else None
        if shape:
            picture = draw_grid(snapshot, *shape, seed, progress, chosen)
            if out:
                save_grid(out, picture)
        elif out:
            run(snapshot, num or 64, seed, out, progress, chosen)
    if picture and show:
        _show(picture)
    if out:
        print(out)
    return None


def _show(picture: Image.Image) -> None:
    from gantool.terminal import show_picture

    png = io.BytesIO()
    picture.save(png, "png")
    show_picture(png.getvalue())


@register("eval")
def evaluate(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Run directories (their best and last snapshots) or snapshot files.", autocompletion=completion.runs
        ),
    ] = None,
    ckpt: Annotated[
        list[Path] | None,
        typer.Option(
            "--ckpt",
            "-c",
            help="The same as an option; repeatable; a quoted glob will do.",
            autocompletion=completion.runs,
        ),
    ] = None,
    images: Annotated[
        list[Path] | None, typer.Option(help="Instead: a folder, zip or npz of images of other origin; repeatable.")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            "--reference",
            help="With --images: the config or a run of the data, or another folder, zip, npz.",
            autocompletion=completion.configs_and_runs,
        ),
    ] = None,
    extractor: Annotated[
        str | None,
        typer.Option(
            help="classifier, inception, efficientnet-lite0, torchvision:NAME; default: the run's.",
            autocompletion=completion.among("classifier", "inception", "efficientnet-lite0"),
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="With inception: tf1, pytorch-fid, clean or stylegan3; default: tf1.",
            autocompletion=completion.protocols,
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="float32 or bfloat16; default: float32.", autocompletion=completion.among("float32", "bfloat16")
        ),
    ] = None,
    num: Annotated[int | None, typer.Option("--num", "-n", min=2, help="Number of generated images.")] = None,
    metrics: Annotated[
        str | None,
        typer.Option(help="Comma-separated: " + ", ".join(_METRICS) + ".", autocompletion=completion.metrics),
    ] = None,
    per_class: Annotated[bool | None, typer.Option("--per-class", help="Also FID and IS of each class.")] = None,
    ci: Annotated[
        bool | None, typer.Option("--ci", help="Also the FID without bias (by halves), and a 95 % interval.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the generated images.")] = 0,
    weights: Annotated[Path | None, typer.Option(help="Weights file of the extractor, or its folder.")] = None,
    allow_unknown_weights: Annotated[
        bool, typer.Option("--allow-unknown-weights", help="Take other weights too; their digest is in the protocol.")
    ] = False,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the packed data; default: the run's.")] = None,
    form: Annotated[str, format_option("table", "json", "csv", "markdown", "latex")] = "table",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Also a file: .json, .csv, .md or .tex.")] = None,
    nproc: Annotated[int, typer.Option(min=1, help="Processes on this machine (one per GPU).")] = 1,
    device: Device = None,
) -> int | None:
    """Score snapshots, or images of other origin, against the real training images; prints one table."""
    from gantool import scoring, tables
    from gantool.start import world_size

    choose("--format", form, tables.FORMATS)
    if out is not None:
        tables.check_out(out)
    check_device(device)
    asked = scoring.Asked(
        scoring.changes_of(extractor, protocol, precision, num, metrics, per_class, ci),
        seed,
        weights,
        allow_unknown_weights,
        data_dir,
    )
    wanted = [*(paths or []), *(ckpt or [])]
    if bool(wanted) == bool(images):
        raise UsageError("give either snapshots or --images", "for example: gantool eval runs/NAME")
    if images and against is None:
        hint = "the config of the data they imitate, for example --reference configs/cifar10_baseline.yaml"
        raise UsageError("--images needs --reference, the real images", hint)
    if not images and against is not None:
        raise UsageError("--reference goes with --images", "snapshots are scored against the data they were trained on")
    if images and num is not None:
        raise UsageError("--num has no effect with --images, all of them are scored", "leave it out")
    snapshots, without = scoring.snapshots_of(wanted)
    if nproc > 1 and world_size() == 1:
        from gantool.launch import launch

        return launch(nproc, sys.argv[1:])
    with terminal_progress() as progress:
        if out is not None:
            warn_of_loss(progress, out)
        ranks, where = _eval_ranks(device, progress)
        for text in without:
            progress.say(text)
        if images:
            assert against is not None
            scores, complete = scoring.score_images(images, against, asked, where, ranks, progress, out)
        else:
            scores, complete = scoring.score_snapshots(snapshots, asked, where, ranks, progress)
    if ranks.rank == 0 and scores:
        tables.print_scores(scores, form, out)
    return EXIT_DONE if complete else EXIT_FAILED


def _eval_ranks(device: str | None, progress: TerminalProgress) -> tuple[Any, Any]:
    """(ranks, device) of this process."""
    from gantool.config.schema import RuntimeConfig

    with quick_imports(progress):
        from gantool.metrics.collection import Alone
        from gantool.runtime import Runtime, return_large_blocks
    from gantool.start import world_size

    return_large_blocks()
    if world_size() == 1:
        return Alone(), find_device(device or "auto", progress)
    runtime = Runtime(RuntimeConfig.model_validate({"device": device or "auto"}))
    return runtime, runtime.device
