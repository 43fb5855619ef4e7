"""Datasets: sources (read the originals), pack (one uint8 file), loader (order as a function), augment."""
