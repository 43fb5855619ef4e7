"""sweep, status, cancel, report."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gantool.cli import completion
from gantool.cli.program import (
    Assignments,
    complain,
    format_option,
    options,
    register,
    terminal_progress,
    warn_of_loss,
)
from gantool.errors import EXIT_FAILED, EXIT_INTERRUPTED, DataError, GantoolError, UsageError, choose
from gantool.progress import counted

if TYPE_CHECKING:
    from gantool.manifest import SweepPlan
    from gantool.status import TrialStatus
    from gantool.terminal import TerminalProgress

_FORMATS = ("table", "json", "csv", "markdown", "latex")


@register("sweep")
def sweep(
    config: Annotated[Path, typer.Argument(help="A sweep config.", autocompletion=completion.configs)],
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
    form: Annotated[str, format_option(*_FORMATS)] = "table",
) -> int | None:
    """Run what is missing of a grid of runs, as Slurm jobs where there is Slurm, else here; print the table at the end.
    The same command continues, retries and extends."""
    from gantool import cluster
    from gantool import sweep as verb
    from gantool.data.pack import ensure_packed
    from gantool.launch import program
    from gantool.manifest import write_manifest
    from gantool.status import plan_states

    choose("--format", form, _FORMATS)
    if cluster.available() and not local:
        if slots is not None:
            raise UsageError("--slots is for runs on this machine, but here is Slurm", "add --local, or leave it out")
        return _submit(config, assignments or [], site, dry_run, retry_failed, form)
    with terminal_progress() as progress:
        plan = verb.plan(config, assignments or [], progress=progress)
    if not local and (silence := verb.silence(plan)):
        hint = "go to a login node of the cluster; or add --local, which runs here what is not done"
        raise UsageError(f"sweep {plan.name}: {silence}", hint)
    if dry_run:
        with terminal_progress() as progress:
            states = plan_states(plan, progress)
            _tell_of_data(plan, progress)
        _print_states(states, form)
        return None
    with terminal_progress() as progress:
        warn_of_loss(progress, *(Path(trial.config.runtime.runs_dir) for trial in plan.trials))
        write_manifest(plan)  # so that `status` knows the sweep while its data and scores are prepared
        missing = [trial.config for trial in verb.missing(plan, progress, retry_failed)]
        for data, folder in dict.fromkeys((item.data, item.runtime.data_dir) for item in missing):
            ensure_packed(data, Path(folder), progress)
        if any(item.eval for item in missing):
            _prepare_scores(config, assignments or [])
        words = ["--verbose"] if options["verbose"] else []  # for the output.txt of each run
        command = [*program(), *words, "train"]
        outcome = verb.run(plan, progress, slots=slots, retry_failed=retry_failed, command=command)
        for path in outcome.files:
            progress.say(f"written: {path}")
        progress.say(
            f"grids, curves and snapshots: <run>/samples, <run>/curves.png, <run>/snapshots in {_runs_dirs(plan)}"
        )
        if outcome.exit_code == EXIT_INTERRUPTED:
            progress.say("some runs go on elsewhere: run the same command again when they are done")
    _write_page(plan, outcome.rows)
    _print_results(plan, outcome.rows, form)
    return outcome.exit_code


def _tell_of_data(plan: SweepPlan, progress: TerminalProgress) -> None:
    """Say which data of runs that are not done must be prepared first."""
    from gantool.data.pack import open_packed

    left = [trial.config for trial in plan.trials if trial.run.result() is None]
    for data, folder in dict.fromkeys((one.data, one.runtime.data_dir) for one in left if one.data.name != "shapes"):
        try:
            open_packed(data, Path(folder))
        except DataError as error:
            progress.say(f"warning: {error.message}; {error.hint}")


def _submit(
    config: Path, assignments: list[str], site_file: Path | None, dry_run: bool, retry_failed: bool, form: str
) -> int | None:
    """`gantool sweep` where there is Slurm."""
    from gantool import sweep as verb
    from gantool.config.site import load_site
    from gantool.data.pack import ensure_packed
    from gantool.status import plan_states
    from gantool.submit import preview, submit

    site, _ = load_site(site_file)
    with terminal_progress() as progress:
        plan = verb.plan(config, assignments, on_slurm=True, progress=progress)
    if dry_run:
        with terminal_progress() as progress:
            script, said = preview(plan, site, progress, retry_failed)
            states = plan_states(plan, progress)
            _tell_of_data(plan, progress)
        _print_states(states, form)
        if script and form == "table":
            print(f"\n{script}\nsbatch --test-only: {said}")
        return None
    with terminal_progress() as progress:
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
        progress.say(f"sweep {plan.name}: {counted(len(plan.trials), 'run')} ({before} before): {what}")
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
    with terminal_progress() as progress:
        rows, _ = verb.gather(plan, progress)
    _write_page(plan, rows)
    _print_results(plan, rows, form)
    return EXIT_FAILED if {"failed", "diverged"} & set(counts) else None


def _prepare_scores(path: Path, assignments: list[str]) -> None:
    """`gantool prepare` in a process of its own: what is missing for the scores is known before the first run starts,
    and made once instead of by several runs at the same time. A sweep itself never loads torch."""
    from gantool.launch import program

    words = [word for assignment in assignments for word in ("--set", assignment)]
    told = [f"--{name}" for name in ("quiet", "verbose") if options[name]]
    command = [*program(), *told, "prepare", str(path), *words]
    code = subprocess.run(command, stdout=subprocess.DEVNULL).returncode
    if code in (EXIT_INTERRUPTED, -signal.SIGINT):
        raise KeyboardInterrupt
    if code:
        raise GantoolError("the scores of the runs cannot be prepared (see above)", "mend that; nothing was started")


def _runs_dirs(plan: Any) -> str:
    return ", ".join(dict.fromkeys(str(trial.run.path.parent) for trial in plan.trials))


def _print_results(plan: Any, rows: Any, form: str) -> None:
    from gantool import result_tables as results
    from gantool.results import grouped
    from gantool.terminal import print_table

    if form == "json":
        print(results.sweep_json(plan, rows), end="")
    elif form == "csv":
        print(results.to_csv(results.flat(rows)), end="")
    elif form == "markdown":
        print(results.sweep_markdown(plan, rows), end="")
    elif form == "latex":
        print(results.sweep_latex(plan, rows), end="")
    else:
        headers, cells = results.table(grouped(rows, plan.report), plan.report)
        if any(row.values for row in rows):
            print_table(headers, cells, results.caption(plan, rows))
        else:
            print("no scores yet", results.caption(plan, rows).partition("\n")[2], sep="\n")


Folder = Annotated[
    Path,
    typer.Argument(
        help="sweeps/NAME, a run directory, or a folder of run directories.",
        autocompletion=completion.sweeps_and_runs,
    ),
]


@register("status")
def status(
    folder: Folder,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Again every 30 seconds, until Ctrl-C.")] = False,
    show: Annotated[
        bool, typer.Option("--show", help="Also draw the newest sample grids of runs that go on, or of the one run.")
    ] = False,
    form: Annotated[str, format_option("table", "json", "csv", "markdown")] = "table",
) -> int | None:
    """What every run is doing: from its files, and from Slurm where it was submitted."""
    choose("--format", form, ("table", "json", "csv", "markdown"))
    for name, wanted in (("--watch", watch), ("--show", show)):
        if wanted and form != "table":
            raise UsageError(f"{name} goes with --format table", "leave one of them out")
    if show:
        from gantool.terminal import check_pictures

        check_pictures()
    with contextlib.suppress(KeyboardInterrupt) if watch else contextlib.nullcontext():
        _show_states(folder, watch, form, show)
    return None


def _show_grids(states: list[TrialStatus]) -> None:
    from gantool.status import newest_grids
    from gantool.terminal import show_picture

    grids = newest_grids(states)
    for path in grids:
        print(f"\n{path}")
        try:
            show_picture(path.read_bytes())
        except OSError:  # half written, or gone by now
            complain("warning", f"{path}: cannot be shown", "try again")
    if not grids:
        hint = "the first is drawn when training starts, the others at runtime.sample_every; a done run: status RUN"
        complain("warning", "no run that goes on has a sample grid", hint)


def _show_states(folder: Path, watch: bool, form: str, show: bool) -> None:
    from gantool.status import trial_states
    from gantool.terminal import clear_screen

    while True:
        with terminal_progress() as progress:
            states, silence = trial_states(folder, progress)
        if watch:
            clear_screen()
        _print_states(states, form)
        if show:
            _show_grids(states)
        if silence:
            complain("warning", f"{silence}: the states are those of the files alone", None)
        if not watch:
            return
        time.sleep(30)


@register("cancel")
def cancel(
    folder: Folder,
    which: Annotated[
        list[str] | None, typer.Argument(help="Only these: AXIS=LABEL, seed=N, state=STATE (all must fit), or a run.")
    ] = None,
    undo: Annotated[bool, typer.Option("--undo", help="Let cancelled runs go on at the next gantool sweep.")] = False,
) -> int | None:
    """End runs for good, on the cluster or here: what they have is saved, and no job starts them again."""
    from gantool.cancel import cancel as run

    with terminal_progress() as progress:
        done = run(folder, which or [], undo, progress)
    for trial in done.runs:
        print(trial.run.path)
    with terminal_progress() as progress:
        jobs = f", {counted(len(done.jobs), 'job')} ended" if done.jobs else ""
        left = f"; {done.left} are done and stay so" if done.left else ""
        progress.say(f"{counted(len(done.runs), 'run')} {'may go on' if undo else 'cancelled'}{jobs}{left}")
    return None


@register("report")
def report(
    folders: Annotated[
        list[Path],
        typer.Argument(
            help="sweeps/NAME, a run directory, or a folder of run directories; or several.",
            autocompletion=completion.sweeps_and_runs,
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the files; default: the one folder that is given.")
    ] = None,
    price: Annotated[
        float | None, typer.Option(min=0, max=1e9, help="Of one hour of a device, to show what runs cost.")
    ] = None,
    form: Annotated[str, format_option(*_FORMATS)] = "table",
) -> int | None:
    """Show what there is, also while a sweep goes on: write report.html (one file, for a browser), results.csv, .jsonl,
    .md and .tex, and print the table."""
    from gantool import sweep as verb
    from gantool.manifest import load_trials
    from gantool.result_tables import write_results
    from gantool.results import collect

    choose("--format", form, _FORMATS)
    plans = [verb.told_apart(load_trials(folder)) for folder in folders]
    if len(plans) > 1 and out is None:
        raise UsageError("several folders are reported in a folder of their own", "add --out FOLDER")
    if out is not None and out.exists() and not out.is_dir():
        raise UsageError(f"--out: found {out}, which is a file, expected a folder", "give another name")
    plan = plans[0] if len(plans) == 1 else verb.merged(plans)
    if not any(trial.run.path.exists() for trial in plan.trials):
        text = f"none of the {len(plan.trials)} runs is there (the first: {plan.trials[0].run.path})"
        raise UsageError(f"{plan.folder}: {text}", "start the sweep; or bring the runs to where they were")
    plan = replace(plan, folder=out or plan.folder)
    with terminal_progress() as progress:
        for note in plan.notes:
            progress.say(note)
        rows = collect(plan.trials, progress)
    failure = None
    try:  # before the table is printed, whose reader may be gone: `gantool report DIR | head`
        with terminal_progress() as progress:
            write_results(plan, rows, progress)
        _write_page(plan, rows, price)
    except GantoolError as error:
        failure = GantoolError(error.message, f"{error.hint}; or choose another folder: --out FOLDER")
    _print_results(plan, rows, form)
    if failure:
        raise failure
    return None


def _write_page(plan: Any, rows: Any, price: float | None = None) -> None:
    from gantool.report.page import write_page

    with terminal_progress() as progress:
        progress.say(f"written: {write_page(plan, rows, progress, price)}")


def _print_states(statuses: Any, form: str) -> None:
    """One line for each run, and how many are in each state."""
    from gantool.status import counts, short_rows, status_rows
    from gantool.tables import print_rows

    rows, folder = short_rows(statuses) if form == "table" else (status_rows(statuses), "")
    number = counted(len(statuses), "run") + (f" in {folder}" if folder else "")
    summary = f"{number}: " + ", ".join(f"{n} {state}" for state, n in counts(statuses).items())
    print_rows(rows, form, rows, summary)
