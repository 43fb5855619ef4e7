"""Recorded updates give the bits of those that are computed as ever: on the CPU by a recorder of operators, which shows
that no number of an update is baked into its record, and on a GPU by CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gantool.config.schema import RunConfig
from gantool.data.loader import RealImages
from gantool.data.pack import ensure_packed
from gantool.graphs import CudaRecorder, Graphs, Recorder, Update
from gantool.players import Players
from gantool.progress import Silent
from gantool.runtime import Runtime
from gantool.state import State

Found = tuple[Tensor, list[Tensor | None]]
STEPS = 11  # three of each kind as ever, then the record, then replays


class _Operators(TorchDispatchMode):
    """Notes every operator with its arguments and results; an operator whose result Python reads is an error, as it
    would be while CUDA records."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        found = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, found))
        return found


class OperatorRecorder:
    """CUDA graphs as far as a CPU can be one: the same operators, on the same memory, without any of Python's."""

    def __init__(self) -> None:
        self.records = self.replays = 0

    def apart(self, update: Update) -> Found:
        return update()

    def record(self, update: Update) -> tuple[Callable[[], None], Found]:
        self.records += 1
        operators = _Operators()
        with operators:
            found = update()  # unlike CUDA this computes it too
        first = True

        @torch.no_grad()
        def replay() -> None:
            nonlocal first
            if first:
                first = False
                return
            self.replays += 1
            for func, args, kwargs, results in operators.calls:
                returns = func._schema.returns
                if any(one.alias_info is not None for one in returns) and not func._schema.is_mutable:
                    continue  # a view of memory that is written anyway
                again = func(*args, **kwargs)
                if func._schema.is_mutable:
                    continue
                for old, new in zip(tree_leaves(results), tree_leaves(again), strict=True):
                    if isinstance(old, Tensor):
                        old.detach().copy_(new)

        return replay, found


SMALL = {"width": 4, "max_width": 4}
RESNET = {"generator": {"kind": "resnet", "latent_dim": 4, **SMALL}, "discriminator": {"kind": "resnet", **SMALL}}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "gp": {**RESNET, "loss": "wasserstein", "penalty": "gp", "n_dis": 3},
    "r1 now and then": {**RESNET, "penalty": {"kind": "r1", "interval": 2}},
    "ramps": {
        "loss": "relativistic",
        "n_dis": 2,
        "discriminator": {"kind": "r3gan", "width": 16},
        "penalty": {"kind": "r1_r2", "interval": 3, "weight": {"start": 2.0, "end": 0.1, "shape": "cosine"}},
        "optimizer": {"generator": {"kind": "adam", "lr": {"start": 2e-3, "end": 0.0}}},
    },
    "lecam": {"penalty": "lecam", "loss": "hinge"},
    "ada": {"augment": {"kind": "ada", "interval": 2, "kimg": 0.1}},
    "ada with a ramp": {"augment": {"kind": "ada", "target": None, "p": {"start": 0.0, "end": 0.9}}},
    "diffaugment": {**RESNET, "augment": "diffaugment", "n_dis": 2, "penalty": "r1"},
    "advanced": {"augment": "advanced"},
    "basic, from the host": {"augment": "basic", "runtime": {"resident": "never"}},
    "dropout": {"discriminator": {"kind": "conv", "dropout": 0.3, "norm": "none", **SMALL}, "penalty": "gp"},
    "batch norm": {"discriminator": {"kind": "conv", "norm": "batch", **SMALL}},
    "spectral norm, classes": {
        "data": {"name": "shapes", "size": 16},
        "generator": {"kind": "biggan", "latent_dim": 9, **SMALL},
        "discriminator": {"kind": "resnet", "spectral_norm": True, "condition": "projection", **SMALL},
        "loss": "hinge",
        "n_dis": 2,
    },
    "acgan": {
        "generator": {"kind": "conv", "condition": "concat", "latent_dim": 4, **SMALL},
        "discriminator": {"kind": "conv", "condition": "acgan", **SMALL},
        "generator_batch": 10,
    },
    "bfloat16": {"precision": "bfloat16", **RESNET, "penalty": "gp"},
}


def trained(
    data_dir: Path,
    case: dict[str, Any],
    recorder: Recorder | None,
    device: str = "cpu",
    say: Callable[[str], None] | None = None,
    num: int = STEPS,
    goes_on: State | None = None,
) -> tuple[State, Any]:
    """(state, numbers of each of `num` steps) of a small run on `shapes` at 8x8; `goes_on`: from a state like this."""
    runtime = {"device": device, "threads": 1, **case.get("runtime", {})}
    small: dict[str, Any] = {
        "data": {"name": "shapes", "size": 8},
        "batch": 6,
        "steps": STEPS,
        "generator": {"kind": "conv", "latent_dim": 4, **SMALL},
        "discriminator": {"kind": "conv", **SMALL},
    }
    config = RunConfig.model_validate(small | case | {"runtime": runtime})
    data = ensure_packed(config.data, data_dir, Silent())
    images, labels = data.split("train")
    torch.manual_seed(0)
    place = Runtime(config.runtime)
    state = State(config, place.device, len(data.classes))
    real = RealImages(images, config.augment, config.seed, config.batch, place.device, resident=config.runtime.resident)
    graphs = Graphs(recorder, say or pytest.fail)
    both = Players(config, state, real, labels, len(data.classes), place, lambda length: int(length), graphs)
    if goes_on is not None:
        state.load({name: value.clone() for name, value in goes_on.tensors().items()}, goes_on.step)
    numbers = []
    for _ in range(num):
        numbers.append(both.step().tolist())
        state.step += 1
        state.update_ema()
    assert graphs.wanted == (recorder is not None and say is None)
    return state, numbers


