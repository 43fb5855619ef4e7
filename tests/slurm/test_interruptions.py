"""Runs that are stopped by signals, time limits, preemption, requeues and power cuts end with the bits of the runs that
nothing disturbed."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from gantool.runs import RunDirectory

from .desk import FAST, SLOW, STUCK, Desk, output, starts


def jobs_of(desk: Desk) -> dict[str, RunDirectory]:
    """Run by the id of its array task."""
    found = {one.job: RunDirectory(one.run) for one in desk.status()}
    assert "" not in found
    return found


def only_run(desk: Desk) -> RunDirectory:
    (run,) = desk.runs()
    return run


def nodes_of(run: RunDirectory) -> list[str]:
    """The nodes it was started on, one after the other."""
    return re.findall(r"^# started .* on (\w+): job", output(run), re.MULTILINE)


def test_two_time_limits_in_a_row(desk: Desk) -> None:
    # Slurm looks every 30 seconds whom to tell, and tells up to 30 seconds early: here 30 to 60 after each start.
    desk.site["signal_seconds"] = 60
    desk.write(slurm={"time": "2m"})
    desk.pace(SLOW)
    desk.gantool("sweep", "sweep.yaml")
    run = only_run(desk)
    desk.wait("the third start", lambda: len(starts(run)) > 2 and starts(run)[-1]["step"] > 0)
    desk.pace(FAST)
    desk.wait_for_end()
    desk.assert_undisturbed(run)
    steps = [start["step"] for start in starts(run)]
    assert steps == sorted(steps) and steps[0] == 0
    assert len({start["job"] for start in starts(run)}) == 1  # one job all along
    # By Slurm's signal, or by the clock where the signal came while Python was starting.
    assert len(re.findall(r"stopped by (?:SIGUSR2|the time limit) at step", output(run))) == len(steps) - 1


def test_a_signal_and_a_requeue_of_one_array_task_leave_the_others_alone(desk: Desk) -> None:
    desk.write(seeds=3, vary={"augment": ["none"]})
    desk.pace(SLOW)
    desk.gantool("sweep", "sweep.yaml")
    runs = desk.runs()
    for run in runs:
        desk.wait_for_step(run, 5)
    told, requeued, alone = (one.job for one in desk.status())
    assert len({job.split("_")[0] for job in (told, requeued, alone)}) == 1  # tasks of one array
    desk.slurm("scancel", "--signal=USR2", told)
    desk.slurm("scontrol", "requeue", requeued)
    desk.wait("both to start again", lambda: [len(starts(run)) for run in runs[:2]] == [2, 2])
    assert starts(runs[0])[1]["step"] > 0
    desk.pace(FAST)
    desk.wait_for_end()
    assert [len(starts(run)) for run in runs] == [2, 2, 1]
    assert "stopped by SIGUSR2 at step" in output(runs[0]) and "stopped: SIGUSR2" in words_of_jobs(desk)
    assert [start["job"] for start in starts(runs[2])] == [alone]
    desk.wait("the end of what the requeued job had started", lambda: not processes_of(desk))
    desk.assert_undisturbed(runs[0])
    desk.assert_undisturbed(runs[1])


def processes_of(desk: Desk) -> list[str]:
    """Command lines on all nodes that have to do with the sweep."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [line for line in found if str(desk.folder) in line]


def words_of_jobs(desk: Desk) -> str:
    return "".join(path.read_text() for path in sorted((desk.folder / "sweeps/sweep/jobs").glob("*.txt")))


def preempted(desk: Desk, node: str) -> RunDirectory:
    """A run that had to give way to a job of the partition high, and has ended."""
    desk.site |= {"exclude": None, "sbatch": {"nodelist": node}}
    desk.write(slurm={"mem": "5G"})
    desk.pace(SLOW)
    desk.gantool("sweep", "sweep.yaml")
    run = only_run(desk)
    desk.wait_for_step(run, 5)
    words = ("--partition=high", f"--nodelist={node}", "--mem=5G", "--time=5", "--output=/dev/null", "--wrap=sleep 300")
    high = desk.slurm("sbatch", "--parsable", f"--chdir={desk.folder}", *words).strip()
    desk.wait("the other job to run", lambda: desk.slurm("squeue", "-h", "-j", high, "-o", "%T").strip() == "RUNNING")
    desk.wait_for_states("requeued")
    desk.pace(FAST)
    desk.slurm("scancel", high)
    desk.wait_for_end()
    desk.assert_undisturbed(run)
    assert len(starts(run)) == 2 and starts(run)[1]["step"] > 5
    return run


def test_preempted_by_a_job_that_is_more_important(desk: Desk) -> None:
    assert "stopped by SIGUSR2 at step" in output(preempted(desk, "node3"))


def test_preempted_where_slurm_sends_no_other_signal_than_sigterm(bare_desk: Desk) -> None:
    run = preempted(bare_desk, "node2")
    assert "stopped by SIGTERM at step" in output(run)
    assert "waiting for the end that SIGTERM announced" in words_of_jobs(bare_desk)  # else Slurm would not requeue it


def test_power_cuts_and_a_node_that_has_them_twice(desk: Desk) -> None:
    desk.site = {"signal_seconds": 30, "sbatch": {"nodelist": "node6"}}
    desk.write()
    desk.pace(SLOW)
    desk.gantool("sweep", "sweep.yaml")
    run = only_run(desk)
    for cut in (1, 2):
        desk.wait_for_step(run, 15)
        desk.cluster.crash("node6")
        desk.wait("Slurm to see it", lambda: "node6 down" in desk.slurm("sinfo", "-h", "-N", "-o", "%N %t"))
        desk.wait_for_states("requeued")
        desk.cluster.revive("node6")
        desk.wait("a start on the node that is back", lambda cut=cut: len(starts(run)) == cut + 1)
    desk.pace(FAST)
    desk.wait_for_end()
    desk.assert_undisturbed(run)
    steps = [start["step"] for start in starts(run)]
    assert len(steps) == 3 and 0 < steps[1] <= steps[2]
    assert not any(step % 10 for step in steps)  # from checkpoints on the way: what came after them was lost
    # More runs of the sweep stay away from that node.
    desk.site["sbatch"] = {"hold": True}
    desk.write(seeds=2)
    said = desk.gantool("sweep", "sweep.yaml")
    assert "lost these nodes twice: node6" in said and "1 submitted" in said
    (job,) = desk.tasks()
    assert "ExcNodeList=node6" in desk.slurm("scontrol", "show", "job", job)


def test_a_job_that_never_gets_further_fails(desk: Desk) -> None:
    desk.write()
    desk.pace(SLOW)
    desk.gantool("sweep", "sweep.yaml")
    run = only_run(desk)
    for start in (1, 2):
        desk.wait("a start", lambda start=start: len(starts(run)) == start)
        desk.pace(STUCK)  # before the first checkpoint, and deaf to signals
        desk.wait("a step without end", (desk.runs_dir / "stuck").exists)
        desk.slurm("scontrol", "requeue", desk.status()[0].job)
        desk.wait("its end", lambda: not run.locked())
        desk.pace(SLOW)
        (desk.runs_dir / "stuck").unlink()
    desk.wait_for_states("failed")
    desk.wait("the end", desk.ended)
    (status,) = desk.status()
    assert "stalled: job" in status.message and "started 3 times at step 0" in status.message
    assert "nothing to submit" in desk.gantool("sweep", "sweep.yaml", code=1)
    desk.pace(FAST)
    assert "1 submitted" in desk.gantool("sweep", "sweep.yaml", "--retry-failed")
    desk.wait_for_end()
    desk.assert_undisturbed(run)
