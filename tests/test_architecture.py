"""The house keeps its shape: floors, walls around big dependencies, and a half that never loads torch."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from gantool.config.schema import RunConfig, RuntimeConfig
from gantool.runs import RunDirectory

PACKAGE = Path(__file__).parent.parent / "gantool"
FLOORS = [
    {"config", "errors", "files", "progress", "randomness", "container", "driver", "revision"} | {"without_triton"},
    {"models", "custom", "losses", "penalties", "data", "metrics"}
    | {"optimizers", "runtime", "precision", "graphs", "counts", "runs", "interrupts", "launch", "cluster"},
    {"checkpoint", "state", "manifest", "results", "result_tables", "local", "submissions"},
    {"sample", "players", "class_accuracy", "nearest", "sweep", "report", "status", "prepare", "submit", "cancel"},
    {"train", "makers", "train_scores", "tracking", "evaluate", "bench", "doctor"},
    {"cli", "start", "scoring", "tables", "terminal", "pictures", "__main__"},
]
WALLS = {
    "accelerate": {"runtime.py"},
    "submitit": {"cluster.py"},
    "torchvision": {"data/download.py", "metrics/torchvision_nets.py"},
    "yaml": {"config/document.py"},
    "matplotlib": {"report/curves.py", "report/plots.py"},
    "jinja2": {"report/page.py"},
    "rich": {"terminal.py", "cli/program.py"},
    "typer": {f"cli/{name}.py" for name in ("program", "run_verbs", "sweep_verbs", "tool_verbs")},
}
TORCH_FREE = ["gantool.cli", "gantool.config", "gantool.errors", "gantool.runs", "gantool.sweep", "gantool.status"]
TORCH_FREE += [
    "gantool.cluster",
    "gantool.submissions",
    "gantool.submit",
    "gantool.cancel",
    "gantool.container",
    "gantool.doctor",
    "gantool.driver",
    "gantool.results",
    "gantool.result_tables",
    "gantool.prepare",
    "gantool.data.pack",
    "gantool.launch",
    "gantool.start",
    "gantool.scoring",
    "gantool.tables",
    "gantool.metrics.moments",
    "gantool.metrics.intervals",
    "gantool.metrics.statistics",
    "gantool.metrics.scores",
]
FORBIDDEN_NAMES = {"utils", "misc", "helpers", "common", "core"}

FILES = sorted(PACKAGE.rglob("*.py"))


def imports_of(path: Path) -> set[str]:
    """All modules that a file imports, anywhere in it, but for type checking."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def floor(name: str) -> int:
    return next(level for level, rooms in enumerate(FLOORS) if name in rooms)


def test_every_room_has_a_floor_and_a_good_name() -> None:
    rooms = {room(path) for path in FILES} - {"__init__"}
    assert rooms <= set.union(*FLOORS), rooms - set.union(*FLOORS)
    assert not {path.stem for path in FILES} & FORBIDDEN_NAMES


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_only_go_down(path: Path) -> None:
    if room(path) == "__init__":
        return
    for module in imports_of(path):
        parts = module.split(".")
        if parts[0] == "gantool" and len(parts) > 1 and parts[1] in set.union(*FLOORS):
            assert floor(parts[1]) <= floor(room(path)), f"{path.name} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_walls(path: Path) -> None:
    here = str(path.relative_to(PACKAGE))
    for module in imports_of(path):
        allowed = WALLS.get(module.split(".")[0])
        assert allowed is None or here in allowed, f"{here} imports {module}"


def test_no_file_prints_but_the_command_line() -> None:
    for path in FILES:
        calls = [
            n.func.id
            for n in ast.walk(ast.parse(path.read_text()))
            if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
        ]
        assert "print" not in calls or path.parent.name == "cli" or path.name == "tables.py", path


@pytest.mark.parametrize("module", TORCH_FREE)
def test_loads_without_torch(module: str) -> None:
    program = f"import sys, json; sys.modules['torch'] = None; import {module}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout))
    assert not loaded & {"torchvision", "accelerate", "scipy", "matplotlib", "submitit"}


def test_the_command_line_answers_without_torch(tmp_path: Path) -> None:
    """`--help`, a config error, `status` and a dry run, with torch made unimportable."""
    (tmp_path / "bad.yaml").write_text("batsh: 3\n")
    (tmp_path / "run.yaml").write_text("steps: 10\n")
    (tmp_path / "sweep.yaml").write_text("base: run.yaml\nvary: {batch: [8, 16]}\n")
    RunDirectory.create(RunConfig(runtime=RuntimeConfig(runs_dir=str(tmp_path / "runs"))))
    (tmp_path / "step-00000001.safetensors").write_bytes(b"")
    program = "import sys; sys.modules['torch'] = None; sys.argv = ['gantool', *sys.argv[1:]]\n"
    program += "from gantool.cli import main; main()"
    for words, code, text in (
        (["--help"], 0, "sweep"),
        (["train", "bad.yaml"], 2, "did you mean 'batch'?"),
        (["sweep", "sweep.yaml", "--local", "--dry-run"], 0, "planned"),
        (["config-schema"], 0, "latent_dim"),
        (["status", "runs"], 0, "1 run in runs: 1 planned"),
        (["doctor"], 0, "not installed"),
        (
            ["sample", "--ckpt", "step-00000001.safetensors", "--out", "x"],
            1,
            "the Python package torch is not installed here",
        ),
    ):
        command = [sys.executable, "-c", program, *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == code, (words, done.stderr)
        assert text in done.stdout + done.stderr, words
