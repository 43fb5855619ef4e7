"""site.yaml: what a cluster wants to be told, the same for all sweeps, so that a sweep file can be given away."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from gantool.config.base import Model, Positive, refuse
from gantool.config.document import read_document
from gantool.config.loader import validate
from gantool.errors import UsageError

FILE_NAME = "site.yaml"
_OURS = ("array", "dependency", "error", "job-name", "open-mode", "output", "signal", "wrap")


def _check_word(value: Any) -> Any:
    if type(value) is int:
        raise refuse(f"found {value}, expected a text", f"put it in quotes: '{value}'")
    if isinstance(value, str) and not re.match(r"^[^\s'\"\\]+$", value):
        raise refuse(f"found {value!r}, expected one word without quotes", "leave out spaces and quotes")
    return value


def _check_memory(value: Any) -> Any:
    if value is not None and not (isinstance(value, str) and re.match(r"^\d+[KMGT]?$", value)):
        raise refuse(f"found {value!r}, expected a text like 32G", "K, M, G or T after the number")
    return value


def _check_variable(value: Any) -> Any:
    if not isinstance(value, str) or not re.match(r"^[A-Za-z_][A-Za-z0-9_]*$", value):
        raise refuse(f"found {value!r}, expected the name of a variable", "letters, digits and _ only")
    return value


def _check_option(value: Any) -> Any:
    if not isinstance(value, str) or not re.match(r"^[a-z][a-z0-9-]+$", value):
        raise refuse(f"found {value!r}, expected the long name of an option of sbatch", "without dashes: mail-type")
    if value in _OURS:
        raise refuse(f"{value} is set by gantool itself", "remove it")
    return value


def _check_value(value: Any) -> Any:
    if not isinstance(value, str | int | float):
        raise refuse(f"found {value!r}, expected a text or a number", "write for example 'FAIL'")
    return value if isinstance(value, bool) else str(value)


def _check_text(value: Any) -> Any:
    if isinstance(value, bool):
        raise refuse(f"found {str(value).lower()}, expected a text or a number", f"write '{int(value)}' or 'yes'")
    return _check_value(value)


def _check_lines(value: Any) -> Any:
    return tuple(value.splitlines()) if isinstance(value, str) else value


def _check_options(value: Any) -> Any:
    words = value if isinstance(value, list | tuple) else str(value).split()
    joined = next((word for word in words if re.match(r"^--?[\w-]+\s", str(word))), None)
    if joined is not None:
        words = str(joined).split(maxsplit=1)
        raise refuse(f"found {joined!r}, expected one word in each entry", f"write two: [{', '.join(words)}]")
    if isinstance(value, str):
        raise refuse(f"found {value!r}, expected a list", f"write [{', '.join(words)}]")
    return value


Name = Annotated[str, BeforeValidator(_check_word)]
"""One word."""
_Options = Annotated[tuple[str, ...], BeforeValidator(_check_options), Field(strict=False)]


class SiteConfig(Model):
    """Settings of a cluster."""

    account: Name | None = None
    """Who pays."""
    partition: Name | None = None
    """null: the cluster's default partition."""
    qos: Name | None = None
    """Quality of service."""
    constraint: Name | None = None
    """Features the nodes must have, e.g. a100|h100."""
    reservation: Name | None = None
    """A reservation to use."""
    exclude: Name | None = None
    """Nodes never to use, e.g. node[7,12]."""
    gpu_type: Name | None = None
    """Ask for this type, e.g. a100."""
    gres: bool = False
    """Ask for GPUs by --gres=gpu:N, as older clusters want it, not by --gpus-per-node=N."""
    cpus: Positive | None = None
    """CPUs of each task (one for each GPU or packed run), unless the sweep says; null: the cluster's default."""
    mem: Annotated[str | None, BeforeValidator(_check_memory)] = None
    """Memory of each node, e.g. 32G, unless the sweep says; null: the cluster's default."""
    setup: Annotated[tuple[str, ...], BeforeValidator(_check_lines), Field(strict=False)] = ()
    """Lines of shell to run first in each job, e.g. 'module load cuda'."""
    sbatch: dict[
        Annotated[str, BeforeValidator(_check_option)], Annotated[str | bool, BeforeValidator(_check_value)]
    ] = Field(default_factory=dict)
    """Other options of sbatch by their long name, e.g. {mail-type: FAIL}; true: an option without a value,
    false: leave it out."""
    srun: _Options = ()
    """Other options of srun, e.g. --mpi=none."""
    env: dict[Annotated[str, BeforeValidator(_check_variable)], Annotated[str, BeforeValidator(_check_text)]] = Field(
        default_factory=dict
    )
    """Environment variables of each job, e.g. {NCCL_DEBUG: WARN}."""
    container: str | None = None
    """Image (.sif) that gantool runs in, relative to this file; null: the gantool that submits."""
    container_options: _Options = ()
    """Options of `apptainer exec` beside --nv and the folders of the runs and data, e.g. [--bind, /scratch]."""
    interface: Name | None = None
    """Network interface for NCCL and Gloo, where the first one is the wrong one, e.g. ib0."""
    host_suffix: Annotated[str, Field(pattern=r"^[A-Za-z0-9.-]*$")] = ""
    """What makes a node's name its name in the fast network, e.g. i."""
    scratch: str | None = None
    """Folder on the node itself for caches and staged data; null: $SLURM_TMPDIR, $TMPDIR or /tmp."""
    stage_data: bool = False
    """Copy the packed data to scratch, once for each node."""
    signal_seconds: Annotated[int, Field(ge=30, le=3600)] = 120
    """How long before the end of its time a job is told to save and leave (Slurm may be a minute early)."""
    max_array: Positive | None = None
    """Largest number of array tasks in one submission; null: what the cluster allows."""


def load_site(given: Path | None = None) -> tuple[SiteConfig, Path | None]:
    """The site's settings and their file: `given`, else $GANTOOL_SITE, else site.yaml in the working directory, else
    ~/.config/gantool/site.yaml; all defaults and None when there is none. ConfigError when it is wrong."""
    for origin, path in (("--site", given), ("$GANTOOL_SITE", os.environ.get("GANTOOL_SITE"))):
        if path:
            if not Path(path).is_file():
                raise UsageError(f"{origin}: there is no file {path}", "see slurm/README.md for what goes into it")
            return _read(Path(path)), Path(path)
    places = [Path(FILE_NAME)]
    with contextlib.suppress(RuntimeError):  # a user without a home
        home = Path(os.environ.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser())
        places.append(home / "gantool" / FILE_NAME)
    for found in places:
        if os.path.isfile(found):  # noqa: PTH113 (Path.is_file fails below a folder that may not be looked into)
            return _read(found), found
    return SiteConfig(), None


def _read(path: Path) -> SiteConfig:
    site = validate(SiteConfig, read_document(path))
    if site.container is None:
        return site
    image = path.parent / Path(site.container).expanduser()
    if not image.exists():
        raise UsageError(f"{path}: container: there is no image {image}", "build it (containers/README.md), or mend it")
    return site.model_copy(update={"container": str(image.resolve())})