@pytest.mark.parametrize("case", [case for case in CASES if "host" not in case])  # on the CPU all lies on the device
def test_recorded_updates_are_those_of_ever(case: str, data_dir: Path) -> None:
    recorder = OperatorRecorder()
    (plain, expected), (fast, found) = (trained(data_dir, CASES[case], one) for one in (None, recorder))
    assert recorder.records >= 2 and recorder.replays >= STEPS - 2
    assert found == expected
    for name, value in plain.tensors().items():
        assert torch.equal(value, fast.tensors()[name]), name


def test_a_run_that_goes_on_is_recorded_anew_and_equal(data_dir: Path) -> None:
    """The state of one that was recorded, after seven steps, taken over into another one."""
    case = CASES["ada"] | {"steps": STEPS}
    whole, expected = trained(data_dir, case, None)
    first, before = trained(data_dir, case, OperatorRecorder(), num=7)
    resumed, after = trained(data_dir, case, recorder := OperatorRecorder(), num=STEPS - 7, goes_on=first)
    assert recorder.records >= 2 and before + after == expected
    for name, value in whole.tensors().items():
        assert torch.equal(value, resumed.tensors()[name]), name


def test_a_number_that_is_baked_in_is_found(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, expected = trained(data_dir, CASES["plain"], None)
    monkeypatch.setattr(Graphs, "take", lambda self, make: make())
    _, found = trained(data_dir, CASES["plain"], OperatorRecorder())
    assert found[:4] == expected[:4] and found[4:] != expected[4:]


def test_what_cannot_be_recorded_goes_on_as_ever_with_one_line(data_dir: Path) -> None:
    class Broken(OperatorRecorder):
        def record(self, update: Update) -> tuple[Callable[[], None], Found]:
            if self.records:
                raise RuntimeError("CUDA error: out of memory\nmore words")
            return super().record(update)

    _, expected = trained(data_dir, CASES["plain"], None)
    said: list[str] = []
    _, found = trained(data_dir, CASES["plain"], Broken(), say=said.append)
    assert found == expected
    assert said == ["runtime.cuda_graphs: without from now on, an update cannot be recorded: CUDA error: out of memory"]


@pytest.mark.parametrize(
    ("device", "num_ranks", "changes", "words"),
    [
        ("cpu", 1, {}, "the device is cpu"),
        ("cuda", 2, {}, "several processes average within an update"),
        ("cuda", 1, {"reuse_fakes": True}, "reuse_fakes shares a pass between two updates"),
    ],
)
def test_where_nothing_is_recorded_a_line_says_so(
    device: str, num_ranks: int, changes: dict[str, Any], words: str
) -> None:
    config = RunConfig.model_validate({"runtime": {"cuda_graphs": True}} | changes)
    said: list[str] = []
    runtime: Any = SimpleNamespace(device=torch.device(device), num_ranks=num_ranks)
    assert not Graphs.of(config, runtime, said.append).wanted
    assert said == [f"runtime.cuda_graphs: without, {words}"]


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps the first device of a process for good."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@needs_gpu
@pytest.mark.parametrize("case", CASES)
def test_cuda_graphs_give_the_same_bits(
    case: str, data_dir: Path, fresh_accelerate: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder, replays, replay = CudaRecorder(torch.device("cuda", 0)), [], torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: replays.append(graph) or replay(graph))
    (plain, expected), (fast, found) = (trained(data_dir, CASES[case], one, "cuda") for one in (None, recorder))
    assert next(plain.generator.parameters()).is_cuda and found == expected
    assert len(set(replays)) >= 2 and len(replays) >= STEPS - 2
    for name, value in plain.tensors().items():
        assert torch.equal(value, fast.tensors()[name]), name


class _Pinned(TorchDispatchMode):
    """What goes to the GPU comes from pinned memory: a copy of other memory waits, and torch does not say so."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default) and found.is_cuda:
            source = args[1] if func is torch.ops.aten.copy_.default else args[0]
            assert source.is_cuda or source.is_pinned()
        return found


@needs_gpu
@pytest.mark.parametrize("case", CASES)
def test_no_step_waits_for_the_gpu(
    case: str, data_dir: Path, fresh_accelerate: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once all is warm, a step that makes the host wait is an error of torch."""

    def strict(owner: type, name: str, step: Callable[[Any], int]) -> None:
        work = getattr(owner, name)

        def checked(self: Any) -> Any:
            if step(self) <= 4:
                return work(self)
            torch.cuda.set_sync_debug_mode("error")
            try:
                with pytest.MonkeyPatch.context() as patch, _Pinned():
                    if step(self) > 7:  # until then updates are recorded, before which torch waits
                        for kind in (torch.cuda, torch.cuda.Event, torch.cuda.Stream):  # waits that torch does not see
                            patch.setattr(kind, "synchronize", lambda *_: pytest.fail("the host waits"))
                    return work(self)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        monkeypatch.setattr(owner, name, checked)

    strict(Players, "step", lambda players: players.state.step)
    strict(State, "update_ema", lambda state: state.step)
    trained(data_dir, CASES[case], None, "cuda")
    trained(data_dir, CASES[case], CudaRecorder(torch.device("cuda", 0)), "cuda")
