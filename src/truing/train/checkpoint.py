"""Checkpoints: `step-000012` folders of safetensors and JSON, whole or not there at all. No pickle anywhere.

One `<part>.safetensors` per part (further ones of 128 MiB each for a large part) and one `state.json`; bytes become durable in
`truing.runs.durable`. What a part puts in is its own affair. The random states of python, numpy and torch go into every checkpoint.
"""

import json
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from truing.memory import give_back
from truing.runs.canonical import to_json
from truing.runs.durable import (
    STAGING,
    BrokenFolderError,
    Manifest,
    discard,
    inspect_folder,
    read_entry,
    remove,
    storage_errors,
    write_folder,
)
from truing.runs.read import step_folders
from truing.runs.run import Part

STATE = "state.json"
KEEP = 2
SHARD = 1 << 27
"""Bytes of tensors in one file, which is all that is held twice in memory while it is written or read."""

Tensors = Mapping[str, Tensor]
State = Mapping[str, Any]
Complain = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint whose every byte was compared with its manifest."""

    folder: Path
    step: int
    manifest: Manifest
    state: State
    """By part, what `state_dict` gave."""

    def tensors(self, part: str) -> dict[str, Tensor]:
        """The tensors of one part, out of bytes that are compared once more as they are read."""
        found: dict[str, Tensor] = {}
        for entry in self.manifest.entries:
            if entry.name != STATE and _part_of(entry.name) == part:
                found |= safetensors.torch.load(read_entry(self.folder, entry))
        return found

    @property
    def parts(self) -> frozenset[str]:
        return frozenset(_part_of(entry.name) for entry in self.manifest.entries if entry.name != STATE)


def _part_of(name: str) -> str:
    return name.partition(".")[0]


def save(folder: Path, step: int, tensors: Mapping[str, Tensors], state: Mapping[str, State], *, keep: int = KEEP) -> Path:
    """Writes `folder/step-<step>` and then removes what is older than the last `keep` whole ones."""
    _remove_left_overs(folder)
    path = folder / f"step-{step:06}"
    write_folder(path, _files(step, tensors, state))
    rotate(folder, keep)
    return path


def _remove_left_overs(folder: Path) -> None:
    if folder.is_dir():
        with storage_errors(folder):
            for left_over in folder.glob(f"{STAGING}*"):
                remove(left_over)


def _files(step: int, tensors: Mapping[str, Tensors], state: Mapping[str, State]) -> Iterator[tuple[str, bytes]]:
    for part, named in tensors.items():
        assert part.isidentifier(), f"not a name for a part: {part!r}"
        for number, shard in enumerate(_shards(named), 1):
            yield f"{part}.safetensors" if number == 1 else f"{part}.{number}.safetensors", safetensors.torch.save(_apart(shard))
    yield STATE, to_json({"step": step, "parts": state})


def _shards(named: Tensors) -> Iterator[Tensors]:
    """The tensors in order, cut into files; one file, empty, for a part without tensors."""
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in named.items():
        if shard and size + tensor.nbytes > SHARD:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += tensor.nbytes
    yield shard


def _apart(named: Tensors) -> dict[str, Tensor]:
    """Tensors on the CPU, each with memory of its own, as safetensors asks: tied weights are written twice."""
    seen: set[int] = set()
    result = {}
    for name, tensor in named.items():
        own = tensor.detach().cpu().contiguous()
        if own.untyped_storage().data_ptr() in seen:
            own = own.clone()
        seen.add(own.untyped_storage().data_ptr())
        result[name] = own
    return result


def rotate(folder: Path, keep: int = KEEP) -> None:
    """Removes the checkpoints older than the newest `keep` whole ones; with fewer whole ones nothing goes."""
    whole = 0
    for _, path in reversed(step_folders(folder)):
        if whole >= keep:
            discard(path)
        elif _is_whole(path):
            whole += 1


def _is_whole(path: Path) -> bool:
    try:
        open_checkpoint(path)
    except BrokenFolderError:
        return False
    return True


def open_checkpoint(path: Path) -> Checkpoint:
    """Compares every byte with the manifest; raises BrokenFolderError naming what is wrong."""
    manifest = inspect_folder(path)
    raw = json.loads(read_entry(path, manifest[STATE]))
    if path.name != f"step-{raw['step']:06}":
        raise BrokenFolderError(f"it was written as step {raw['step']}, under another name")
    return Checkpoint(folder=path, step=raw["step"], manifest=manifest, state=raw["parts"])


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=3)


def newest(folder: Path, complain: Complain = _warn) -> Checkpoint | None:
    """The newest whole checkpoint, never just the highest number; those passed over are named."""
    for _, path in reversed(step_folders(folder)):
        try:
            return open_checkpoint(path)
        except BrokenFolderError as fault:
            complain(f"{path}: is not whole ({fault}); taking the one before it")
    return None


def load(checkpoint: Checkpoint) -> tuple[dict[str, dict[str, Tensor]], State]:
    """All tensors and states by part, on the CPU."""
    return {part: checkpoint.tensors(part) for part in sorted(checkpoint.parts)}, checkpoint.state


class Checkpoints:
    """The checkpoints of one run, as `Run` asks for them."""

    def __init__(self, folder: Path, keep: int = KEEP) -> None:
        self.folder, self.keep = folder, keep

    def save(self, step: int, parts: Mapping[str, Part]) -> None:
        """Writes all parts and the random states."""
        give_back(all_of_it=True)  # large parts of a file are taken from the system, not from what training has freed
        every = {**parts, "random": RandomStates()}
        tensors = {name: part.state_tensors() for name, part in every.items()}
        save(self.folder, step, tensors, {name: part.state_dict() for name, part in every.items()}, keep=self.keep)

    def tidy(self) -> None:
        """Removes what a process that was killed while saving left: half a checkpoint, or one more than is kept."""
        _remove_left_overs(self.folder)
        if len(step_folders(self.folder)) > self.keep:
            rotate(self.folder, self.keep)

    def load_newest(self, parts: Mapping[str, Part], complain: Complain) -> int:
        """Fills the parts from the newest whole checkpoint and returns its step, 0 where there is none yet."""
        checkpoint = newest(self.folder, complain)
        if checkpoint is None:
            if step_folders(self.folder):
                raise ValueError(
                    f"{self.folder}: no checkpoint in it is whole; restore one from a copy, or delete the run to start over"
                )
            return 0
        every = {**parts, "random": RandomStates()}
        if checkpoint.parts != every.keys():
            names = ", ".join(sorted(checkpoint.parts ^ every.keys()))
            raise ValueError(f"{checkpoint.folder}: holds other parts than this method has ({names}); take another run folder")
        for name, part in every.items():
            part.load_state(checkpoint.tensors(name), checkpoint.state[name])
        return checkpoint.step


class RandomStates:
    """The global random states of python, numpy and torch as a part of every checkpoint."""

    def state_tensors(self) -> dict[str, Tensor]:
        return rng_state()[0]

    def state_dict(self) -> dict[str, object]:
        return rng_state()[1]

    def load_state(self, tensors: Tensors, state: State) -> None:
        set_rng_state(tensors, state)


def seed_random_states(seed: int) -> None:
    """Starts the global random states from a seed: else python's and numpy's, in every checkpoint, would be each process's own."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def rng_state() -> tuple[dict[str, Tensor], dict[str, object]]:
    """The global random states: torch's as tensors, python's and numpy's as JSON."""
    tensors = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors |= {f"cuda.{index}": value for index, value in enumerate(torch.cuda.get_rng_state_all())}
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    words_of_numpy = np.asarray(keys).tolist()
    numpy_state = {"kind": kind, "keys": words_of_numpy, "position": position, "has_gauss": has_gauss, "cached": cached}
    return tensors, {"python": {"version": version, "words": words, "gauss": gauss}, "numpy": numpy_state}


def set_rng_state(tensors: Tensors, state: State) -> None:
    """Puts back what `rng_state` gave; the states of devices that this machine lacks are left out."""
    torch.set_rng_state(tensors["torch"])
    for index in range(torch.cuda.device_count()):
        if f"cuda.{index}" in tensors:
            torch.cuda.set_rng_state(tensors[f"cuda.{index}"], index)
    python, legacy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"]), python["gauss"]))
    keys = np.array(legacy["keys"], dtype=np.uint32)
    np.random.set_state((legacy["kind"], keys, legacy["position"], legacy["has_gauss"], legacy["cached"]))
