#!/usr/bin/env python3
"""A private Slurm cluster in a folder, with all its nodes on this machine. Linux, root, Debian's Slurm packages.

    cluster.py install               get the packages from Debian
    cluster.py up DIR [options]      start what does not run (a crashed node too), wait until all nodes take jobs
    cluster.py crash DIR node2       cut the power of a node: every process on it is killed
    cluster.py status DIR            which daemons run
    cluster.py down DIR              stop them; the folder stays
    cluster.py down DIR --after PID  the same, once that process has ended

Then, in a shell: export SLURM_CONF=DIR/etc/slurm.conf

Configuration, state, sockets and logs are below DIR, so it touches no Slurm that the machine may have, and several
clusters can run side by side. A node is a tree of processes with a host name, an /etc/hosts and a scratch folder of its
own, so that code which takes one node's files or names for another's fails as it would on a real cluster. GPUs are
device files behind which there is nothing; Slurm gives them to jobs as it does real ones.

Partitions: main (the default), whose jobs are preempted, after 5 seconds of grace, by those of high.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

PACKAGES = ("munge", "slurmctld", "slurmd", "slurm-client", "slurmdbd", "mariadb-server-core")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "slurmdbd", "mariadbd", "unshare")
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_GRACE_SECONDS = 5


def why_not() -> str | None:
    """Why no cluster can be started here; None if it can."""
    if not sys.platform.startswith("linux"):
        return "needs Linux"
    missing = [name for name in PROGRAMS if not shutil.which(name, path=_PATH)]
    if missing:
        return f"no {', '.join(missing)} on this machine: tests/slurm/cluster.py install gets them (Debian, as root)"
    return None if os.geteuid() == 0 else "needs root, for nodes with host names of their own"


@dataclass(frozen=True)
class Cluster:
    """The cluster in `folder`."""

    folder: Path
    num_nodes: int = 4
    num_gpus: int = 2
    """On each node."""
    accounting: bool = True
    port: int = 17000
    """Of slurmctld; the daemons listen on the loopback, on this and the next 3 + `num_nodes` ports."""
    settings: dict[str, str | None] = field(default_factory=dict)
    """Further lines of slurm.conf, e.g. {"MaxArraySize": "5"}; None: without this line."""

    @classmethod
    def of(cls, folder: Path) -> Cluster:
        """The cluster that was started in `folder`."""
        facts = json.loads((folder / "cluster.json").read_text())
        return cls(**{**facts, "folder": Path(facts["folder"])})

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to talk to this cluster."""
        return {"SLURM_CONF": str(self.folder / "etc/slurm.conf")}

    @property
    def nodes(self) -> list[str]:
        """Their names."""
        return [f"node{number}" for number in range(1, self.num_nodes + 1)]

    def up(self) -> None:
        """Start what does not run, and wait until all nodes take jobs."""
        self._write_files()
        if not self._runs("munged"):
            self._start("munged", "munged", "--foreground", "--force", *self._munge_options())
            _wait(f"{self.folder}/run/munge", (self.folder / "run/munge").exists)
        if self.accounting:
            self._start_accounting()
        if not self._runs("slurmctld"):
            self._start("slurmctld", *self._apart("slurmctld"), "slurmctld", "-D")
        for node in self.nodes:
            self.revive(node)
        # Not `idle`: in a cluster in use some are at work.
        _wait(f"nodes that take jobs: see {self.folder}/log", lambda: self._ready() == set(self.nodes))

    def revive(self, node: str) -> None:
        """Switch a node on again; returns before Slurm has found it."""
        if not self._runs(node):
            self._start(node, *self._apart(node), "slurmd", "-D", "-N", node)

    def crash(self, node: str) -> None:
        """Kill all that runs on a node at once: no process has time for a word."""
        if not self._runs(node):
            return
        name = Path(f"/proc/{self._pid(node)}/ns/uts").readlink()
        assert name != Path("/proc/self/ns/uts").readlink(), f"{node} shares the host name of this machine"
        for process in _processes():
            with contextlib.suppress(OSError):
                if (process / "ns/uts").readlink() == name:
                    os.kill(int(process.name), signal.SIGKILL)
        _wait(f"the end of {node}", lambda: not self._runs(node))

    def down(self) -> None:
        """Stop everything; a later `up` goes on with the same jobs."""
        for node in self.nodes:
            self.crash(node)
        for name in ("slurmctld", "slurmdbd", "mariadbd", "munged"):
            if self._runs(name):
                os.kill(self._pid(name), signal.SIGTERM)
                self._wait_for_end(name)

    def status(self) -> dict[str, bool]:
        """Which daemons run."""
        names = ["munged", *(["mariadbd", "slurmdbd"] if self.accounting else []), "slurmctld", *self.nodes]
        return {name: self._runs(name) for name in names}

    def _wait_for_end(self, name: str) -> None:
        try:
            _wait(f"the end of {name}", lambda: not self._runs(name), 30)
        except TimeoutError:
            os.kill(self._pid(name), signal.SIGKILL)

    def _ready(self) -> set[str]:
        done = self._ask("sinfo", "-h", "-N", "-p", "main", "-o", "%N %T")
        rows = [line.split() for line in done.stdout.splitlines()]
        return {row[0] for row in rows if row[1] in ("idle", "mixed", "allocated", "completing")}

    def _ask(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, capture_output=True, text=True, check=False, env=self._daemon_environment())

    def _daemon_environment(self) -> dict[str, str]:
        return {**os.environ, "PATH": _PATH, **self.environment}

    def _start(self, name: str, *command: str) -> None:
        """Start a daemon in the foreground of a session of its own, so that its process id is known."""
        with (self.folder / f"log/{name}.out").open("ab") as words:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=words, stderr=words, start_new_session=True,
                env=self._daemon_environment(), cwd=self.folder,
            )  # fmt: skip
        (self.folder / f"run/{name}.id").write_text(str(process.pid))
        process.returncode = 0  # it stays when this program ends

    def _pid(self, name: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            return int((self.folder / f"run/{name}.id").read_text())
        return 0

    def _runs(self, name: str) -> bool:
        """Whether the daemon lives. Its environment tells it from a stranger who got its number, and from a dead
        process that nobody has waited for, which has none."""
        pid = self._pid(name)
        try:
            found = Path(f"/proc/{pid}/environ").read_bytes() if pid else b""
        except OSError:
            return False
        return f"SLURM_CONF={self.environment['SLURM_CONF']}".encode() in found.split(b"\0")

    def _apart(self, node: str) -> tuple[str, ...]:
        """A command line prefix that gives a daemon its own /etc/hosts, in which the nodes have names; and a node its
        host name and scratch folder. slurmctld too looks up the names of nodes."""
        steps = ['mount --bind "$1/etc/hosts" /etc/hosts']
        if node in self.nodes:
            (self.folder / "nodes" / node / "scratch").mkdir(parents=True, exist_ok=True)
            steps += ['hostname "$2"', 'mount --bind "$1/nodes/$2/scratch" "$1/scratch"']
        script = " && ".join([*steps, 'shift 2 && exec "$@"'])
        return ("unshare", "--mount", "--uts", "sh", "-c", script, "sh", str(self.folder), node)

    def _munge_options(self) -> Iterator[str]:
        yield f"--key-file={self.folder}/etc/munge.key"
        yield f"--socket={self.folder}/run/munge"
        yield f"--pid-file={self.folder}/run/munged.pid"
        yield f"--seed-file={self.folder}/run/munged.seed"
        yield f"--log-file={self.folder}/log/munged.log"

    def _start_accounting(self) -> None:
        sql, slurmdbd = self.port + 2, self.port + 1
        options = [
            *("mariadbd", "--no-defaults", "--user=root", f"--datadir={self.folder}/database"),
            *("--innodb-flush-method=nosync", "--innodb-doublewrite=0", "--innodb-log-file-size=8M"),
        ]
        if not self._runs("mariadbd"):
            if not (self.folder / "database/made").exists():
                self._make_database(options)
            # Only this machine can reach it, so it goes without accounts.
            options += ["--skip-grant-tables", "--bind-address=127.0.0.1", f"--port={sql}"]
            options += [f"--socket={self.folder}/run/sql", f"--pid-file={self.folder}/run/mariadbd.pid"]
            self._start("mariadbd", *options)
        _wait("mariadbd", lambda: _listens(sql))
        if not self._runs("slurmdbd"):
            self._start("slurmdbd", "slurmdbd", "-D")
        _wait("slurmdbd", lambda: _listens(slurmdbd))
        if "pretend" not in self._ask("sacctmgr", "-n", "show", "cluster", "pretend").stdout:
            self._ask("sacctmgr", "-i", "-Q", "add", "cluster", "pretend")

    def _make_database(self, options: list[str]) -> None:
        """The system tables, from the scripts that come with the server: its installer needs the client's package."""
        scripts = [
            found
            for name in ("system_tables.sql", "system_tables_data.sql")
            for found in sorted(Path("/usr/share").glob(f"m*/m*_{name}"))[:1]  # mysql or mariadb
        ]
        text = "CREATE DATABASE mysql;\nUSE mysql;\n" + "\n".join(path.read_text() for path in scripts)
        with (self.folder / "log/database.out").open("w") as words:
            subprocess.run([*options, "--bootstrap"], input=text, text=True, stdout=words, stderr=words, check=True,
                           env=self._daemon_environment())  # fmt: skip
        (self.folder / "database/made").touch()

    def _write_files(self) -> None:
        for name in ("database", "devices", "etc", "log", "nodes", "run", "scratch", "state"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        facts = {**asdict(self), "folder": str(self.folder)}
        (self.folder / "cluster.json").write_text(json.dumps(facts))
        key = self.folder / "etc/munge.key"
        if not key.exists():
            _write(key, os.urandom(1024), 0o600)
        for number in range(self.num_gpus):
            device = self.folder / f"devices/gpu{number}"
            if not device.exists():  # another /dev/null; with an ordinary file CUDA_VISIBLE_DEVICES would stay empty
                os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        names = "".join(f"127.0.0.1 {node}\n" for node in self.nodes)
        host = socket.gethostname().split(".")[0]
        _write(self.folder / "etc/hosts", f"127.0.0.1 localhost {host}\n{names}".encode())
        prolog = f"#!/bin/sh\necho export SLURM_TMPDIR={self.folder}/scratch\n"
        _write(self.folder / "etc/prolog", prolog.encode(), 0o755)
        nodes = f"node[1-{self.num_nodes}]"
        gpus = f"NodeName={nodes} Name=gpu File={self.folder}/devices/gpu[0-{self.num_gpus - 1}]\n"
        _write(self.folder / "etc/gres.conf", gpus.encode() if self.num_gpus else b"")
        _write(self.folder / "etc/slurm.conf", self._slurm_conf(host, nodes).encode())
        _write(self.folder / "etc/slurmdbd.conf", self._slurmdbd_conf(host).encode(), 0o600)  # else it refuses it

    def _slurm_conf(self, host: str, nodes: str) -> str:
        at, run = self.folder, self.folder / "run"
        gpus = f" Gres=gpu:{self.num_gpus}" if self.num_gpus else ""
        settings = {
            "ClusterName": "pretend",
            "SlurmctldHost": f"{host}(127.0.0.1)",
            "SlurmctldPort": self.port,
            "SlurmUser": "root",
            # A requeued job starts again after cred_expire seconds; Slurm's default is 120.
            "AuthInfo": f"socket={run}/munge,cred_expire=5",
            "StateSaveLocation": at / "state",
            "SlurmdSpoolDir": at / "nodes/%n",
            "SlurmctldPidFile": run / "slurmctld.pid",
            "SlurmdPidFile": run / "%n.pid",
            "SlurmctldLogFile": at / "log/slurmctld.log",
            "SlurmdLogFile": at / "log/%n.log",
            # All of these do without cgroups, which a container may not have.
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "JobAcctGatherType": "jobacct_gather/linux",
            "TaskProlog": at / "etc/prolog",
            "SlurmdParameters": "config_overrides",  # nodes have the CPUs and memory that are written below
            "PropagateResourceLimits": "NONE",
            "ReturnToService": 2,
            "SlurmdTimeout": 10,
            "BatchStartTimeout": 60,
            "KillWait": 5,
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_Core_Memory",
            "DefMemPerCPU": 500,
            "GresTypes": "gpu",
            "PreemptType": "preempt/partition_prio",
            "PreemptMode": "REQUEUE",
            # Preemption is told by the signal of sbatch --signal.
            "SlurmctldParameters": "preempt_send_user_signal",
            "SchedulerParameters": "sched_interval=1,sched_min_interval=0,bf_interval=1,batch_sched_delay=0",
            "AccountingStorageType": f"accounting_storage/{'slurmdbd' if self.accounting else 'none'}",
        }
        if self.accounting:
            settings |= {
                "AccountingStorageHost": "127.0.0.1",
                "AccountingStoragePort": self.port + 1,
                "AccountingStoragePass": run / "munge",  # where slurmdbd's munge listens: AuthInfo does not count here
                "AccountingStorageTRES": "gres/gpu",
            }
        ports = f"{self.port + 3}-{self.port + 2 + self.num_nodes}"
        lines = [f"{key}={value}" for key, value in {**settings, **self.settings}.items() if value is not None]
        lines += [
            f"NodeName={nodes} NodeHostname={host} NodeAddr=127.0.0.1 Port=[{ports}] CPUs=4 RealMemory=8000{gpus}",
            f"PartitionName=main Nodes=ALL Default=YES PriorityTier=1 MaxTime=60 GraceTime={_GRACE_SECONDS}",
            "PartitionName=high Nodes=ALL PriorityTier=10 MaxTime=60 PreemptMode=OFF",
            "PartitionName=gpu Nodes=ALL PriorityTier=1 MaxTime=1440",
        ]
        return "\n".join(lines) + "\n"

    def _slurmdbd_conf(self, host: str) -> str:
        settings = {
            "AuthInfo": f"socket={self.folder}/run/munge",
            "DbdHost": host,  # must be this machine's name
            "DbdAddr": "127.0.0.1",
            "DbdPort": self.port + 1,
            "SlurmUser": "root",
            "LogFile": self.folder / "log/slurmdbd.log",
            "PidFile": self.folder / "run/slurmdbd.pid",
            "StorageType": "accounting_storage/mysql",
            "StorageHost": "127.0.0.1",
            "StoragePort": self.port + 2,
            "StorageUser": "slurm",
        }
        return "".join(f"{key}={value}\n" for key, value in settings.items())


def free_port(num: int) -> int:
    """The first of `num` ports in a row that nobody listens on, below those that the system gives away; each process
    begins its search elsewhere."""
    places = range(17000, 32000, 40)
    for place in range(len(places)):
        first = places[(os.getpid() + place) % len(places)]
        if not any(_listens(port) for port in range(first, first + num)):
            return first
    raise RuntimeError("no free ports")


def _write(path: Path, text: bytes, mode: int = 0o644) -> None:
    path.touch(mode)
    path.write_bytes(text)
    path.chmod(mode)


def _processes() -> list[Path]:
    return [path for path in Path("/proc").iterdir() if path.name.isdigit()]


def _listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def _wait(what: str, condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:.0f} s in vain for {what}")
        time.sleep(0.1)


def install() -> None:
    """Get the packages; their own services are not started."""
    options = ("-y", "-qq", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=120")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    subprocess.run(["apt-get", "update", "-qq"], check=True)
    subprocess.run(["apt-get", "install", *options, *PACKAGES], check=True, stdout=subprocess.DEVNULL, env=environment)


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description="A private Slurm cluster in a folder.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("install")
    for name in ("up", "crash", "status", "down"):
        verb = verbs.add_parser(name)
        verb.add_argument("folder", type=Path)
        if name == "crash":
            verb.add_argument("node")
        if name == "down":
            verb.add_argument("--after", type=int, metavar="PID")
        if name == "up":
            verb.add_argument("--nodes", type=int, default=4)
            verb.add_argument("--gpus", type=int, default=2)
            verb.add_argument("--port", type=int)
            verb.add_argument("--no-accounting", action="store_true")
    given = parser.parse_args()
    if given.verb == "install":
        install()
        return
    problem = why_not()
    if problem:
        sys.exit(f"cluster.py: {problem}")
    folder = given.folder.resolve()
    if given.verb == "up" and not (folder / "cluster.json").exists():
        port = given.port or free_port(given.nodes + 3)
        Cluster(folder, given.nodes, given.gpus, not given.no_accounting, port).up()
        return
    if given.verb == "down":
        while given.after and Path(f"/proc/{given.after}/exe").exists():
            time.sleep(0.5)
    if not (folder / "cluster.json").exists():
        sys.exit(f"cluster.py: there is no cluster in {folder}")
    cluster = Cluster.of(folder)
    if given.verb == "crash":
        cluster.crash(given.node)
    elif given.verb == "status":
        print("".join(f"{name} {'runs' if runs else 'is down'}\n" for name, runs in cluster.status().items()), end="")
    elif given.verb == "up":
        cluster.up()
    else:
        cluster.down()


if __name__ == "__main__":
    main()
