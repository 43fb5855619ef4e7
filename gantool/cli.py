"""The command line: parse, call one verb, print its result to stdout, map errors to exit codes.

The only file that prints. Nothing here loads torch before a verb that needs it is really going to run, so `--help`,
`status`, `sweep --dry-run` and config errors answer at once on a login node.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import gantool
from gantool import container
from gantool.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, GantoolError, InterruptedRun, UsageError

if TYPE_CHECKING:
    import torch

    from gantool.config.schema import RunConfig
    from gantool.interrupts import Interrupts
    from gantool.terminal import TerminalProgress

app = typer.Typer(
    name="gantool",
    help="Train, sample, score and sweep GANs, on a laptop or a cluster.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_options = {"debug": os.environ.get("GANTOOL_DEBUG", "0") not in ("", "0"), "quiet": False}

Assignments = Annotated[
    list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override a key of the config; repeatable.")
]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps; default: the config's.")]
_METRICS = ("fid", "is", "kid", "precision_recall", "density_coverage", "sfid", "overfit", "classification")
Ckpt = Annotated[Path, typer.Option("--ckpt", "-c", help="A run directory (its last snapshot) or a snapshot file.")]


def main() -> None:
    """Entry point of the `gantool` program."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed, as under some daemons
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # an old locale must not cost a table
    container.set_defaults()
    if "GANTOOL_LAUNCHER" in os.environ:
        from gantool.launch import follow

        follow(int(os.environ["GANTOOL_LAUNCHER"]))
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        print(gantool.__version__)
        raise typer.Exit


