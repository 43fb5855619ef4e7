"""How gantool starts: quickly, and as several ranks of one command on this machine: `gantool train --nproc N`.
Torch-free; torchrun or srun do as well."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from gantool.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED
from gantool.progress import Progress, Silent

GRACE_SECONDS = 10.0
PATIENCE_SECONDS = 300.0
_MODULES = 1100  # torch 2.14 and what gantool uses of it, give or take a tenth


def program() -> list[str]:
    """The command line of the gantool that runs now. Not by -m where it is installed: that would also import from the
    working directory, where a file may have the name of a module."""
    script = Path(sys.executable).with_name("gantool")
    return [str(script)] if script.is_file() else [sys.executable, "-m", "gantool"]


@contextlib.contextmanager
def quick_imports(progress: Progress) -> Iterator[None]:
    """Without looking for garbage while torch is loaded, nor in what it has made, which stays. Where this takes more
    than half a second, as from a busy shared filesystem, `progress` of rank 0 hears how far it is."""
    if "torch" in sys.modules:
        yield
        return
    ended = threading.Event()
    told = progress if os.environ.get("RANK", "0") == "0" else Silent()
    teller = threading.Thread(target=_tell_of_imports, args=(told, ended, len(sys.modules)), daemon=True)
    teller.start()
    gc.disable()
    try:
        yield
    finally:
        ended.set()
        teller.join()
        gc.freeze()
        gc.enable()


def _tell_of_imports(progress: Progress, ended: threading.Event, before: int) -> None:
    """Tell how many modules have been loaded, until `ended`, of about as many as torch brings."""
    began = time.monotonic()
    if ended.wait(0.5):
        return
    while not ended.wait(0.2):
        done = min(len(sys.modules) - before, _MODULES - 1)
        left = (time.monotonic() - began) * (_MODULES - done) / done if done > 0 else None
        progress.step("load torch", done, _MODULES, "", left)
    if "torch" in sys.modules:  # else it failed, and the words of that are enough
        progress.step("load torch", _MODULES, _MODULES)


def launch(num_ranks: int, arguments: list[str]) -> int:
    """Run `gantool ARGUMENTS` as ranks 0..num_ranks-1, pass signals on, return the exit code of all: the first failure
    ends the others; 75 if any was interrupted."""
    port = _free_port()
    children: list[subprocess.Popen[bytes]] = []
    stopping = False

    def pass_on(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP):
        signal.signal(number, pass_on)
    for rank in range(num_ranks):
        environment = _environment(rank, num_ranks, port)
        # A session of their own: Ctrl-C reaches the ranks through this process alone, and once.
        command = [*program(), *arguments]
        children.append(subprocess.Popen(command, env=environment, start_new_session=True))
    left_at: dict[int, float] = {}
    while any(child.poll() is None for child in children):
        now = time.monotonic()
        for rank, child in enumerate(children):
            if child.poll() not in (None, EXIT_DONE):
                left_at.setdefault(rank, now)
        # A rank that left keeps the others waiting for it in vain; one that was interrupted lets rank 0 save first.
        for rank, since in left_at.items():
            patience = PATIENCE_SECONDS if children[rank].returncode == EXIT_INTERRUPTED else GRACE_SECONDS
            if now - since > patience:
                for child in children:
                    child.kill()
        time.sleep(0.05)
    codes = [child.wait() for child in children]
    if stopping or EXIT_INTERRUPTED in codes:  # ranks that were still starting die of the signal itself
        codes = [EXIT_INTERRUPTED if code < 0 else code for code in codes]
    failures = [code for code in codes if code not in (EXIT_DONE, EXIT_INTERRUPTED)]
    if failures:
        return next((code for code in failures if code > 0), EXIT_FAILED)
    return EXIT_INTERRUPTED if EXIT_INTERRUPTED in codes else EXIT_DONE


def follow(launcher: int) -> None:
    """In a rank: leave as on SIGTERM when the launcher is gone without a word (kill -9)."""

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _environment(rank: int, num_ranks: int, port: int) -> dict[str, str]:
    world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_ranks, "LOCAL_WORLD_SIZE": num_ranks}
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GANTOOL_LAUNCHER": os.getpid()}
    return os.environ | {key: str(value) for key, value in (world | place).items()}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
