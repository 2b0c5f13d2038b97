"""Checkpoints: what goes in comes out bit for bit, and the newest whole one is always found."""

import json
import os
import random
import signal
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from truing.runs.durable import BrokenFolderError, StorageError, verify_folder, write_folder
from truing.train import checkpoint
from truing.train.checkpoint import Checkpoints, load, newest, rng_state, save, set_rng_state

CALLS = ("open", "write", "fsync", "rename", "unlink", "mkdir", "rmdir")


def written(folder: Path, *steps: int) -> None:
    for step in steps:
        save(folder, step, {"learner": {"w": torch.full((3,), float(step))}}, {"learner": {"at": step}})


def kept(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def killed_at(k: int, work: Callable[[], object]) -> int:
    """Runs work in a forked child that is killed before the k-th call that changes the disk; a write goes half way first."""
    pid = os.fork()
    if pid == 0:
        count = 0

        def wrapped(real: Callable[..., Any], half: bool) -> Callable[..., Any]:
            def call(*args: Any, **more: Any) -> Any:
                nonlocal count
                count += 1
                if count == k:
                    if half:
                        real(args[0], args[1][: len(args[1]) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **more)

            return call

        for name in CALLS:
            setattr(os, name, wrapped(getattr(os, name), name == "write"))
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(70)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_the_bits_come_back(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    tensors = {
        "learner": {
            "tied": shared,
            "tied again": shared,
            "across": shared.view(2, 3).T,
            "half": torch.tensor([1.0, float("nan"), -0.0], dtype=torch.bfloat16),
            "steps": torch.tensor(7),
            "none": torch.empty(0, 3),
        },
        "source": {},
    }
    state = {"learner": {"kl": 0.1, "worst": float("inf"), "nested": {"a": [1, None, True]}}, "source": {}}
    path = save(tmp_path, 12, tensors, state)
    assert path.name == "step-000012"
    assert sorted(os.listdir(path)) == ["learner.safetensors", "manifest.json", "source.safetensors", "state.json"]
    found = newest(tmp_path)
    assert found is not None
    assert found.step == 12
    again, states = load(found)
    assert states == state
    assert again["source"] == {}
    for name, tensor in tensors["learner"].items():
        assert again["learner"][name].dtype == tensor.dtype
        assert again["learner"][name].shape == tensor.shape
        bits = [
            t.contiguous().view(torch.int16 if t.dtype == torch.bfloat16 else t.dtype) for t in (again["learner"][name], tensor)
        ]
        assert torch.equal(*bits), name


def test_a_large_part_is_cut_into_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "SHARD", 16)
    named = {name: torch.full((2,), float(i)) for i, name in enumerate("abcde")} | {"large": torch.arange(9.0)}
    path = save(tmp_path, 1, {"learner": named, "source": {}}, {"learner": {}, "source": {}})
    assert [entry.name for entry in verify_folder(path).entries] == [
        *("learner.safetensors", "learner.2.safetensors", "learner.3.safetensors", "learner.4.safetensors"),
        *("source.safetensors", "state.json"),
    ]
    found = newest(tmp_path)
    assert found.parts == {"learner", "source"}
    assert {name: tensor.tolist() for name, tensor in found.tensors("learner").items()} == {n: t.tolist() for n, t in named.items()}
    (path / "learner.3.safetensors").unlink()
    with pytest.warns(UserWarning, match=r"learner\.3\.safetensors is missing"):
        assert newest(tmp_path) is None


def test_the_same_state_gives_the_same_bytes(tmp_path: Path) -> None:
    one = save(tmp_path / "one", 3, {"a": {"x": torch.ones(2), "y": torch.zeros(1)}}, {"a": {"p": 1, "q": 2}})
    two = save(tmp_path / "two", 3, {"a": {"y": torch.zeros(1), "x": torch.ones(2)}}, {"a": {"q": 2, "p": 1}})
    assert verify_folder(one) == verify_folder(two)


def test_an_empty_folder_has_none(tmp_path: Path) -> None:
    assert newest(tmp_path / "not there") is None
    (tmp_path / ".tmp-step-000009").mkdir()
    (tmp_path / "step-final").mkdir()
    assert newest(tmp_path) is None


def test_the_last_two_are_kept_and_numbers_are_numbers(tmp_path: Path) -> None:
    written(tmp_path, 8, 9, 10, 999_999, 1_000_000)
    assert kept(tmp_path) == ["step-1000000", "step-999999"]
    assert newest(tmp_path).step == 1_000_000


def test_more_are_kept_on_request(tmp_path: Path) -> None:
    for step in range(1, 6):
        Checkpoints(tmp_path, keep=3).save(step, {})
    assert kept(tmp_path) == ["step-000003", "step-000004", "step-000005"]


def test_rotation_counts_whole_ones_only(tmp_path: Path) -> None:
    written(tmp_path, 1, 2)
    (tmp_path / "step-000002" / "state.json").write_text("{}")
    written(tmp_path, 3)
    assert kept(tmp_path) == ["step-000001", "step-000002", "step-000003"], "the older whole one stays"
    written(tmp_path, 4)
    assert kept(tmp_path) == ["step-000003", "step-000004"]


def test_rotation_never_removes_the_only_whole_one(tmp_path: Path) -> None:
    written(tmp_path, 1)
    for step in (2, 3, 4):
        (tmp_path / f"step-{step:06}").mkdir()
    checkpoint.rotate(tmp_path, keep=1)
    assert kept(tmp_path) == ["step-000001", "step-000002", "step-000003", "step-000004"]
    assert newest(tmp_path, lambda text: None).step == 1


def test_a_broken_one_of_the_same_step_is_written_anew(tmp_path: Path) -> None:
    written(tmp_path, 1, 2)
    (tmp_path / "step-000002" / "learner.safetensors").unlink()
    written(tmp_path, 2)
    assert newest(tmp_path).step == 2


def harm(path: Path, change: Callable[[bytes], bytes | None]) -> Callable[[], None]:
    """Damages one file; returns what heals it."""
    whole = path.read_bytes()
    damaged = change(whole)
    path.unlink()
    if damaged is not None:
        path.write_bytes(damaged)

    def heal() -> None:
        path.unlink(missing_ok=True)
        path.write_bytes(whole)

    return heal


def flip(bit: int) -> Callable[[bytes], bytes]:
    return lambda b: b[: bit // 8] + bytes([b[bit // 8] ^ 1 << bit % 8]) + b[bit // 8 + 1 :]


def test_any_damage_to_the_newest_falls_back_to_the_one_before(tmp_path: Path) -> None:
    """Truncated anywhere, one bit flipped anywhere, deleted, swapped: seen before any tensor is used, named, and passed over."""
    written(tmp_path, 1, 2)
    rng = random.Random(0)
    changes: list[Callable[[bytes], bytes | None]] = [
        lambda b: None,
        *(lambda b, end=end: b[: int(end * len(b))] for end in (0, 0.1, 0.5)),
        *(lambda b, end=end: b[:end] for end in (1, 8, -1)),
        lambda b: b + b"\n",
        lambda b: bytes(len(b)),
    ]
    cases = 0
    for name in ("learner.safetensors", "state.json", "manifest.json"):
        path = tmp_path / "step-000002" / name
        flips = [flip(rng.randrange(8 * path.stat().st_size)) for _ in range(100)]
        for change in [*changes, *flips]:
            heal = harm(path, change)
            said: list[str] = []
            found = newest(tmp_path, said.append)
            assert found is not None
            assert found.step == 1
            assert found.tensors("learner")["w"].tolist() == [1.0, 1.0, 1.0]
            assert len(said) == 1
            assert "step-000002: is not whole" in said[0]
            assert name in said[0] or name == "manifest.json", "a flipped bit in it may name a file that is not there"
            heal()
            cases += 1
    assert cases == 3 * (100 + len(changes))
    assert newest(tmp_path).step == 2


def test_swapped_files_and_swapped_names_are_seen(tmp_path: Path) -> None:
    save(tmp_path, 1, {"a": {"w": torch.ones(1)}, "b": {"w": torch.zeros(1)}}, {"a": {}, "b": {}})
    path = save(tmp_path, 2, {"a": {"w": torch.ones(1)}, "b": {"w": torch.zeros(1)}}, {"a": {}, "b": {}})
    for one, two in (("a.safetensors", "x"), ("b.safetensors", "a.safetensors"), ("x", "b.safetensors")):
        (path / one).rename(path / two)
    with pytest.warns(UserWarning, match=r"step-000002: is not whole \(a.safetensors is damaged"):
        assert newest(tmp_path).step == 1
    (tmp_path / "step-000001").rename(tmp_path / "step-000007")
    said: list[str] = []
    assert newest(tmp_path, said.append) is None
    assert "step-000007: is not whole (it was written as step 1, under another name)" in said[0]


def test_bytes_that_change_after_the_check_are_not_used(tmp_path: Path) -> None:
    written(tmp_path, 1)
    found = newest(tmp_path)
    path = tmp_path / "step-000001" / "learner.safetensors"
    path.write_bytes(safetensors.torch.save({"w": torch.zeros(3)}))
    with pytest.raises(BrokenFolderError, match=r"learner\.safetensors is damaged"):
        found.tensors("learner")


@pytest.mark.parametrize("newest_is_broken", [False, True])
def test_trap_23_killed_at_any_moment_the_next_start_finds_a_whole_checkpoint_or_the_one_before(
    newest_is_broken: bool, tmp_path: Path
) -> None:
    """Saving and rotating, killed before every call that changes the disk, half a write included."""
    for k in range(1, 200):
        folder = tmp_path / str(k)
        written(folder, 1, 2)
        if newest_is_broken:
            (folder / "step-000002" / "state.json").write_bytes(b"")
        code = killed_at(k, lambda folder=folder: written(folder, 3))
        found = newest(folder, lambda text: None)
        assert found is not None, k
        assert found.step in ({1, 3} if newest_is_broken else {2, 3})
        names = [path.name for path in folder.glob("step-*") if verify_folder(path) is None]
        assert names in ([], ["step-000002"] if newest_is_broken else []), "nothing half removed keeps its name"
        tensors, state = load(found)
        assert tensors["learner"]["w"].tolist() == [float(found.step)] * 3
        assert state == {"learner": {"at": found.step}}
        if code == 0:
            assert found.step == 3
            break
        written(folder, found.step + 1)
        assert newest(folder).step == found.step + 1
        assert not [name for name in os.listdir(folder) if name.startswith(".tmp")]
    assert code == 0
    assert k > 25, "the points of a save, of which rotation is a part"


def test_a_full_disk_keeps_the_older_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, 1, 2)

    def full(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(StorageError, match=r"step-000003.*free some space"):
            written(tmp_path, 3)
    assert kept(tmp_path) == ["step-000001", "step-000002"]


def draws() -> tuple[float, float, list[float]]:
    return random.gauss(0, 1), float(np.random.randn()), torch.randn(3).tolist()


def test_random_states_come_back_through_a_file(tmp_path: Path) -> None:
    draws()  # leaves a second gaussian in store in python and numpy
    tensors, state = rng_state()
    state = json.loads(json.dumps(state))
    tensors = safetensors.torch.load(safetensors.torch.save(tensors))
    first = [draws() for _ in range(3)]
    assert [draws() for _ in range(3)] != first
    set_rng_state(tensors, state)
    assert [draws() for _ in range(3)] == first


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_random_states_of_the_gpu() -> None:
    tensors, state = rng_state()
    first = torch.randn(3, device="cuda")
    set_rng_state(tensors, state)
    assert torch.equal(torch.randn(3, device="cuda"), first)


class Weights:
    """A part with one tensor and one number."""

    def __init__(self, value: float) -> None:
        self.w = torch.tensor([value])
        self.count = int(value)

    def state_tensors(self) -> Mapping[str, Tensor]:
        return {"w": self.w}

    def state_dict(self) -> Mapping[str, object]:
        return {"count": self.count}

    def load_state(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        self.w.copy_(tensors["w"])
        self.count = state["count"]


def test_parts_are_filled_by_name(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path)
    parts = {"learner": Weights(1), "critic": Weights(2)}
    assert store.load_newest(parts, pytest.fail) == 0
    store.save(5, parts)
    expected = draws()[1:]  # not python's: beartype, on under pytest, draws from it in every checked call
    fresh = {"learner": Weights(8), "critic": Weights(9)}
    assert store.load_newest(fresh, pytest.fail) == 5
    assert [(p.w.item(), p.count) for p in fresh.values()] == [(1.0, 1), (2.0, 2)]
    assert draws()[1:] == expected, "the random states belong to every checkpoint"


def test_other_parts_are_refused_before_any_is_filled(tmp_path: Path) -> None:
    Checkpoints(tmp_path).save(5, {"learner": Weights(1), "critic": Weights(2)})
    learner = Weights(7)
    with pytest.raises(ValueError, match=r"holds other parts than this method has \(critic, source\)"):
        Checkpoints(tmp_path).load_newest({"learner": learner, "source": Weights(3)}, pytest.fail)
    assert learner.count == 7


def test_when_none_is_whole_nothing_starts_over_silently(tmp_path: Path) -> None:
    write_folder(tmp_path / "step-000003", {"state.json": b"{}"})
    (tmp_path / "step-000003" / "state.json").unlink()
    said: list[str] = []
    with pytest.raises(ValueError, match="no checkpoint in it is whole"):
        Checkpoints(tmp_path).load_newest({}, said.append)
    assert "step-000003: is not whole (state.json is missing)" in said[0]


def test_tidying_removes_what_a_killed_save_left_and_nothing_that_is_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step, {}, {}, keep=9)
    (tmp_path / ".tmp-step-000004").mkdir()
    (tmp_path / ".tmp-old-step-000000").mkdir()
    Checkpoints(tmp_path).tidy()
    assert kept(tmp_path) == ["step-000002", "step-000003"]
    (tmp_path / "step-000003" / "state.json").unlink()
    save(tmp_path, 4, {}, {}, keep=9)
    Checkpoints(tmp_path).tidy()
    assert kept(tmp_path) == ["step-000002", "step-000003", "step-000004"], "two whole ones"
