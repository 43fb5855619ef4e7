"""`python -m gantool` is the same program as `gantool`."""

from gantool.cli import main

main()
