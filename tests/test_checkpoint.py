"""Files of tensors: exact round trip, damage is noticed wherever it is, nothing is unpickled."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gantool import checkpoint
from gantool.checkpoint import DamagedFile

TENSORS = {
    "a": torch.randn(3, 4, 5, 6).to(memory_format=torch.channels_last),
    "b.step": torch.tensor(7.0),
    "c": torch.tensor([1, 2, 3]),
    "d": torch.randn(6, 6).t(),
    "e": torch.zeros(0),
}


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    digest = checkpoint.save(path, TENSORS, {"step": 3, "kind": "test"})
    tensors, facts = checkpoint.load(path)
    assert facts == {"step": 3, "kind": "test", "digest": digest} == checkpoint.read_facts(path)
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert digest == checkpoint.digest_tensors({name: t.contiguous() for name, t in reversed(TENSORS.items())})
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_digest_tells_names_shapes_dtypes_and_bits_apart() -> None:
    base = {"a": torch.zeros(2, 3)}
    others = [
        {"b": torch.zeros(2, 3)},
        {"a": torch.zeros(3, 2)},
        {"a": torch.zeros(2, 3, dtype=torch.int32)},
        {"a": torch.tensor([[0.0, 0, 0], [0, 0, -0.0]])},
    ]
    assert len({checkpoint.digest_tensors(t) for t in [base, *others]}) == 5


@settings(max_examples=60, deadline=None)
@given(where=st.floats(0, 1, exclude_max=True), cut=st.booleans())
def test_damage_anywhere_is_noticed(where: float, cut: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("damage") / "x.safetensors"
    checkpoint.save(path, {"a": torch.randn(4, 4), "b": torch.arange(5)}, {"step": 3})
    whole = path.read_bytes()
    place = int(where * len(whole))
    path.write_bytes(whole[:place] if cut else whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    try:
        tensors, facts = checkpoint.load(path)
    except DamagedFile:
        return
    # The bit that changed lies in the padding of the header: nothing that was saved is different.
    assert torch.equal(tensors["b"], torch.arange(5)) and facts["step"] == 3 and tensors.keys() == {"a", "b"}


def test_newest_whole_passes_over_damaged_ones(tmp_path: Path) -> None:
    assert checkpoint.newest_whole(tmp_path) is None
    for step in (10, 20, 30):
        checkpoint.save(checkpoint.step_file(tmp_path, step), TENSORS, {"step": step})
    newest = checkpoint.step_file(tmp_path, 30)
    newest.write_bytes(newest.read_bytes()[:100])
    found = checkpoint.newest_whole(tmp_path)
    assert found is not None and found[1]["step"] == 20 and newest.name in found[2][0]
    checkpoint.keep_newest(tmp_path, 2)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["step-00000020.safetensors", "step-00000030.safetensors"]


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "was-run"

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (marker,))

    path = tmp_path / "evil.safetensors"
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(DamagedFile):
        checkpoint.load(path)
    torch.save({"a": Evil()}, path)
    with pytest.raises(DamagedFile):
        checkpoint.load(path)
    assert not marker.exists()
