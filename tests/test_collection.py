"""Statistics are the same bits for any number of ranks, in any order; a killed process loses a minute at most."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gantool.data.image_sets import ImageSet
from gantool.errors import GantoolError, InterruptedRun
from gantool.metrics import collection
from gantool.metrics.collection import STRETCH, Work, collect
from gantool.metrics.features import Extractor
from gantool.metrics.statistics import Need, Statistics
from gantool.progress import Silent

NUM = 5 * STRETCH + 77
ALL = Need(logits=True, features=True, spatial=True)


def pictures(num: int = NUM) -> ImageSet:
    images = torch.randint(0, 256, (num, 4, 4, 1), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return ImageSet("noise", "a" * 64, num, (4, 4, 1), lambda start, stop: images[start:stop])


def network(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x = images.float().reshape(len(images), -1) / 255
    return torch.cat([x, x * x], 1), x[:, :3] * 7, x[:, 4:9] - 0.5


def toy() -> tuple[Extractor, list[int]]:
    """Simple features; the list counts how often the network ran."""
    calls: list[int] = []

    def counted(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        calls.append(len(images))
        return network(images)

    cpu = torch.device("cpu")
    extractor = Extractor("toy", "d" * 64, "toy", "toy|logits", 32, 3, 32, cpu, counted, spatial_dim=5)
    return extractor, calls


def same(a: Statistics, b: Statistics) -> bool:
    pairs = [(a.logits, b.logits), (a.features, b.features)]
    for x, y in ((a.moments, b.moments), (a.spatial, b.spatial)):
        assert x is not None and y is not None and x.count == y.count
        pairs += [(x.total, y.total), (x.gram, y.gram)]
    return all(x is not None and y is not None and np.array_equal(x, y) for x, y in pairs)


@pytest.fixture(scope="module")
def expected() -> Statistics:
    return collect(pictures(), toy()[0], ALL, Work(Silent()), "x")


def test_the_statistics_are_those_of_all_images_at_once(expected: Statistics) -> None:
    pooled, logits, spatial = (tensor.numpy() for tensor in network(pictures().part(0, NUM)))
    assert expected.count == NUM and expected.features is not None
    assert np.array_equal(expected.features, pooled) and np.array_equal(expected.logits, logits)
    np.testing.assert_allclose(expected.moments.covariance(), np.cov(pooled.T), atol=1e-5)
    assert expected.spatial is not None
    np.testing.assert_allclose(expected.spatial.covariance(), np.cov(spatial.T), atol=1e-5)


class Threads:
    """Ranks as threads that add their arrays up at a barrier."""

    def __init__(self, num: int) -> None:
        self.num, self.barrier, self.slots = num, threading.Barrier(num), [np.zeros(1)] * num

    def rank(self, rank: int) -> _Rank:
        return _Rank(self, rank)


class _Rank:
    def __init__(self, group: Threads, rank: int) -> None:
        self.group, self.rank, self.num_ranks = group, rank, group.num

    def sum(self, array: np.ndarray) -> None:
        self.group.slots[self.rank] = array.copy()
        self.group.barrier.wait(30)
        array[...] = sum(self.group.slots[1:], start=self.group.slots[0])
        self.group.barrier.wait(30)

    def highest(self, value: int) -> int:
        array = np.zeros(self.num_ranks, np.int64)
        array[self.rank] = value
        self.sum(array)
        return int(array.max())


@pytest.mark.parametrize("num_ranks", [2, 3, 7])
def test_any_number_of_ranks_finds_the_same_bits(num_ranks: int, expected: Statistics) -> None:
    group, found = Threads(num_ranks), {}

    def work(rank: int) -> None:
        found[rank] = collect(pictures(), toy()[0], ALL, Work(Silent(), group.rank(rank)), "x")

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(num_ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == num_ranks and all(same(one, expected) for one in found.values())


def test_when_one_rank_fails_all_do() -> None:
    group, found = Threads(3), {}

    def broken(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return tuple(tensor * float("nan") for tensor in network(images))  # type: ignore[return-value]

    def work(rank: int) -> None:
        extractor = dataclasses.replace(toy()[0], network=broken) if rank == 1 else toy()[0]
        try:
            collect(pictures(), extractor, ALL, Work(Silent(), group.rank(rank)), "the pictures")
        except GantoolError as error:
            found[rank] = error.message

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found[1] == "the pictures: found features that are NaN or infinite"
    assert found[0] == found[2] == "another rank failed"


@pytest.mark.parametrize("then_ranks", [1, 2])
def test_what_was_found_before_a_stop_is_not_computed_again(
    then_ranks: int, tmp_path: Path, expected: Statistics
) -> None:
    extractor, calls = toy()
    stopped = Work(Silent(), parts=tmp_path / "parts", stop=lambda: len(calls) >= 2 * STRETCH // 32)
    with pytest.raises(InterruptedRun, match="stopped while computing x"):
        collect(pictures(), extractor, ALL, stopped, "x")
    assert sum(calls) == 2 * STRETCH and len(list((tmp_path / "parts").glob("*/part-*.npz"))) == 1
    calls.clear()
    group, found = Threads(then_ranks), []

    def go_on(rank: int) -> None:
        found.append(collect(pictures(), extractor, ALL, Work(Silent(), group.rank(rank), tmp_path / "parts"), "x"))

    threads = [threading.Thread(target=go_on, args=(rank,)) for rank in range(then_ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == then_ranks and same(found[0], expected)
    assert sum(calls) < NUM - 2 * STRETCH + 32 * 2  # the last block is padded
    assert not (tmp_path / "parts").exists()


def test_a_signal_at_any_line_loses_no_whole_stretch(tmp_path: Path, expected: Statistics) -> None:
    extractor, calls = toy()

    def interrupted(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        calls.append(1)
        if len(calls) == 70:
            raise InterruptedRun("stopped by SIGTERM")
        return network(images)

    with pytest.raises(InterruptedRun):
        broken = dataclasses.replace(extractor, network=interrupted)
        collect(pictures(), broken, ALL, Work(Silent(), parts=tmp_path), "x")
    calls.clear()
    assert same(collect(pictures(), extractor, ALL, Work(Silent(), parts=tmp_path), "x"), expected)
    assert sum(calls) <= NUM - 4 * STRETCH + 32


@pytest.mark.parametrize("damage", ["truncated", "other work", "twice", "empty", "pickle"])
def test_parts_that_do_not_fit_are_passed_over(
    damage: str, tmp_path: Path, expected: Statistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collection, "SAVE_SECONDS", 0.0)
    extractor, calls = toy()
    stopped = Work(Silent(), parts=tmp_path, stop=lambda: len(calls) >= 3 * STRETCH // 32)
    with pytest.raises(InterruptedRun):
        collect(pictures(), extractor, ALL, stopped, "x")
    parts = sorted(tmp_path.glob("*/part-*.npz"))
    assert len(parts) == 3
    if damage == "truncated":
        parts[0].write_bytes(parts[0].read_bytes()[:-100])
    elif damage == "empty":
        parts[0].write_bytes(b"")
    elif damage == "twice":
        (parts[0].parent / "part-copy.npz").write_bytes(parts[0].read_bytes())
    elif damage == "pickle":
        np.savez(parts[0], key=np.array([{"x": 1}], dtype=object))
    else:
        with np.load(parts[0]) as part:
            arrays = {name: part[name] for name in part.files}
        np.savez(parts[0], **(arrays | {"key": np.array("other")}))
    assert same(collect(pictures(), extractor, ALL, Work(Silent(), parts=tmp_path), "x"), expected)


def test_other_images_or_another_extractor_do_not_use_the_parts(tmp_path: Path) -> None:
    extractor, calls = toy()
    stopped = Work(Silent(), parts=tmp_path, stop=lambda: len(calls) >= STRETCH // 32)
    with pytest.raises(InterruptedRun):
        collect(pictures(), extractor, ALL, stopped, "x")
    for images, other in (
        (dataclasses.replace(pictures(), digest="b" * 64), extractor),
        (pictures(), dataclasses.replace(extractor, digest="e" * 64)),
        (pictures(), dataclasses.replace(extractor, protocol="bf16")),
    ):
        calls.clear()
        collect(images, other, ALL, Work(Silent(), parts=tmp_path), "x")
        assert sum(calls) >= NUM


SCRIPT = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_collection as t
from gantool.metrics import collection
from gantool.metrics.collection import Work, collect
import dataclasses
collection.SAVE_SECONDS = 0.0
def slow(images):
    time.sleep(0.02)
    return t.network(images)
extractor = dataclasses.replace(t.toy()[0], network=slow)
collect(t.pictures(), extractor, t.ALL, Work(t.Silent(), parts=Path(sys.argv[2])), "x")
"""


