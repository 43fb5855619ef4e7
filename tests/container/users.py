"""Who uses the image, and how: as on a cluster, unprivileged, and with nothing of this machine's environment."""

from __future__ import annotations

import os
import pwd
import subprocess
from pathlib import Path

Done = subprocess.CompletedProcess[str]


class Person:
    """Who uses the image: not root, with nothing of this machine's environment, in a folder of their own.

    `scratch` is another folder, quick and large.
    """

    def __init__(self, folder: Path, user: pwd.struct_passwd, scratch: Path) -> None:
        self.folder, self.user, self.scratch = folder, user, scratch

    def start(self, *command: object, **environment: str) -> subprocess.Popen[str]:
        """The command as a running process, in the folder."""
        env = {
            "HOME": self.user.pw_dir,
            "USER": self.user.pw_name,
            "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
        }
        ids = {"user": self.user.pw_uid, "group": self.user.pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}
        words = list(map(str, command))
        pipe = subprocess.PIPE
        return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
            words, cwd=self.folder, env=env | environment, stdout=pipe, stderr=pipe, text=True, **ids
        )

    def run(self, *command: object, **environment: str) -> Done:
        """The command to its end, of which nothing is demanded."""
        process = self.start(*command, **environment)
        out, err = process.communicate(timeout=600)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def write(self, name: str, text: str) -> Path:
        """A file of theirs."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        for place in (path, *path.parents):
            if place.is_relative_to(self.folder):
                os.chown(place, self.user.pw_uid, self.user.pw_gid)
        return path


class Image:
    """The built image, used by a person."""

    def __init__(self, path: Path, person: Person) -> None:
        self.path, self.person = path, person

    def __call__(self, *arguments: object, options: tuple[object, ...] = (), **environment: str) -> Done:
        """`apptainer run OPTIONS image ARGUMENTS` to its end."""
        return self.person.run("apptainer", "run", *options, self.path, *arguments, **environment)

    def execute(self, *command: object, **environment: str) -> Done:
        """`apptainer exec image COMMAND` to its end."""
        return self.person.run("apptainer", "exec", self.path, *command, **environment)
