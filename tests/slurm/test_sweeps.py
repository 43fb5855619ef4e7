"""Sweeps as job arrays: the same results as on one machine; nothing is submitted twice, nothing is lost."""

from __future__ import annotations

from .desk import GRID, Desk, library


def test_a_grid_ends_in_the_results_of_one_machine_bit_for_bit(desk: Desk) -> None:
    desk.write(vary=GRID, seeds=2, eval={"num": 100})
    said = desk.gantool("sweep", "sweep.yaml")
    assert "8 runs (8 planned before): 8 submitted" in said
    assert said.count("submitted: array") == 2  # of 4 at most, as this cluster wants them
    desk.wait_for_end()
    for run in desk.runs():
        desk.assert_undisturbed(run)
    # The job that waited for all others has written the same table.
    here, there = (folder / "sweeps/sweep/results.md" for folder in (desk.folder, library(desk.shared)))
    assert here.read_text() == there.read_text()