def test_a_killed_process_is_taken_up_where_it_was(tmp_path: Path, expected: Statistics) -> None:
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(Path(__file__).parent), str(tmp_path)]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("*/part-*.npz"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    extractor, calls = toy()
    assert same(collect(pictures(), extractor, ALL, Work(Silent(), parts=tmp_path), "x"), expected)
    assert 0 < sum(calls) <= NUM - 2 * STRETCH + 32


def test_a_folder_that_cannot_be_written_costs_nothing_but_the_parts(
    tmp_path: Path, expected: Statistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collection, "SAVE_SECONDS", 0.0)
    (tmp_path / "parts").write_text("in the way")
    said: list[str] = []

    class Words(Silent):
        def say(self, text: str) -> None:
            said.append(text)

    assert same(collect(pictures(), toy()[0], ALL, Work(Words(), parts=tmp_path / "parts"), "x"), expected)
    assert said and "cannot be kept" in said[0] and str(tmp_path / "parts") in said[0]


def test_features_that_are_too_large_for_exact_sums_are_refused() -> None:
    extractor = dataclasses.replace(toy()[0], network=lambda images: tuple(1e6 * t for t in network(images)))
    with pytest.raises(GantoolError, match="too large for exact sums"):
        collect(pictures(40), extractor, Need(), Work(Silent()), "x")
