"""The command that submits: killed at the worst moment, called by two at once, called again; the cluster's limits; jobs
that Slurm holds; a cluster without accounting."""

from __future__ import annotations

import os
import signal

from .desk import FAST, SLOW, Desk, starts


def sbatch_that_kills_its_caller(desk: Desk) -> str:
    """A PATH on which sbatch submits, and then ends gantool before it can hear of it."""
    folder = desk.folder / "bin"
    folder.mkdir()
    (folder / "sbatch").write_text('#!/bin/sh\nPATH=${PATH#*:} sbatch "$@"\nkill -9 $PPID\n')
    (folder / "sbatch").chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_a_submission_that_was_killed_is_adopted_and_two_callers_share_the_work(desk: Desk) -> None:
    desk.write(seeds=2, vary={"augment": ["none"]})
    desk.pace(SLOW)
    desk.gantool("sweep", "sweep.yaml", code=-signal.SIGKILL, PATH=sbatch_that_kills_its_caller(desk))
    assert len(desk.tasks()) == 2
    assert {one.state for one in desk.status()} <= {"queued", "running"}  # also before it is adopted
    said = desk.gantool("sweep", "sweep.yaml")
    assert "adopted: array" in said and "nothing to submit" in said and len(desk.tasks()) == 2
    # Two more runs, and two people who start them.
    desk.write(seeds=4, vary={"augment": ["none"]})
    callers = [desk.start("sweep", "sweep.yaml") for _ in range(2)]
    words = [caller.communicate()[1] for caller in callers]
    assert [caller.returncode for caller in callers] == [0, 0]
    assert sorted("2 submitted" in text for text in words) == [False, True], words
    assert len(desk.tasks()) == 4
    desk.pace(FAST)
    desk.wait_for_end()
    assert [len(starts(run)) for run in desk.runs()] == [1, 1, 1, 1]
    # It is finished: nothing more to do, but for one more seed.
    said = desk.gantool("sweep", "sweep.yaml")
    assert "4 runs (4 done before): nothing to submit" in said and desk.ended()
    desk.site["sbatch"] = {"hold": True}
    desk.write(seeds=5, vary={"augment": ["none"]})
    assert "5 runs (4 done, 1 planned before): 1 submitted" in desk.gantool("sweep", "sweep.yaml")
    assert len(desk.tasks()) == 1


def test_jobs_that_wait_for_a_person(desk: Desk) -> None:
    desk.write()
    desk.pace(SLOW)
    desk.gantool("sweep", "sweep.yaml")
    (run,) = desk.runs()
    desk.wait_for_step(run, 0)
    job = desk.status()[0].job
    desk.slurm("scontrol", "requeuehold", job)
    desk.wait_for_states("held")
    said = desk.gantool("sweep", "sweep.yaml")
    assert f"released, held by Slurm after a failed launch: {job}" in said and "(1 held before)" in said
    desk.wait("the next start", lambda: len(starts(run)) == 2)
    # Held by a person: it stays so.
    desk.slurm("scontrol", "requeue", job)
    desk.wait_for_states("requeued")
    desk.slurm("scontrol", "hold", job)
    desk.wait_for_states("held")
    said = desk.gantool("sweep", "sweep.yaml")
    assert f"to let them go on: scontrol release {job}" in said
    assert desk.status()[0].state == "held"
    desk.pace(FAST)
    desk.slurm("scontrol", "release", job)
    desk.wait_for_end()
    desk.assert_undisturbed(run)


def test_limits_of_the_cluster_are_known_before_anything_is_submitted(desk: Desk) -> None:
    desk.write(slurm={"time": "2h"})
    said = desk.gantool("sweep", "sweep.yaml", code=2)
    assert "slurm.time: found 2h, but the partition main allows 60m" in said
    desk.site["partition"] = "hihg"
    desk.write()
    assert "the cluster has no partition 'hihg'; it has main, high" in desk.gantool("sweep", "sweep.yaml", code=2)
    desk.site["partition"] = "high"
    desk.write(slurm={"gpus": 4})
    said = desk.gantool("sweep", "sweep.yaml", code=1)
    assert "sbatch refused the jobs" in said and "configuration is not available" in said
    desk.write()
    said = desk.gantool("sweep", "sweep.yaml", "--dry-run")
    assert "#SBATCH --partition=high" in said and "to start at" in said
    assert desk.ended() and not list(desk.folder.glob("sweeps/*/jobs/*.json"))


def test_without_accounting_the_states_are_right_all_the_same(bare_desk: Desk) -> None:
    desk = bare_desk
    desk.write(seeds=4, vary={"augment": ["none"]})
    desk.pace(SLOW)
    (desk.runs_dir / "broken-s1").touch()
    desk.gantool("sweep", "sweep.yaml")
    runs = desk.runs()
    for run in (runs[0], runs[2], runs[3]):
        desk.wait_for_step(run, 0)
    desk.wait_for_states("running", "failed", "running", "running")
    jobs = [one.job for one in desk.status()]
    os.kill(runs[2].status()["pid"], signal.SIGKILL)
    desk.slurm("scancel", jobs[3])
    desk.pace(FAST)
    desk.wait("the end", desk.ended)
    desk.wait_for_states("done", "failed", "failed", "cancelled")
    desk.assert_undisturbed(runs[0])
    assert f"job {jobs[2]} failed" in desk.status()[2].message
    (desk.runs_dir / "broken-s1").unlink()
    assert "2 submitted" in desk.gantool("sweep", "sweep.yaml", "--retry-failed")
    desk.wait("the end", desk.ended)
    desk.wait_for_states("done", "done", "done", "cancelled")
    desk.assert_undisturbed(runs[1])
