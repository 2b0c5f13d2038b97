"""log pi_ref of every scored token, computed before the first step and kept: no second model is held while training.

The reference is the policy as it stands in memory when training starts, with any adapter switched off. Results lie in a file of
numbers, keyed by the hash of its weights and of the tokens themselves, so that changed data or another model misses it. A pass
that was interrupted goes on where it stopped.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

import truing
from truing.data.lazy_trees import LazyTrees, keys_of, sizes_of
from truing.data.packing import Groups
from truing.data.store import StoredTrees
from truing.data.tree import Tree, TreeBatch
from truing.memory import give_back
from truing.models.load import weights_hash
from truing.models.lora import adapter_off, without_adapters
from truing.models.policy import Policy
from truing.parallel.world import World
from truing.runs.canonical import to_json
from truing.runs.durable import STAGING, adopt_folder, make_folder, remove, storage_errors, verify_folder, write_file
from truing.runs.flat import FlatFile
from truing.runs.lock import RunBusyError, RunLock

Places = Sequence[Int[np.ndarray, " _"]]

VALUES, DONE, KIND = "values.f32", "done.json", np.dtype("<f4")
KEPT_EVERY = 1 << 16
"""Tokens after which what was computed is written and a stop is honoured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Referenced(LazyTrees):
    """Trees with their scored tokens' log-probabilities under the reference, which are read when a tree is asked for."""

    trees: Sequence[Tree]
    values: FlatFile
    at: Int[np.ndarray, " bound"]
    """Where the values of each tree begin, and the end. Those of a tree that was in no group are NaN."""

    def __len__(self) -> int:
        return len(self.trees)

    def tree(self, number: int) -> Tree:
        start, end = self.at[number : number + 2].tolist()
        return self.trees[number].with_reference(torch.from_numpy(self.values.read(start, end - start)))

    @property
    def sizes(self) -> Int[np.ndarray, " tree"]:
        return sizes_of(self.trees)

    @property
    def keys(self) -> Int[np.ndarray, " tree"]:
        return keys_of(self.trees)


def with_reference(
    policy: Policy,
    trees: Sequence[Tree],
    groups: Iterable[Int[np.ndarray, " _"]],
    *,
    store: Path | None = None,
    shared: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    world: World | None = None,
    stop: Callable[[], None] | None = None,
) -> Sequence[Tree]:
    """The same trees, each with its scored tokens' log-probabilities under the reference; each rank computes its share.

    `groups` says which trees (by their places) share a forward pass. Given the micro-batches of the first epoch, policy and
    reference are rounded alike, so that the first loss of DPO is ln 2 to the last bit in bf16 too. `store` is a folder that keeps
    results between starts of a run, `shared` one that keeps those of whole passes for other runs of the same trees and groups.
    `stop` is called, on all ranks alike, whenever results are on disk: it may raise.
    """
    world = world or World()
    places = list(groups)
    counts = _scored(trees)
    at = np.concatenate([[0], np.cumsum(counts)])
    key = _key(policy, trees, places)
    folder = store / key if store else None
    batches = hashlib.sha256(b"".join(np.append(group, -1).astype("<i8").tobytes() for group in places)).hexdigest()
    lent = shared / _shared_name(key, batches, policy) if shared else None
    if lent and folder and world.rank == 0:
        _borrow(lent, folder)
    values, done = _opened(folder, int(at[-1]), batches, len(places), world)
    first = done
    for end in _ends(sizes_of(trees), places, done):

        def tick(count: int, before: int = done) -> None:
            if progress:
                progress(min(before + count * world.size, len(places)) - first, len(places) - first)

        chunk = Groups(trees=trees, places=places[done:end])
        for group, found in zip(chunk.places, world.spread(chunk, lambda share: _computed(policy, share, tick)), strict=True):
            if world.rank == 0 or folder is None:
                parts = found.split(counts[group].tolist())
                for place, part in zip(group.tolist(), parts, strict=True):
                    values.write(int(at[place]), part.numpy())
        done = end
        if folder and world.rank == 0:
            values.sync()
            write_file(folder / DONE, to_json({"batches": batches, "done": done, "of": len(places)}))
        if stop and done < len(places):
            stop()
    if lent and folder and world.rank == 0:
        _lend(folder, lent, batches)
    world.wait()  # until it is written: what follows reads it
    return Referenced(trees=trees, values=values, at=at)


