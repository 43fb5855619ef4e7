"""Sweeps on a real Slurm."""
