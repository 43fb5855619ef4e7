"""CUDA graphs: the kernels of an update, recorded once and launched at once from then on.

At 32x32 an update is thousands of small kernels, and launching them one by one takes longer than they do. A graph
replays them on the same addresses with the same numbers, so all that differs from update to update must be on the
device before: `take` is how an update gets it. Gradients of any order are recorded like all else (torch.compile cannot
differentiate twice). The optimizers stay outside.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from gantool.config.schema import RunConfig
from gantool.runtime import Runtime

_WARM = 3  # times that an update is computed as ever before it is recorded: libraries choose and allocate

Update = Callable[[], tuple[Tensor, list[Tensor | None]]]
"""An update up to its gradients: its numbers, and the gradient of each parameter."""


class Recorder(Protocol):
    """What can record an update: CUDA, or a stand-in of the tests."""

    def apart(self, update: Update) -> tuple[Tensor, list[Tensor | None]]:
        """Compute it as ever, where it will be recorded."""

    def record(self, update: Update) -> tuple[Callable[[], None], tuple[Tensor, list[Tensor | None]]]:
        """What computes it, into the same tensors each time, and these tensors."""


class CudaRecorder:
    """CUDA graphs of one device, on a stream of their own, with their memory in common."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def apart(self, update: Update) -> tuple[Tensor, list[Tensor | None]]:
        """On that stream, so that what autograd keeps of the parameters belongs to it."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            found = update()
        current.wait_stream(self._stream)
        return found

    def record(self, update: Update) -> tuple[Callable[[], None], tuple[Tensor, list[Tensor | None]]]:
        """RuntimeError where something waits for the device or cannot be recorded; nothing has been computed then."""
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream(self._device)
        try:
            # Only this thread's calls count: the thread that fetches images pins memory.
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                found = update()
        finally:
            torch.cuda.set_stream(current)  # which a failure leaves elsewhere
        return graph.replay, found


@dataclass
class _Entry:
    """One kind of update."""

    seen: int = 0
    makes: list[Callable[[], Tensor | None]] = field(default_factory=list)
    inputs: list[Tensor | None] = field(default_factory=list)
    replay: Callable[[], None] | None = None
    found: tuple[Tensor, list[Tensor | None]] | None = None


class Graphs:
    """Updates by their kind: computed as ever at first, then recorded, then replayed.

    Without a recorder all are computed as ever. Where an update cannot be recorded, also for want of memory, `say`
    hears it once, and the run goes on without, from the same state.
    """

    def __init__(self, recorder: Recorder | None, say: Callable[[str], None] = lambda text: None) -> None:
        self._recorder, self._say = recorder, say
        self._entries: dict[Hashable, _Entry] = {}
        self._take: Callable[[Callable[[], Any]], Any] = _made

    @classmethod
    def of(cls, config: RunConfig, runtime: Runtime, say: Callable[[str], None]) -> Graphs:
        """Those that the config asks for; `say` hears why there are none."""
        if not config.runtime.cuda_graphs:
            return cls(None, say)
        obstacle = _obstacle(config, runtime)
        if obstacle:
            say(f"runtime.cuda_graphs: without, {obstacle}")
        return cls(None if obstacle else CudaRecorder(runtime.device), say)

    @property
    def wanted(self) -> bool:
        """Whether updates are recorded."""
        return self._recorder is not None

    def take(self, make: Callable[[], Any]) -> Any:
        """What `make` returns for the present update: a tensor on the device, or None. `make` must read the number of
        the step and the update when it is called, since it is called again for later ones."""
        return self._take(make)

    def run(self, kind: Hashable, update: Update) -> tuple[Tensor, list[Tensor | None]]:
        """What `update` returns, until the next call, which may overwrite it. All updates of a kind must be the same
        but for what they `take`."""
        if self._recorder is None:
            return update()
        entry = self._entries.setdefault(kind, _Entry())
        entry.seen += 1
        if entry.seen <= _WARM:
            entry.makes = []
            with self._taking(lambda make: _noted(make, entry.makes)):
                return self._recorder.apart(update)
        if entry.replay is None:
            if (failure := self._record(entry, update, self._recorder)) is not None:
                self._say(f"runtime.cuda_graphs: without from now on, an update cannot be recorded: {failure}")
                self._recorder = None
                self._entries.clear()
                return update()
        else:
            for make, place in zip(entry.makes, entry.inputs, strict=True):
                if place is not None:
                    place.copy_(make(), non_blocking=True)  # type: ignore[arg-type]
        assert entry.replay is not None and entry.found is not None
        entry.replay()
        return entry.found

    def _record(self, entry: _Entry, update: Update, recorder: Recorder) -> str | None:
        """Record `update` with inputs of its own; why not, where that fails. It is text that comes back and no error,
        which would hold the memory of what was recorded until then."""
        try:
            entry.inputs = [None if (value := make()) is None else value.clone() for make in entry.makes]
            given = iter(entry.inputs)
            with self._taking(lambda make: next(given)):
                entry.replay, entry.found = recorder.record(update)
        except RuntimeError as error:
            cause: BaseException = error
            while cause.__context__ is not None:  # torch ends the record with an error of its own
                cause = cause.__context__
            return (str(cause).strip().splitlines() or [""])[0]
        return None

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        """Compute as ever within the block."""
        recorder, self._recorder = self._recorder, None
        try:
            yield
        finally:
            self._recorder = recorder

    @contextlib.contextmanager
    def _taking(self, take: Callable[[Callable[[], Any]], Any]) -> Iterator[None]:
        self._take = take
        try:
            yield
        finally:
            self._take = _made


def _made(make: Callable[[], Any]) -> Any:
    return make()


def _noted(make: Callable[[], Any], makes: list[Callable[[], Any]]) -> Any:
    makes.append(make)
    return make()


def _obstacle(config: RunConfig, runtime: Runtime) -> str | None:
    """Why updates of this run are not recorded."""
    if runtime.device.type != "cuda":
        return f"the device is {runtime.device.type}"
    if runtime.num_ranks > 1:
        return "several processes average within an update"
    if config.reuse_fakes:
        return "reuse_fakes shares a pass between two updates"
    if "custom" in (config.generator.kind, config.discriminator.kind, config.loss.kind):
        return "code of your own may compute with numbers that a graph does not see change"
    return None
