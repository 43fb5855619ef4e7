"""What was cancelled, by scancel or `gantool cancel`, running or waiting, stays so until a person says otherwise."""

from __future__ import annotations

from .desk import FAST, SLOW, Desk, output


def test_cancelled_runs_stay_cancelled(desk: Desk) -> None:
    desk.write(seeds=4, vary={"augment": ["none"]}, slurm={"at_once": 2})
    desk.pace(SLOW)
    desk.gantool("sweep", "sweep.yaml")
    runs = desk.runs()
    desk.wait_for_states("running", "running", "queued", "queued")
    for run in runs[:2]:
        desk.wait_for_step(run, 5)
    jobs = [one.job for one in desk.status()]
    assert desk.status()[2].message == "JobArrayTaskLimit"  # why it waits
    desk.slurm("scancel", jobs[2])
    desk.gantool("cancel", "sweeps/sweep", "seed=3")
    desk.slurm("scancel", jobs[0])
    desk.gantool("cancel", "sweeps/sweep", runs[1].path.name)
    desk.wait("the end", desk.ended)
    desk.wait_for_states("cancelled", "cancelled", "cancelled", "cancelled")
    # What the running ones had is saved.
    assert "everything is saved" in output(runs[0]) and "everything is saved" in output(runs[1])
    desk.pace(FAST)
    said = desk.gantool("sweep", "sweep.yaml")
    assert "(4 cancelled before): nothing to submit" in said and desk.ended()
    before = runs[0].status()["step"]
    for seed in (0, 1):
        assert "1 run may go on" in desk.gantool("cancel", "--undo", "sweeps/sweep", f"seed={seed}")
    desk.gantool("sweep", "sweep.yaml")
    desk.wait("the end", desk.ended)
    desk.wait_for_states("done", "done", "cancelled", "cancelled")
    assert before > 0 and f"resuming at step {before}" in output(runs[0])
    desk.assert_undisturbed(runs[0])
    desk.assert_undisturbed(runs[1])
