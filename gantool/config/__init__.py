"""Configs: what can be written (`schema`), how it is read (`document`, `loader`), sweeps (`grid`)."""

from gantool.config.loader import load_run_config
from gantool.config.schema import RunConfig

__all__ = ["RunConfig", "load_run_config"]
