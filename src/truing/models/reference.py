"""log pi_ref of every scored token, computed before the first step and kept: no second model is held while training.

The reference is the policy as it stands in memory when training starts, with any adapter switched off. Results are stored by the
hash of its weights and of the tokens themselves, so changed data or another model misses the store.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor

from truing.data.tree import Tree, TreeBatch
from truing.memory import give_back
from truing.models.load import weights_hash
from truing.models.lora import adapter_off
from truing.models.policy import Policy
from truing.parallel.world import World
from truing.runs.durable import make_folder, write_file


def with_reference(
    policy: Policy,
    trees: Sequence[Tree],
    groups: Iterable[Sequence[Tree]],
    *,
    store: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    world: World | None = None,
) -> list[Tree]:
    """The same trees, each with its scored tokens' log-probabilities under the reference; each rank computes its share.

    `groups` says which trees share a forward pass. Given the micro-batches of the first epoch, policy and reference are rounded
    alike, so that the first loss of DPO is ln 2 to the last bit in bf16 too. `store` is a folder that keeps results between runs.
    """
    path = store / f"{_policy_key(policy)}.safetensors" if store else None
    known = _read(path) if path else {}
    keys = {tree: tree_key(tree) for tree in trees}
    missing = [group for group in groups if any(keys[tree] not in known for tree in group)]

    def computed(share: Sequence[Sequence[Tree]]) -> list[Tensor]:
        found = []
        for group in share:
            with torch.no_grad(), adapter_off(policy.model):
                found.append(policy.log_probs(TreeBatch.of(group, policy.device)).cpu())
            give_back()
            if progress:
                progress(len(found), len(share))
        return found

    world = world or World()
    for group, values in zip(missing, world.spread(missing, computed), strict=True):
        of_trees = values.split([sum(tree.scored) for tree in group])
        known.update(zip((keys[tree] for tree in group), of_trees, strict=True))
    if path and missing and world.rank == 0:
        make_folder(path.parent)
        write_file(path, _bytes(known))
    world.wait()  # until it is written: the next call begins with reading it
    return [tree.with_reference(known[keys[tree]]) for tree in trees]


def _policy_key(policy: Policy) -> str:
    base = {name.replace(".base_layer", ""): value for name, value in policy.model.named_parameters() if "lora_" not in name}
    return hashlib.sha256(f"{weights_hash(base)} {policy.dtype} {policy.layout} by token".encode()).hexdigest()


def tree_key(tree: Tree) -> bytes:
    """A name for a tree's tokens: trees of the same tokens, scored alike, have the same log-probabilities."""
    parts = (tree.trunk, *((branch.tokens, branch.scored) for branch in tree.branches))
    return hashlib.sha256(repr(parts).encode()).digest()


def _bytes(known: Mapping[bytes, Tensor]) -> bytes:
    tensors = {
        "keys": torch.tensor([list(key) for key in known], dtype=torch.uint8),
        "tokens": torch.tensor([len(values) for values in known.values()]),
        "values": torch.cat(list(known.values())),
    }
    return save(tensors)


def _read(path: Path) -> dict[bytes, Tensor]:
    if not path.is_file():
        return {}
    tensors = load(path.read_bytes())
    values = tensors["values"].split(tensors["tokens"].tolist())
    return dict(zip(map(bytes, tensors["keys"].tolist()), values, strict=True))
