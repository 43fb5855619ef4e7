"""`gantool cancel`: the mark comes before scancel, jobs with other runs go on, and `--undo` lets runs go on."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_slurm import FakeSlurm

from gantool import files
from gantool.cancel import cancel
from gantool.config.site import SiteConfig
from gantool.errors import GantoolError, UsageError
from gantool.manifest import SweepPlan
from gantool.progress import Silent
from gantool.runs import RunDirectory, eval_digest
from gantool.submit import submit
from gantool.sweep import plan

GRID = "base: {steps: 100, batch: 32}\nvary: {augment: [none, basic, advanced]}\nseeds: 2\n"
FOLDER = Path("sweeps/grid")


@pytest.fixture
def made(tmp_path: Path, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> SweepPlan:
    """Six runs that wait in the queue as tasks 0 to 5 of array 10."""
    return submitted(tmp_path, monkeypatch, GRID)


def submitted(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> SweepPlan:
    monkeypatch.chdir(folder)
    Path("grid.yaml").write_text(text)
    found = plan(Path("grid.yaml"), on_slurm=True)
    submit(found, SiteConfig(), Silent())
    return found


def ended(fake: FakeSlurm) -> list[str]:
    return [word for call in fake.calls("scancel") for word in call.words]


def names(made: SweepPlan, *numbers: int) -> set[str]:
    return {made.trials[number].run.path.name for number in numbers}


def marked(made: SweepPlan) -> set[str]:
    return {trial.run.path.name for trial in made.trials if trial.run.marked("cancelled")}


def test_a_whole_sweep(made: SweepPlan, slurm: FakeSlurm) -> None:
    done = cancel(FOLDER)
    assert len(done.runs) == 6 and marked(made) == names(made, *range(6))
    assert sorted(done.jobs) == sorted(ended(slurm)) == [f"10_{task}" for task in range(6)]
    again = cancel(FOLDER)
    assert again.runs == () and again.jobs == ()


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        (["augment=basic"], (2, 3)),
        (["seed=1"], (1, 3, 5)),
        (["augment=basic", "seed=1"], (3,)),
        (["state=queued", "seed=0"], (0, 2, 4)),
    ],
)
def test_a_selection(made: SweepPlan, slurm: FakeSlurm, words: list[str], numbers: tuple[int, ...]) -> None:
    done = cancel(FOLDER, words)
    assert marked(made) == names(made, *numbers) == {trial.run.path.name for trial in done.runs}
    assert sorted(ended(slurm)) == [f"10_{number}" for number in numbers]


def test_one_run_by_its_name_or_path(made: SweepPlan, slurm: FakeSlurm) -> None:
    cancel(FOLDER, [made.trials[4].run.path.name])
    cancel(FOLDER, [f"{made.trials[5].run.path}/"])
    assert marked(made) == names(made, 4, 5) and ended(slurm) == ["10_4", "10_5"]


@pytest.mark.parametrize(
    ("word", "problem", "fix"),
    [
        ("augmnt=basic", "there is no axis 'augmnt'", "axes: augment, seed, state"),
        ("augment=basik", "fits no run", "augment is one of: advanced, basic, none"),
        ("state=running", "fits no run", "state is one of: queued"),
        ("nothing", "fits no run", "give AXIS=LABEL, seed=N, state=STATE or a run"),
    ],
)
def test_a_selection_of_nothing(made: SweepPlan, slurm: FakeSlurm, word: str, problem: str, fix: str) -> None:
    with pytest.raises(UsageError, match=problem) as caught:
        cancel(FOLDER, [word])
    assert fix in str(caught.value.hint) and not marked(made) and not ended(slurm)


def test_done_runs_stay_done(made: SweepPlan, slurm: FakeSlurm) -> None:
    run = made.trials[0].run
    files.write_json(run.path / "result.json", {"step": 100, "scores": [], "eval": eval_digest(run.config())})
    done = cancel(FOLDER, ["augment=none"])
    assert done.left == 1 and marked(made) == names(made, 1) and ended(slurm) == ["10_1"]


def test_a_job_with_other_runs_goes_on(tmp_path: Path, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    made = submitted(tmp_path, monkeypatch, GRID + "slurm: {pack: 2}\n")
    cancel(FOLDER, ["seed=0"])
    assert marked(made) == names(made, 0, 2, 4) and ended(slurm) == []
    cancel(FOLDER, ["augment=none"])  # now both runs of task 0 are cancelled
    assert marked(made) == names(made, 0, 1, 2, 4) and ended(slurm) == ["10_0"]


def test_the_marks_are_set_even_if_slurm_is_silent(made: SweepPlan, slurm: FakeSlurm) -> None:
    slurm.answer("squeue", error="Unable to contact slurm controller")
    with pytest.raises(GantoolError, match="6 runs are marked and will not start again, but their jobs were not ended"):
        cancel(FOLDER)
    assert marked(made) == names(made, *range(6)) and not ended(slurm)
    slurm.mend("squeue")
    assert len(cancel(FOLDER).jobs) == 6  # said again, the jobs end too


def test_cancelled_stays_cancelled_until_undone(made: SweepPlan, slurm: FakeSlurm) -> None:
    cancel(FOLDER, ["seed=0"])
    assert submit(made, SiteConfig(), Silent(), retry_failed=True).num_runs == 0
    done = cancel(FOLDER, ["augment=none"], undo=True)
    assert {trial.run.path.name for trial in done.runs} == names(made, 0) and marked(made) == names(made, 2, 4)
    assert submit(made, SiteConfig(), Silent()).num_runs == 1


def test_what_scancel_ended_can_be_undone_too(made: SweepPlan, slurm: FakeSlurm) -> None:
    slurm.set("10_3", state="CANCELLED")
    assert len(cancel(FOLDER, ["state=cancelled"], undo=True).runs) == 1
    assert submit(made, SiteConfig(), Silent()).num_runs == 1


def test_a_single_run_without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("grid.yaml").write_text(GRID)
    run = RunDirectory.create(plan(Path("grid.yaml")).trials[0].config)
    assert len(cancel(run.path).runs) == 1 and run.marked("cancelled") and cancel(run.path).runs == ()
