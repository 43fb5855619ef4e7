"""A CUDA runtime without a GPU, for what a CPU can show of training on one: that everything lies on the device, that no
step waits for it, that updates can be recorded, and that commands come to their end. It computes nothing.

`runtime.cpp` is compiled with the headers that torch's packages bring, and preloaded in place of NVIDIA's runtime,
driver, cuBLAS and cuDNN. All else is the real torch, with its own checks.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

HERE = Path(__file__).parent
_NAMES = re.compile(r" ((?:cu|cuda|cublas|cublasLt|cudnn)[A-Z]\w*|__cuda\w+)")


def obstacle() -> str | None:
    """In words, why it cannot be built here."""
    if (torch.version.cuda or "").partition(".")[0] != "13":  # other headers declare some functions otherwise
        return f"torch is built for CUDA {torch.version.cuda}, expected 13"
    missing = [tool for tool in ("g++", "nm") if shutil.which(tool) is None]
    if missing:
        return f"no {' and no '.join(missing)}"
    return None if _headers() else "torch's packages bring no headers of CUDA's runtime"


def build(folder: Path) -> dict[str, str]:
    """Compile it into `folder`; the environment of processes that run on it."""
    headers = _headers()
    assert headers is not None
    own, rest, library = folder / "runtime.o", folder / "rest.cpp", folder / "libcuda.so.1"
    compiler = ["g++", "-O1", "-fPIC"]
    searched = [f"-I{HERE}", "-isystem", headers]
    subprocess.run([*compiler, "-Wall", *searched, "-c", HERE / "runtime.cpp", "-o", own], check=True)
    wanted = _symbols("--undefined-only", "-D", *(Path(torch.__file__).parent / "lib").glob("lib*.so"))
    others = sorted(wanted - _symbols("--defined-only", own))
    rest.write_text("".join(f'extern "C" long {name}() {{ return 0; }}\n' for name in others))
    # By this name it is also what those find who load the driver.
    subprocess.run([*compiler, "-shared", f"-Wl,-soname,{library.name}", own, rest, "-o", library], check=True)
    found_first = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"LD_PRELOAD": str(library), "PYTHONPATH": os.pathsep.join(found_first)}


def _headers() -> Path | None:
    packages = Path(torch.__file__).parents[1] / "nvidia"
    return next((found.parent for found in sorted(packages.glob("*/include/cuda_runtime_api.h"))), None)


def _symbols(*arguments: str | Path) -> set[str]:
    listed = subprocess.run(["nm", *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout
    return set(_NAMES.findall(listed))


def main() -> None:
    """`python tests/no_gpu/stand_in.py COMMAND...` runs it with it: `gantool bench` says what the host alone takes."""
    if (why := obstacle()) is not None:
        raise SystemExit(why)
    with tempfile.TemporaryDirectory() as folder:
        raise SystemExit(subprocess.run(sys.argv[1:], env=os.environ | build(Path(folder))).returncode)


if __name__ == "__main__":
    main()