@app.callback()
def _common(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (or GANTOOL_DEBUG=1).")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress and no words on stderr, errors apart.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    _options["debug"] |= debug
    _options["quiet"] = quiet


def _verb(name: str) -> Callable[[Callable[..., int | None]], Callable[..., None]]:
    """Register a command that returns its exit code (None: 0) and turns errors into one message on stderr."""

    def register(function: Callable[..., int | None]) -> Callable[..., None]:
        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> None:
            code = _run_guarded(lambda: function(*args, **kwargs))
            if os.environ.get("WORLD_SIZE", "1") != "1" and "torch" in sys.modules:
                # A rank of several: the threads of a process group that was not left in order (an error, a signal)
                # would abort the interpreter on its way out and replace the exit code.
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
            raise typer.Exit(code)

        app.command(name)(guarded)
        return guarded

    return register


def _run_guarded(call: Callable[[], int | None]) -> int:
    try:
        # SIGTERM unwinds like Ctrl-C, so that temporary files are removed.
        for number in (signal.SIGTERM, signal.SIGUSR2):
            if signal.getsignal(number) != signal.SIG_IGN:  # as job.sh has it until a run can save
                signal.signal(number, signal.default_int_handler)
        code = call() or EXIT_DONE
        sys.stdout.flush()
        return code
    except GantoolError as error:
        _show_traceback()
        _complain("error", error.message, error.hint)
        return error.exit_code
    except InterruptedRun as stop:
        if os.environ.get("RANK", "0") == "0":
            _complain("interrupted", stop.message, stop.hint)
        return EXIT_INTERRUPTED
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            _complain("interrupted", "stopped by a signal", "run the same command again to go on")
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `gantool status | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_DONE
    except Exception as error:
        _show_traceback()
        hint = "this is a defect of gantool: run with --debug to see where"
        _complain("error", f"{type(error).__name__}: {error}", hint)
        return EXIT_FAILED


def _show_traceback() -> None:
    if _options["debug"]:
        traceback.print_exc()


def _complain(kind: str, message: str, hint: str | None) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    style = "bold red" if kind == "error" else "bold yellow"
    console.print(Text.assemble((f"{kind}: ", style), message))
    for line in (hint or "").splitlines():
        console.print(Text.assemble(("  hint: ", "bold"), line))


def _progress() -> TerminalProgress:
    from gantool.terminal import TerminalProgress

    return TerminalProgress(quiet=_options["quiet"])


def _warn_of_loss(progress: TerminalProgress, *paths: Path) -> None:
    for text in filter(None, dict.fromkeys(map(container.loss, paths))):
        progress.say(f"warning: {text}")


def _device(wanted: str, progress: TerminalProgress) -> torch.device:
    """The device for a verb that samples or scores."""
    from gantool.runtime import choose_device, device_caution

    device = choose_device(wanted)
    if caution := device_caution(device, wanted):
        progress.say(f"warning: {caution}")
    return device


def _check_device(device: str | None) -> None:
    if device is not None:
        _choose("--device", device, ("auto", "cpu", "cuda", "mps"))


def _choose(option: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise UsageError(f"{option}: found {value!r}, expected one of {', '.join(choices)}")
    return value


@_verb("prepare")
def prepare(
    config: Annotated[
        Path | None, typer.Argument(help="A run or sweep config: all datasets it names are packed.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Instead of a config: the name of the dataset.")] = None,
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
    with _progress() as progress:
        _warn_of_loss(progress, *(Path(where.data_dir) for where in datasets.values()))
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
    from gantool.evaluate import stage
    from gantool.metrics.collection import Work
    from gantool.runtime import num_threads, set_threads

    set_threads(num_threads(settings.runtime.threads))
    assert settings.eval is not None
    device = _device(settings.runtime.device, progress)
    stage(settings.data, settings.eval, Path(settings.runtime.data_dir), device, Work(progress))


def _configs_of(path: Path, assignments: list[str]) -> list[RunConfig]:
    """The run configs in a run or sweep file."""
    from gantool.config.document import read_document
    from gantool.config.loader import load_run_config

    if "base" in read_document(path).tree or "vary" in read_document(path).tree:
        from gantool.sweep import plan

        return [trial.config for trial in plan(path, assignments).trials]
    return [load_run_config(path, assignments)]


@_verb("train")
def train(
    config: Annotated[Path, typer.Argument(help="A config, or a run directory to go on with.")],
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
    settings, run = open_run(path, sets, max(nproc, ranks))
    state = run.state(settings)
    if state == "cancelled":
        raise GantoolError(f"{run.path}: this run was cancelled", f"to let it go on: gantool cancel {run.path} --undo")
    if state != "done" and nproc > 1 and ranks == 1:
        from gantool.launch import launch

        return launch(nproc, sys.argv[1:])
    with signals_caught(run, interrupts), _progress() as progress:
        if state == "done":
            progress.say("this run is done already")
        else:
            train_here(settings, run, interrupts, progress)
    if os.environ.get("RANK", "0") == "0":
        print(run.path)
    return None


@_verb("sample")
def sample(
    ckpt: Ckpt,
    out: Annotated[Path, typer.Option("--out", "-o", help="A folder of PNGs, x.npz, x.zip; with --grid x.png.")],
    num: Annotated[int | None, typer.Option("--num", "-n", min=1, help="Number of images [default: 64].")] = None,
    grid: Annotated[
        str | None, typer.Option(metavar="ROWSxCOLS", help="One picture of images 0, 1, ... instead.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Image k depends on the seed and k alone.")] = 0,
    classes: Annotated[
        str | None, typer.Option(help="Comma-separated class names or numbers, for class-conditional generators.")
    ] = None,
    device: Device = None,
) -> int | None:
    """Draw images from a snapshot; prints where they are."""
    from gantool.runs import find_snapshot

    _check_device(device)
    path = find_snapshot(ckpt)
    if grid and num:
        raise UsageError("--num has no effect with --grid, which draws rows x columns images", "leave one of them out")
    from gantool.sample import choose_classes, draw_grid, load_snapshot, parse_grid
    from gantool.sample import sample as run

    shape = parse_grid(grid) if grid else None
    if shape and out.suffix.lower() != ".png":
        raise UsageError(f"--out: found {out.name!r}, expected a .png file for --grid", "for example --out grid.png")
    with _progress() as progress:
        _warn_of_loss(progress, out)
        snapshot = load_snapshot(path, _device(device or "auto", progress))
        chosen = choose_classes(snapshot, classes) if classes is not None else None
        if shape:
            done = draw_grid(snapshot, *shape, seed, out, chosen)
        else:
            done = run(snapshot, num or 64, seed, out, progress, chosen)
    print(done)
    return None


@_verb("eval")
def evaluate(
    paths: Annotated[
        list[Path] | None, typer.Argument(help="Run directories (their best and last snapshots) or snapshot files.")
    ] = None,
    ckpt: Annotated[
        list[Path] | None,
        typer.Option("--ckpt", "-c", help="The same as an option; repeatable; a quoted glob will do."),
    ] = None,
    images: Annotated[
        list[Path] | None, typer.Option(help="Instead: a folder, zip or npz of images of other origin; repeatable.")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            "--reference", help="With --images: the config or a run of the data, or another folder, zip, npz."
        ),
    ] = None,
    extractor: Annotated[
        str | None,
        typer.Option(help="classifier, inception, efficientnet-lite0, torchvision:NAME [default: the run's]."),
    ] = None,
    protocol: Annotated[
        str | None, typer.Option(help="With inception: tf1, pytorch-fid, clean or stylegan3 [default: tf1].")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="float32 or bfloat16 [default: float32].")] = None,
    num: Annotated[int | None, typer.Option("--num", "-n", min=2, help="Number of generated images.")] = None,
    metrics: Annotated[str | None, typer.Option(help="Comma-separated: " + ", ".join(_METRICS) + ".")] = None,
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
    form: Annotated[str, typer.Option("--format", "-f", help="table, json, csv, markdown or latex.")] = "table",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Also a file: .json, .csv, .md or .tex.")] = None,
    nproc: Annotated[int, typer.Option(min=1, help="Processes on this machine (one per GPU).")] = 1,
    device: Device = None,
) -> int | None:
    """Score snapshots, or images of other origin, against the real training images; prints one table."""
    from gantool import scoring, tables
    from gantool.start import world_size

    _choose("--format", form, tables.FORMATS)
    if out is not None:
        tables.check_out(out)
    _check_device(device)
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
    with _progress() as progress:
        if out is not None:
            _warn_of_loss(progress, out)
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
    from gantool.metrics.collection import Alone
    from gantool.runtime import Runtime, return_large_blocks
    from gantool.start import world_size

    return_large_blocks()
    if world_size() == 1:
        return Alone(), _device(device or "auto", progress)
    runtime = Runtime(RuntimeConfig.model_validate({"device": device or "auto"}))
    return runtime, runtime.device


@_verb("sweep")
def sweep(
    config: Annotated[Path, typer.Argument(help="A sweep config.")],
    assignments: Assignments = None,
    slots: Annotated[int | None, typer.Option(min=1, help="Runs at the same time; default: the sweep's.")] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show what would run, and the batch script."),
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Start failed and diverged runs again too.")
    ] = False,
    local: Annotated[bool, typer.Option("--local", help="Here, also where there is Slurm.")] = False,
    site: Annotated[
        Path | None,
        typer.Option(help="Settings of the cluster; default: $GANTOOL_SITE, site.yaml, ~/.config/gantool/site.yaml."),
    ] = None,
    form: Annotated[str, typer.Option("--format", "-f", help="table, json, csv or markdown.")] = "table",
) -> int | None:
    """Run what is missing of a grid of runs, as Slurm jobs where there is Slurm, else here; print the table at the end.
    The same command continues, retries and extends."""
    from gantool import cluster, results
    from gantool import sweep as verb
    from gantool.data.pack import ensure_packed
    from gantool.status import plan_states

    _choose("--format", form, ("table", "json", "csv", "markdown"))
    if cluster.available() and not local:
        if slots is not None:
            raise UsageError("--slots is for runs on this machine, but here is Slurm", "add --local, or leave it out")
        return _submit(config, assignments or [], site, dry_run, retry_failed, form)
    plan = verb.plan(config, assignments or [])
    if not local and (silence := verb.silence(plan)):
        hint = "go to a login node of the cluster; or add --local, which runs here what is not done"
        raise UsageError(f"sweep {plan.name}: {silence}", hint)
    if dry_run:
        _print_states(plan_states(plan), form)
        return None
    with _progress() as progress:
        _warn_of_loss(progress, *(Path(trial.config.runtime.runs_dir) for trial in plan.trials))
        missing = [trial.config for trial in verb.missing(plan, retry_failed)]
        for data, folder in dict.fromkeys((item.data, item.runtime.data_dir) for item in missing):
            ensure_packed(data, Path(folder), progress)
        if any(item.eval for item in missing):
            _prepare_scores(config, assignments or [])
        outcome = verb.run(plan, progress, slots=slots, retry_failed=retry_failed)
        for path in outcome.files:
            progress.say(f"written: {path}")
        progress.say(
            f"grids, curves and snapshots: <run>/samples, <run>/curves.png, <run>/snapshots in {_runs_dirs(plan)}"
        )
        if outcome.exit_code == EXIT_INTERRUPTED:
            progress.say("some runs go on elsewhere: run the same command again when they are done")
    _print_results(plan, outcome.rows, form, results)
    return outcome.exit_code


def _submit(
    config: Path, assignments: list[str], site_file: Path | None, dry_run: bool, retry_failed: bool, form: str
) -> int | None:
    """`gantool sweep` where there is Slurm."""
    from gantool import results
    from gantool import sweep as verb
    from gantool.config.site import load_site
    from gantool.data.pack import ensure_packed
    from gantool.errors import EXIT_FAILED
    from gantool.status import plan_states
    from gantool.submit import preview, submit

    site, _ = load_site(site_file)
    plan = verb.plan(config, assignments, on_slurm=True)
    if dry_run:
        script, said = preview(plan, site, retry_failed)
        _print_states(plan_states(plan), form)
        if script and form == "table":
            print(f"\n{script}\nsbatch --test-only: {said}")
        return None
    with _progress() as progress:
        for note in plan.notes:
            progress.say(note)
        left = [trial.config for trial in plan.trials if trial.run.result() is None]
        for data, folder in dict.fromkeys((one.data, one.runtime.data_dir) for one in left):
            ensure_packed(data, Path(folder), progress)
        done = submit(plan, site, progress, retry_failed)
        for note in done.notes:
            progress.say(note)
        counts = {state: list(done.states.values()).count(state) for state in dict.fromkeys(done.states.values())}
        before = ", ".join(f"{number} {state}" for state, number in counts.items())
        what = f"{done.num_runs} submitted" if done.num_runs else "nothing to submit"
        progress.say(f"sweep {plan.name}: {len(plan.trials)} runs ({before} before): {what}")
        if done.report:
            progress.say(f"job {done.report} writes the results to {plan.folder} when they have ended")
            progress.say(f"look with: gantool status {plan.folder}; end with: gantool cancel {plan.folder}")
        if not done.num_runs and ("failed" in counts or "diverged" in counts):
            progress.say("to try failed runs again: --retry-failed")
        if not done.num_runs and "cancelled" in counts:
            progress.say(f"to let cancelled runs go on: gantool cancel {plan.folder} --undo")
    for array in done.arrays:
        print(array)
    if done.num_runs or set(counts) & {"running", "queued", "held", "requeued"}:
        return None
    rows, _ = verb.gather(plan)
    _print_results(plan, rows, form, results)
    return EXIT_FAILED if {"failed", "diverged"} & set(counts) else None


def _prepare_scores(path: Path, assignments: list[str]) -> None:
    """`gantool prepare` in a process of its own: what is missing for the scores is known before the first run starts,
    and made once instead of by several runs at the same time. A sweep itself never loads torch."""
    from gantool.launch import program

    words = [word for assignment in assignments for word in ("--set", assignment)]
    quiet = ["--quiet"] if _options["quiet"] else []
    command = [*program(), *quiet, "prepare", str(path), *words]
    code = subprocess.run(command, stdout=subprocess.DEVNULL).returncode
    if code in (EXIT_INTERRUPTED, -signal.SIGINT):
        raise KeyboardInterrupt
    if code:
        raise GantoolError("the scores of the runs cannot be prepared (see above)", "mend that; nothing was started")


def _runs_dirs(plan: Any) -> str:
    return ", ".join(dict.fromkeys(str(trial.run.path.parent) for trial in plan.trials))


def _print_results(plan: Any, rows: Any, form: str, results: Any) -> None:
    from gantool.terminal import print_table

    if form == "json":
        print(results.sweep_json(plan, rows), end="")
    elif form == "csv":
        print(results.to_csv(results.flat(rows)), end="")
    elif form == "markdown":
        print(results.sweep_markdown(plan, rows), end="")
    else:
        headers, cells = results.table(results.grouped(rows, plan.report), plan.report)
        if any(row.values for row in rows):
            print_table(headers, cells, results.caption(plan, rows))
        else:
            print("no scores yet", results.caption(plan, rows).partition("\n")[2], sep="\n")


Folder = Annotated[Path, typer.Argument(help="sweeps/NAME, a run directory, or a folder of run directories.")]


@_verb("status")
def status(
    folder: Folder,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Again every 30 seconds, until Ctrl-C.")] = False,
    form: Annotated[str, typer.Option("--format", "-f", help="table, json, csv or markdown.")] = "table",
) -> int | None:
    """What every run is doing: from its files, and from Slurm where it was submitted."""
    _choose("--format", form, ("table", "json", "csv", "markdown"))
    if watch and form != "table":
        raise UsageError("--watch goes with --format table", "leave one of them out")
    with contextlib.suppress(KeyboardInterrupt) if watch else contextlib.nullcontext():
        _show_states(folder, watch, form)
    return None


def _show_states(folder: Path, watch: bool, form: str) -> None:
    from gantool.status import trial_states
    from gantool.terminal import clear_screen

    while True:
        states, silence = trial_states(folder)
        if watch:
            clear_screen()
        _print_states(states, form)
        if silence:
            _complain("warning", f"{silence}: the states are those of the files alone", None)
        if not watch:
            return
        time.sleep(30)


@_verb("cancel")
def cancel(
    folder: Folder,
    which: Annotated[
        list[str] | None, typer.Argument(help="Only these: AXIS=LABEL, seed=N, state=STATE (all must fit), or a run.")
    ] = None,
    undo: Annotated[bool, typer.Option("--undo", help="Let cancelled runs go on at the next gantool sweep.")] = False,
) -> int | None:
    """End runs for good, on the cluster or here: what they have is saved, and no job starts them again."""
    from gantool.cancel import cancel as run

    done = run(folder, which or [], undo)
    for trial in done.runs:
        print(trial.run.path)
    with _progress() as progress:
        jobs = f", {len(done.jobs)} jobs ended" if done.jobs else ""
        left = f"; {done.left} are done and stay so" if done.left else ""
        progress.say(f"{len(done.runs)} runs {'may go on' if undo else 'cancelled'}{jobs}{left}")
    return None


@_verb("report")
def report(
    folder: Folder,
    form: Annotated[str, typer.Option("--format", "-f", help="table, json, csv or markdown.")] = "table",
) -> int | None:
    """Gather the scores there are, also while a sweep goes on: write results.csv, .json, .md, and print the table."""
    from gantool import results
    from gantool import sweep as verb
    from gantool.manifest import load_trials

    _choose("--format", form, ("table", "json", "csv", "markdown"))
    plan = verb.told_apart(load_trials(folder))
    rows, _ = verb.gather(plan)
    _print_results(plan, rows, form, results)
    return None


def _print_states(statuses: Any, form: str) -> None:
    """One line for each run, and how many are in each state."""
    from gantool.status import counts, status_rows
    from gantool.tables import print_rows

    summary = f"{len(statuses)} runs: " + ", ".join(f"{n} {state}" for state, n in counts(statuses).items())
    print_rows(status_rows(statuses), form, status_rows(statuses), summary)


@_verb("bench")
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

    _choose("--format", form, ("table", "json"))
    sets = [*(assignments or []), *([f"runtime.device={device}"] if device else [])]
    settings = load_run_config(config, sets)
    from gantool.bench import bench as run
    from gantool.data.pack import ensure_packed
    from gantool.terminal import print_table

    with _progress() as progress:
        data = ensure_packed(settings.data, Path(settings.runtime.data_dir), progress)
        result = dataclasses.asdict(run(settings, data, rounds, steps, progress))
    if form == "json":
        print(json.dumps(result, indent=1))
    else:
        print_table(["measure", "value"], [[key, str(value)] for key, value in result.items()])
    return None


@_verb("config-schema")
def config_schema(
    sweep: Annotated[bool, typer.Option("--sweep", help="The schema of sweep files instead of run configs.")] = False,
) -> int | None:
    """Print the JSON schema of configs, for completion and checks in editors."""
    from gantool.config.json_schema import run_schema, sweep_schema

    print(json.dumps(sweep_schema() if sweep else run_schema(), indent=1))
    return None


@_verb("doctor")
def doctor(
    form: Annotated[str, typer.Option("--format", "-f", help="table or json.")] = "table",
) -> int | None:
    """What works on this machine, and what to do about the rest; exit code 1 if something is broken."""
    from gantool import tables
    from gantool.doctor import examine

    _choose("--format", form, ("table", "json"))
    findings = examine()
    if form == "json":
        print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=1))
    else:
        tables.print_findings(findings)
    return EXIT_FAILED if any(finding.state == "problem" for finding in findings) else EXIT_DONE
