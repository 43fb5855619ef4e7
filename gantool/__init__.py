"""gantool: train, sample, score and sweep GANs, on a laptop or a cluster."""

__version__ = "0.1.0"
