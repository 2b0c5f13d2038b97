"""The reference is the policy as it stood in memory at the start, its adapter off; computed once, kept by weights and tokens."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from folders import files
from trees import branch, random_trees, tiny_policy
from truing.data.lazy_trees import sizes_of
from truing.data.store import StoredTrees, TreeWriter
from truing.data.tree import Tree, TreeBatch
from truing.losses.dpo import DPO
from truing.models import reference
from truing.models.lora import adapter_off
from truing.models.policy import Policy
from truing.models.reference import with_reference
from truing.objectives import PairedPreference
from truing.runs.durable import STAGING, adopt_folder, inspect_folder
from truing.runs.lock import RunLock
from truing.train.learner import Learner
from truing.train.optim import Optimizer


def move_adapter(policy: Policy) -> None:
    """As if it had been trained: B is no longer 0."""
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.05)


@pytest.mark.parametrize("lora", [False, True])
def test_trap_09_the_first_dpo_loss_is_ln_2(lora: bool) -> None:
    policy, trees = tiny_policy(lora=lora), random_trees(9, longest=60)
    known = with_reference(policy, trees, [np.arange(4), np.arange(4, 9)])
    batches = [TreeBatch.of(known[:2]), TreeBatch.of(known[2:])]
    learner = Learner(policy, Optimizer(lr=1e-4, warmup=0.0, schedule="constant"), total_steps=100)
    metrics = learner.update(PairedPreference(loss=DPO(beta=0.1)), batches)
    assert metrics["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert metrics["reward_chosen"] == pytest.approx(0, abs=1e-5)
    assert learner.update(PairedPreference(loss=DPO(beta=0.1)), batches)["loss"] < math.log(2) - 1e-5


def test_trap_09_no_dropout_even_after_the_model_was_put_into_training_mode() -> None:
    policy = tiny_policy()
    policy.train()
    Learner(policy, Optimizer(), total_steps=100)
    assert not any(module.training for module in policy.modules())


def values(policy: Policy, trees: Sequence[Tree]) -> list[float]:
    """log pi of each scored token."""
    with torch.no_grad():
        return policy.log_probs(TreeBatch.of(trees)).tolist()


def flat(trees: Sequence[Tree]) -> list[float]:
    return [value for tree in trees for values in tree.reference or () for value in values.tolist()]


def test_trap_10_the_reference_is_the_policy_in_memory_not_what_its_name_loads() -> None:
    policy, trees = tiny_policy(), random_trees(4)
    as_loaded = values(policy, trees)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.5)
    in_memory = values(policy, trees)
    assert max(abs(a - b) for a, b in zip(as_loaded, in_memory, strict=True)) > 0.1
    assert flat(with_reference(policy, trees, [np.arange(len(trees))])) == in_memory


def test_trap_10_with_an_adapter_the_reference_is_the_adapter_switched_off() -> None:
    policy, trees = tiny_policy(lora=True), random_trees(4)
    base = values(tiny_policy(), trees)
    move_adapter(policy)
    assert max(abs(a - b) for a, b in zip(base, values(policy, trees), strict=True)) > 0.1
    assert flat(with_reference(policy, trees, [np.arange(len(trees))])) == base


def test_adapter_off_is_the_base_and_leaves_everything_as_it_was() -> None:
    policy, trees = tiny_policy(lora=True), random_trees(4)
    move_adapter(policy)
    flags = {name: p.requires_grad for name, p in policy.named_parameters()}
    assert {name for name, on in flags.items() if on} == {name for name in flags if "lora_" in name}
    adapted = values(policy, trees)
    with adapter_off(policy.model):
        assert values(policy, trees) == values(tiny_policy(), trees)
    assert values(policy, trees) == adapted
    assert {name: p.requires_grad for name, p in policy.named_parameters()} == flags
    with pytest.raises(ValueError, match="on the way"), adapter_off(policy.model):
        raise ValueError("on the way")
    assert values(policy, trees) == adapted
    assert {name: p.requires_grad for name, p in policy.named_parameters()} == flags


class Counted:
    """How many forward passes a policy makes."""

    def __init__(self, policy: Policy) -> None:
        self.passes = 0
        policy.model.get_decoder().register_forward_pre_hook(self._count)

    def _count(self, module: nn.Module, inputs: object) -> None:
        self.passes += 1


def asked(store: Path, trees: Sequence[Tree], policy: Policy | None = None) -> tuple[int, list[float]]:
    """Forward passes and results, one tree a pass."""
    policy = policy or tiny_policy()
    counted = Counted(policy)
    found = with_reference(policy, trees, [np.array([place]) for place in range(len(trees))], store=store)
    return counted.passes, flat(found)


def test_trap_24_equal_weights_and_tokens_hit_the_store(tmp_path: Path) -> None:
    trees = random_trees(3)
    passes, first = asked(tmp_path, trees)
    assert passes == 3
    assert asked(tmp_path, trees) == (0, first)
    assert asked(tmp_path, [replace(tree, key=9 - tree.key) for tree in trees]) == (0, first), "keys are not the tokens"
    passes, again = asked(tmp_path, trees, tiny_policy(lora=True))
    assert (passes, again) == (0, first), "the base of an adapter is the same reference"


def test_another_run_takes_over_a_whole_pass_of_the_same_groups(tmp_path: Path) -> None:
    trees, lent, groups = random_trees(4), tmp_path / "lent", [np.array([0, 2]), np.array([1, 3])]

    def run(name: str, groups: Sequence[np.ndarray], policy: Policy | None = None) -> tuple[int, list[float]]:
        policy = policy or tiny_policy()
        counted = Counted(policy)
        found = with_reference(policy, trees, groups, store=tmp_path / name, shared=lent)
        return counted.passes, flat(found)

    passes, first = run("first", groups)
    assert passes == 2
    assert run("second", groups) == (0, first)
    assert files(tmp_path / "first") == files(tmp_path / "second")
    assert run("other groups", [np.arange(4)])[0] == 1, "in other groups it is rounded otherwise"
    assert run("other weights", groups, tiny_policy(seed=5))[0] == 2
    assert len(list(lent.glob("*/values.f32"))) == 3
    for values in lent.glob("*/values.f32"):
        values.write_bytes(values.read_bytes()[:-4] + b"wxyz")
    assert run("third", groups) == (2, first), "what is damaged is made anew"
    assert run("fourth", groups) == (0, first)


def test_a_pass_in_other_groups_is_not_lent_as_one_in_these(tmp_path: Path) -> None:
    """A run that was finished on one rank and goes on on two: its results stay, and are not what a fresh run on two would find."""
    trees, store, lent = random_trees(4), tmp_path / "run", tmp_path / "lent"
    first = flat(with_reference(tiny_policy(), trees, [np.arange(4)], store=store))
    groups = [np.array([0, 1]), np.array([2, 3])]
    assert flat(with_reference(tiny_policy(), trees, groups, store=store, shared=lent)) == first
    assert not list(lent.glob("*/values.f32"))


def test_a_pass_is_lent_once_no_other_run_is_lending_and_what_a_killed_one_left_is_removed(tmp_path: Path) -> None:
    trees, lent = random_trees(2), tmp_path / "lent"

    def run() -> list[float]:
        return flat(with_reference(tiny_policy(), trees, [np.arange(2)], store=tmp_path / "run", shared=lent))

    (lent / f"{STAGING}making").mkdir(parents=True)
    lock = RunLock.acquire(lent)
    first = run()
    assert {path.name for path in lent.iterdir()} == {f"{STAGING}making", "lock"}
    lock.release()
    assert run() == first
    (brought,) = (path for path in lent.iterdir() if path.name != "lock")
    assert inspect_folder(brought)


def changed(tree: Tree, **fields: object) -> Tree:
    return replace(tree, **fields)


CHANGES: Mapping[str, Callable[[Tree], Tree]] = {
    "trunk": lambda t: changed(t, trunk=(*t.trunk[:-1], (t.trunk[-1] + 1) % 300)),
    "boundary": lambda t: changed(t, trunk=(*t.trunk, t.branches[0].tokens[0])),
    "response": lambda t: changed(t, branches=(branch([7, *t.branches[0].tokens[1:]]), *t.branches[1:])),
    "order": lambda t: changed(t, branches=t.branches[::-1]),
    "scored": lambda t: changed(t, branches=(replace(t.branches[0], scored=(False, *t.branches[0].scored[1:])), *t.branches[1:])),
}


@pytest.mark.parametrize("name", CHANGES)
def test_trap_24_a_changed_tree_misses_the_store(name: str, tmp_path: Path) -> None:
    trees = random_trees(3, seed=5)
    _, before = asked(tmp_path, trees)
    other = [trees[0], CHANGES[name](trees[1]), trees[2]]
    passes, found = asked(tmp_path, other)
    assert passes == 3
    assert found == asked(tmp_path / "fresh", other)[1]
    assert asked(tmp_path, trees) == (0, before), "and leaves the other's values alone"


def test_a_tree_that_is_in_no_group_has_no_number_for_its_reference() -> None:
    policy, trees = tiny_policy(), random_trees(3)
    found = with_reference(policy, trees, [np.array([2, 0])])
    assert flat([found[2], found[0]]) == pytest.approx(values(policy, [trees[2], trees[0]]), abs=1e-5)
    assert all(math.isnan(value) for value in flat([found[1]]))
    assert found[-1] == found[2]
    assert flat(found[::2]) == flat([found[0], found[2]])


def test_each_branch_of_a_tree_on_disk_has_the_numbers_of_its_own_tokens(tmp_path: Path) -> None:
    """Trees of different shapes in groups that are out of order, one of them with a token that is not scored."""
    one, two, three, four = random_trees(4, branches=3)
    part = replace(two.branches[1], scored=(False, *two.branches[1].scored[1:]))
    trees = [one, replace(two, branches=(two.branches[0], part)), replace(three, branches=three.branches[:1]), four]
    (tmp_path / ".tmp-store").mkdir()
    writer = TreeWriter(tmp_path / ".tmp-store", ["train"])
    for tree in trees:
        writer.append("train", tree)
    writer.close()
    adopt_folder(tmp_path / ".tmp-store", tmp_path / "store")
    stored = StoredTrees.open(tmp_path / "store", inspect_folder(tmp_path / "store"), "train")
    policy = tiny_policy()
    found = with_reference(policy, stored, [np.array([3, 1]), np.array([0]), np.array([2])], store=tmp_path / "reference")
    for tree, known in zip(trees, found, strict=True):
        assert [len(of_branch) for of_branch in known.reference or ()] == tree.scored
        assert flat([known]) == pytest.approx(values(policy, [tree]), abs=1e-5)


def test_an_interrupted_pass_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while computing or while writing, or stopped: what is on disk is not computed again, and the bytes are the same."""
    monkeypatch.setattr(reference, "KEPT_EVERY", 60)
    trees, policy = random_trees(8, longest=30), tiny_policy()
    groups = [np.array([place]) for place in (3, 1, 0, 2, 7, 6, 5, 4)]
    whole = with_reference(policy, trees, groups, store=tmp_path / "whole")
    ends = list(reference._ends(sizes_of(trees), groups, 0))
    assert len(ends) > 3
    calls = 0

    def fail(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError("killed")

    for place, (name, kept) in enumerate({"_computed": ends[0], "write_file": ends[0], "stop": ends[1]}.items()):
        store, calls = tmp_path / str(place), 0
        with pytest.MonkeyPatch.context() as patch:
            if name == "_computed":
                real = reference._computed
                patch.setattr(reference, name, lambda *a, real=real: (fail(), real(*a))[1])
            elif name == "write_file":
                write, calls = reference.write_file, -1  # the first one says that nothing is done yet
                patch.setattr(reference, name, lambda *a, write=write: (fail(), write(*a))[1])
            with pytest.raises(OSError, match="killed"):
                with_reference(policy, trees, groups, store=store, stop=fail if name == "stop" else None)
        counted, told = Counted(policy), []
        found = with_reference(policy, trees, groups, store=store, progress=lambda *done, told=told: told.append(done))
        assert counted.passes == len(groups) - kept, name
        assert told[-1] == (len(groups) - kept,) * 2
        assert flat(found) == flat(whole), name
        assert files(store) == files(tmp_path / "whole"), name


def test_trap_24_changed_weights_miss_the_store(tmp_path: Path) -> None:
    trees = random_trees(3)
    asked(tmp_path, trees)
    policy = tiny_policy()
    with torch.no_grad():
        policy.model.model.norm.weight[0] += 1e-3
    passes, found = asked(tmp_path, trees, policy)
    assert passes == 3
    assert found == asked(tmp_path / "fresh", trees, policy)[1]
    assert asked(tmp_path, trees, tiny_policy(dtype=torch.bfloat16))[0] == 3
    assert asked(tmp_path, trees)[0] == 0, "each model has its own"
