"""Several ranks of one command on this machine: `gantool train --nproc N`. Torch-free; torchrun or srun do as well."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from types import FrameType

from gantool.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED

GRACE_SECONDS = 10.0


def launch(num_ranks: int, arguments: list[str]) -> int:
    """Run `gantool ARGUMENTS` as ranks 0..num_ranks-1, pass signals on, return the exit code of all: the first failure
    ends the others; 75 if any was interrupted."""
    port = _free_port()
    children = [subprocess.Popen([sys.executable, "-m", "gantool", *arguments], env=_environment(rank, num_ranks, port))
                for rank in range(num_ranks)]  # fmt: skip

    def pass_on(number: int, frame: FrameType | None) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    signal.signal(signal.SIGINT, lambda number, frame: None)  # the terminal sends it to the children too
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, pass_on)
    failed_at = None
    while any(child.poll() is None for child in children):
        if failed_at is None and any(child.poll() not in (None, EXIT_DONE) for child in children):
            failed_at = time.monotonic()  # a rank that left keeps the others waiting for it in vain
        if failed_at is not None and time.monotonic() - failed_at > GRACE_SECONDS:
            for child in children:
                child.kill()
        time.sleep(0.05)
    ends = [child.wait() for child in children]
    failures = [code for code in ends if code not in (EXIT_DONE, EXIT_INTERRUPTED)]
    if failures:
        return next((code for code in failures if code > 0), EXIT_FAILED)
    return EXIT_INTERRUPTED if EXIT_INTERRUPTED in ends else EXIT_DONE


def _environment(rank: int, num_ranks: int, port: int) -> dict[str, str]:
    world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_ranks, "LOCAL_WORLD_SIZE": num_ranks}
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return os.environ | {key: str(value) for key, value in (world | place).items()}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
