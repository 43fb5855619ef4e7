"""Runs that fail leave the others alone, and say why; several runs on one GPU; ranks on several nodes."""

from __future__ import annotations

import json
import re

from .desk import FAST, SLOW, Desk, assert_same_weights, output, starts


def test_a_run_that_fails_is_reported_with_its_cause_and_can_be_mended(desk: Desk) -> None:
    desk.write(seeds=3, vary={"augment": ["none"]})
    desk.pace(FAST)
    broken = desk.runs_dir / "broken-s1"
    broken.touch()
    said = desk.gantool("sweep", "sweep.yaml")
    report = re.findall(r"job (\d+) writes the results", said)
    assert len(report) == 1
    desk.wait("the end of all, the results too", desk.ended)
    desk.wait_for_states("done", "failed", "done")
    assert "this loss is broken" in desk.status()[1].message
    text = (desk.folder / "sweeps/sweep/results.md").read_text()
    assert "Runs without a score" in text
    failed = text[text.index(desk.runs()[1].path.name) :]
    assert "failed: " in failed and "this loss is broken" in failed and "RuntimeError" in failed
    said = desk.gantool("sweep", "sweep.yaml", code=1)
    assert "nothing to submit" in said and "--retry-failed" in said and desk.ended()
    broken.unlink()
    assert "(2 done, 1 failed before): 1 submitted" in desk.gantool("sweep", "sweep.yaml", "--retry-failed")
    desk.wait_for_end()
    desk.assert_undisturbed(desk.runs()[0])
    desk.assert_undisturbed(desk.runs()[1])


def test_three_runs_share_one_gpu(desk: Desk) -> None:
    desk.write(seeds=3, vary={"augment": ["none"]}, slurm={"pack": 3, "gpus": 1})
    desk.pace(SLOW)
    desk.gantool("sweep", "sweep.yaml")
    runs = desk.runs()
    for run in runs:
        desk.wait_for_step(run, 5)
    (job,) = desk.tasks()
    assert {one.job for one in desk.status()} == {job}
    (desk.runs_dir / "broken-s1").touch()
    desk.wait_for_states("running", "failed", "running")
    assert "gres/gpu=1" in desk.slurm("scontrol", "show", "job", job)
    # Stopped together, each with a mark of its own; the one that failed does not come back with them.
    desk.slurm("scancel", "--signal=USR2", job)
    desk.wait("both to start again", lambda: [len(starts(run)) for run in runs] == [2, 1, 2])
    desk.pace(FAST)
    desk.wait("the end", desk.ended)
    desk.wait_for_states("done", "failed", "done")
    assert [output(run).count("# started") for run in runs] == [2, 1, 2]
    assert [[start["shared_by"] for start in starts(run)] for run in runs] == [[3, 2], [3], [3, 2]]
    assert all("stopped by SIGUSR2" in output(run) for run in (runs[0], runs[2]))
    desk.assert_undisturbed(runs[0])
    text = (desk.folder / "sweeps/sweep/results.md").read_text()
    assert "this loss is broken" in text


def test_two_nodes_with_two_ranks_each_give_the_weights_of_one_process(desk: Desk) -> None:
    # A large eps keeps Adam from blowing rounding up where a gradient is all but zero.
    adam = {"lr": 2e-4, "eps": 1e-3}
    keys = {
        "generator": {"latent_dim": 8, "width": 4, "max_width": 8, "norm": "none"},
        "discriminator": {"width": 4, "max_width": 8, "norm": "none"},
        "optimizer": {"generator": adam, "discriminator": adam},
    }
    desk.write("one", **keys)
    desk.gantool("sweep", "--local", "one.yaml")
    (one,) = desk.runs("one")
    alone = desk.folder / "alone"
    one.path.rename(alone)
    desk.write(slurm={"nodes": 2, "tasks": 2}, **keys)
    desk.pace(SLOW / 4)
    desk.gantool("sweep", "sweep.yaml")
    (run,) = desk.runs()
    assert run.path.name == one.path.name
    desk.wait_for_step(run, 15)
    # The signal reaches all ranks, at different steps: they agree on one.
    desk.slurm("scancel", "--signal=USR2", desk.status()[0].job)
    desk.wait("the next start", lambda: len(starts(run)) == 2)
    desk.pace(FAST)
    desk.wait_for_end()
    facts = json.loads((run.path / "run.json").read_text())
    assert facts["num_ranks"] == 4
    names = ["output.txt", *(f"output-rank{rank}.txt" for rank in (1, 2, 3))]
    hosts = [re.findall(r"on (\w+): job", (run.path / name).read_text()) for name in names]
    assert all(len({host[start] for host in hosts}) == 2 for start in (0, 1))
    assert_same_weights(alone, run.path, 1e-5)