def _scored(trees: Sequence[Tree]) -> Int[np.ndarray, " tree"]:
    """How many scored tokens each tree has."""
    if isinstance(trees, StoredTrees):
        return trees.scored
    return np.array([sum(tree.scored) for tree in trees], dtype=np.int64)


def _computed(policy: Policy, share: Sequence[Sequence[Tree]], tick: Callable[[int], None]) -> list[Tensor]:
    found = []
    for group in share:
        with torch.no_grad(), adapter_off(policy.model):
            found.append(policy.log_probs(TreeBatch.of(group, policy.device)).cpu())
        give_back()
        tick(len(found))
    return found


def _borrow(lent: Path, folder: Path) -> None:
    """The results of another run's whole pass, where they are there and this run has none yet."""
    if (folder / DONE).is_file() or not verify_folder(lent):
        return
    make_folder(folder)
    with storage_errors(folder):
        shutil.copyfile(lent / VALUES, folder / VALUES)
    FlatFile.open(folder / VALUES, KIND, write=True).sync()
    write_file(folder / DONE, (lent / DONE).read_bytes())


def _shared_name(key: str, batches: str, policy: Policy) -> str:
    """What other runs find a pass by: they may be of another version or on another device, where it is rounded otherwise."""
    made = [key, batches, truing.__version__, torch.__version__, policy.device.type]
    return hashlib.sha256(repr(made).encode()).hexdigest()


def _lend(folder: Path, lent: Path, batches: str) -> None:
    """A copy of whole results for other runs; where one of those is just bringing its own, nothing.

    Nor of results that were made in other groups, as by another number of ranks.
    """
    if verify_folder(lent) or json.loads((folder / DONE).read_bytes())["batches"] != batches:
        return
    make_folder(lent.parent)
    try:
        lock = RunLock.acquire(lent.parent)
    except RunBusyError:
        return
    try:
        if verify_folder(lent):  # brought while the lock was waited for
            return
        with storage_errors(lent):
            for left_over in lent.parent.glob(f"{STAGING}*"):
                remove(left_over)
            scratch = lent.parent / f"{STAGING}making"
            scratch.mkdir()
            for name in (VALUES, DONE):
                shutil.copyfile(folder / name, scratch / name)
        adopt_folder(scratch, lent)
    finally:
        lock.release()


def _opened(folder: Path | None, count: int, batches: str, of: int, world: World) -> tuple[FlatFile, int]:
    """The file of values and how many groups are in it; rank 0 makes it anew where it was begun in other batches."""
    if folder is None:
        return FlatFile.filled(None, KIND, count, np.nan), 0
    if world.rank == 0:
        found = json.loads((folder / DONE).read_bytes()) if (folder / DONE).is_file() else {}
        whole = bool(found) and found["done"] == found["of"]
        if not whole and found.get("batches") != batches:
            make_folder(folder)
            remove(folder / DONE)
            FlatFile.filled(folder / VALUES, KIND, count, np.nan).sync()
            found = {"batches": batches, "done": 0, "of": of}
            write_file(folder / DONE, to_json(found))
        done = of if whole else found["done"]
    else:
        done = 0
    done = world.largest(done)
    values = FlatFile.open(folder / VALUES, KIND, write=world.rank == 0)
    assert len(values) == count, f"{folder}: has {len(values)} values, {count} were written"
    return values, done


def _ends(sizes: Int[np.ndarray, " tree"], places: Places, done: int) -> Iterator[int]:
    """Where to stop and write: the number of groups that are done by then, the last time that of all."""
    tokens = 0
    for number in range(done, len(places)):
        tokens += int(sizes[places[number]].sum())
        if tokens >= KEPT_EVERY or number == len(places) - 1:
            yield number + 1
            tokens = 0


def _key(policy: Policy, trees: Sequence[Tree], places: Places) -> str:
    digest = hashlib.sha256(f"{weights_hash(without_adapters(policy.model))} {policy.dtype} {policy.layout} by token".encode())
    if isinstance(trees, StoredTrees):
        digest.update(trees.fingerprint.encode())
    else:
        for tree in trees:
            digest.update(tree_key(tree))
    digest.update(np.unique(np.concatenate([*places, np.empty(0, np.int64)])).astype("<i8").tobytes())
    return digest.hexdigest()


def tree_key(tree: Tree) -> bytes:
    """A name for a tree's tokens: trees of the same tokens, scored alike, have the same log-probabilities."""
    parts = (tree.trunk, *((branch.tokens, branch.scored) for branch in tree.branches))
    return hashlib.sha256(repr(parts).encode()).digest()
