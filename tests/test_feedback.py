"""Losses held against the whole batch: by hand, their baselines, and that no split or pack changes a number."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trees import branch, gradients, random_trees, relative_gap, tiny_policy
from truing import baselines
from truing.baselines import (
    ReadTogether,
    RunningMeans,
    class_means,
    in_one_pass,
    log_ratios,
    mismatched_kl,
    sorted_counterparts,
)
from truing.data.mismatch import mismatched
from truing.data.source import TreeSource
from truing.data.tree import Tree, TreeBatch
from truing.losses import FEEDBACK_LOSSES, FeedbackLogps, FeedbackLoss, Pair, PairLogps
from truing.losses.aot import AOT
from truing.losses.aot_unpaired import UnpairedAOT
from truing.losses.bco import BCO
from truing.losses.dpo import DPO
from truing.losses.kto import KTO
from truing.models.policy import Policy
from truing.models.reference import tree_key, with_reference
from truing.objectives import SortedPreference, UnpairedFeedback
from truing.parallel.world import World
from truing.recipes.feedback import comparable
from truing.recipes.mismatches import with_mismatches
from truing.runs.read import read_rows
from truing.train.learner import Learner
from truing.train.optim import Optimizer
from zygote import Zygote

SHARED = Path(__file__).parents[1] / "../shared/data"
# eps well above the gradients' rounding noise: Adam divides by their size, and would turn noise into whole steps
SETTINGS = Optimizer(lr=1e-4, warmup=0.0, schedule="constant", eps=1e-6)
LONGEST = 200


def feedback_trees(count: int, *, seed: int = 0, same_prompts: bool = False) -> list[Tree]:
    """Single responses, two of three desirable; some of them to the same prompt."""
    trees = [replace(tree, desirable=(tree.key % 3 != 0,)) for tree in random_trees(count, branches=1, seed=seed)]
    return [replace(tree, trunk=trees[tree.key // 2 * 2].trunk) for tree in trees] if same_prompts else trees


def feedback(values: list[float], wanted: list[bool], baseline: float = 0.0, reference: float = 0.0) -> FeedbackLogps:
    policy = torch.tensor(values, dtype=torch.float64)
    return FeedbackLogps(
        policy=policy,
        reference=torch.full_like(policy, reference),
        desirable=torch.tensor(wanted),
        baseline=torch.tensor(baseline, dtype=torch.float64),
    )


def method(loss: FeedbackLoss, count: int = 8, seed: int = 0) -> tuple[Policy, UnpairedFeedback, list[Tree]]:
    """A policy that has left its reference, and feedback with the reference's log-probabilities."""
    trees, reference = feedback_trees(count, seed=seed, same_prompts=True), tiny_policy(seed=2)
    objective = UnpairedFeedback(loss=loss, max_tokens=LONGEST)
    pairs = list(objective.mismatched(trees).values())
    if pairs:
        objective = objective.knowing(with_reference(reference, pairs, [np.arange(len(pairs))]))
    return tiny_policy(seed=1), objective, with_reference(reference, trees, [np.arange(len(trees))])


# -- the losses by hand


def test_kto_by_hand() -> None:
    """beta 0.5, z 1: a desirable response with log-ratio 3 gains 1, so 1 - sigma(1); an undesirable one of -1 loses 1, the same."""
    losses = KTO(beta=0.5)(feedback([3.0, -1.0, -1.0, 3.0], [True, False, True, False], baseline=1.0))
    assert losses.tolist() == pytest.approx([0.2689414, 0.2689414, 0.7310586, 0.7310586], abs=1e-7)
    weighted = KTO(beta=0.5, desirable_weight=2.0, undesirable_weight=3.0)
    losses = weighted(feedback([3.0, -1.0], [True, False], baseline=1.0))
    assert losses.tolist() == pytest.approx([0.5378828, 0.8068243], abs=1e-7)


def test_kto_is_lambda_minus_the_value_of_equation_7() -> None:
    logps = feedback([0.3, -2.0, 4.0], [True, False, False], baseline=0.7, reference=-0.1)
    ratio = [0.4, -1.9, 4.1]
    values = [0.8 / (1 + math.exp(-0.2 * (ratio[0] - 0.7))), *(1.3 / (1 + math.exp(-0.2 * (0.7 - r))) for r in ratio[1:])]
    expected = [0.8 - values[0], 1.3 - values[1], 1.3 - values[2]]
    assert KTO(beta=0.2, desirable_weight=0.8, undesirable_weight=1.3)(logps).tolist() == pytest.approx(expected, abs=1e-12)


def test_bco_by_hand() -> None:
    """beta 0.5, delta 0.5 (a log-ratio of 1): rewards 1.5 and -0.5 lie 1 above and 1 below: log(1 + exp(-1)), or log(1 + e)."""
    losses = BCO(beta=0.5)(feedback([3.0, -1.0, -1.0, 3.0], [True, False, True, False], baseline=1.0))
    assert losses.tolist() == pytest.approx([0.3132617, 0.3132617, 1.3132617, 1.3132617], abs=1e-7)


def test_unpaired_aot_by_hand() -> None:
    """beta 0.1: 2 ahead of its counterpart, log(1 + exp(-0.2)); a response as far behind has log(1 + exp(0.2))."""
    losses = UnpairedAOT(beta=0.1)(feedback([3.0, 3.0], [True, False], baseline=1.0))
    assert losses.tolist() == pytest.approx([0.5981389, 0.7981389], abs=1e-7)


@pytest.mark.parametrize("loss", FEEDBACK_LOSSES)
def test_trap_09_policy_equal_to_reference_gives_the_starting_loss(loss: str) -> None:
    losses = FEEDBACK_LOSSES[loss]()(feedback([-7.0, -7.0], [True, False], reference=-7.0))
    assert losses.tolist() == pytest.approx([0.5 if loss == "kto" else math.log(2)] * 2)


@pytest.mark.parametrize("loss", FEEDBACK_LOSSES)
def test_more_of_what_is_desirable_and_less_of_what_is_not_lowers_the_loss(loss: str) -> None:
    policy = torch.tensor([-3.0, -3.0, -9.0, -9.0], requires_grad=True)
    wanted = torch.tensor([True, False, True, False])
    logps = FeedbackLogps(policy=policy, reference=torch.full((4,), -5.0), desirable=wanted, baseline=torch.tensor(0.5))
    FEEDBACK_LOSSES[loss]()(logps).sum().backward()
    assert policy.grad is not None
    assert (policy.grad < 0).tolist() == wanted.tolist()


@pytest.mark.parametrize("loss", FEEDBACK_LOSSES)
def test_a_label_and_the_sign_of_the_log_ratio_change_places(loss: str) -> None:
    one = FEEDBACK_LOSSES[loss]()(feedback([1.5, -0.5, 4.0], [True, False, True], baseline=0.25))
    other = FEEDBACK_LOSSES[loss]()(feedback([-1.5, 0.5, -4.0], [False, True, False], baseline=-0.25))
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("loss", FEEDBACK_LOSSES)
def test_gradients_of_feedback_losses_are_right_and_the_baseline_has_none(loss: str) -> None:
    policy = torch.tensor([-1.0, -2.5, 0.3, 4.0], dtype=torch.float64, requires_grad=True)
    baseline = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)

    def losses(values: Tensor) -> Tensor:
        reference, wanted = torch.zeros(4, dtype=torch.float64), torch.tensor([True, True, False, False])
        return FEEDBACK_LOSSES[loss]()(FeedbackLogps(policy=values, reference=reference, desirable=wanted, baseline=baseline))

    assert torch.autograd.gradcheck(losses, (policy,))
    losses(policy).sum().backward()
    assert baseline.grad is None


@pytest.mark.parametrize("loss", FEEDBACK_LOSSES)
@pytest.mark.parametrize("extreme", [0.0, -1e-8, -1e4, 1e4])
def test_feedback_losses_are_finite_at_the_extremes(loss: str, extreme: float) -> None:
    policy = torch.tensor([extreme, extreme], requires_grad=True)
    logps = FeedbackLogps(
        policy=policy, reference=torch.zeros(2), desirable=torch.tensor([True, False]), baseline=torch.tensor(0.0)
    )
    total = FEEDBACK_LOSSES[loss]()(logps).sum()
    total.backward()
    assert torch.isfinite(total)
    assert policy.grad is not None
    assert torch.isfinite(policy.grad).all()


def test_feedback_losses_equal_trls_on_the_same_tensors() -> None:
    """Values of trl 1.16.0 on these tensors: `KTOTrainer`, loss_type="kto"; `DPOTrainer`, loss_type="aot_unpaired"."""
    logps = FeedbackLogps(
        policy=torch.tensor([-10.5, -20.0, -12.0, -3.25, -7.75]),
        reference=torch.tensor([-11.0, -18.5, -16.0, -4.0, -7.0]),
        desirable=torch.tensor([True, True, True, False, False]),
        baseline=torch.tensor(0.7),
    )
    losses = KTO(beta=0.2, desirable_weight=1.2, undesirable_weight=0.9)(logps)
    assert losses.tolist() == pytest.approx([0.6119984, 0.7299109, 0.4088875, 0.45225, 0.3852035], abs=1e-6)
    losses = KTO(beta=0.2, desirable_weight=1.2, undesirable_weight=0.9)(replace(logps, baseline=torch.tensor(0.0)))
    assert losses.tolist() == pytest.approx([0.570025, 0.6893311, 0.3720306, 0.4836868, 0.4163132], abs=1e-6)
    wanted, other = [-1.5, 0.5, 0.75], [-2.5, -0.75, 4.0]  # sorted log-ratios
    losses = [UnpairedAOT(beta=0.2)(feedback([u], [True], baseline=v)).item() for u, v in zip(wanted, other, strict=True)]
    assert losses == pytest.approx([0.5981389, 0.5759394, 1.0700554], abs=1e-6)


# -- mismatched prompts and responses


def test_trap_13_every_prompt_gets_another_prompts_response() -> None:
    trees = feedback_trees(9, same_prompts=True)
    found, own = mismatched(trees, max_tokens=LONGEST), {tree.key: tree for tree in trees}
    assert found.keys() == own.keys()
    for key, tree in found.items():
        assert tree.trunk == own[key].trunk
        answers = {other.branches[0].tokens for other in trees if other.trunk == tree.trunk}
        assert tree.branches[0].tokens not in answers
        assert tree.branches[0].tokens in {other.branches[0].tokens for other in trees}
        assert tree.reference is None
    assert mismatched(trees[::-1], max_tokens=LONGEST) == found, "it depends on which records there are, not on their order"


def test_trap_13_a_batch_of_one_prompt_has_no_mismatch_and_its_baseline_is_0() -> None:
    (one, two, *_) = feedback_trees(4, same_prompts=True)
    assert one.trunk == two.trunk
    for trees in ([one], [one, two], []):
        assert mismatched(trees, max_tokens=LONGEST) == {}
        batches = [TreeBatch.of(trees)] if trees else []
        assert mismatched_kl(tiny_policy(), batches, World(), reference={}, max_tokens=LONGEST) == 0.0


def test_a_mismatched_response_is_cut_where_it_would_be_too_long() -> None:
    short = Tree(trunk=(5,), branches=(branch(range(9, 19)),), key=0, desirable=(True,))
    long = Tree(trunk=tuple(range(20, 30)), branches=(branch([7]),), key=1, desirable=(False,))
    found = mismatched([short, long], max_tokens=13)
    assert found[0].branches[0].tokens == (7,)
    assert found[1].branches[0].tokens == (9, 10, 11)


def test_trap_13_the_baseline_is_the_mean_log_ratio_of_mismatches_at_least_0() -> None:
    policy, objective, trees = method(KTO())
    pairs = list(mismatched(trees, max_tokens=LONGEST).values())
    with torch.no_grad():
        here = policy.response_log_probs(TreeBatch.of(pairs))
        there = tiny_policy(seed=2).response_log_probs(TreeBatch.of(pairs))
    mean = float((here - there).mean())
    ((found,),) = objective.prepare(policy, [TreeBatch.of(trees)], World()).of_batches
    assert found == pytest.approx(max(0.0, mean), abs=1e-5)
    turned = objective.knowing(
        replace(tree, reference=((2 * mine - theirs)[None],)) for tree, mine, theirs in zip(pairs, here, there, strict=True)
    )
    ((opposite,),) = turned.prepare(policy, [TreeBatch.of(trees)], World()).of_batches
    assert {found, opposite} >= {0.0}, "of a mean and its opposite one is clamped"
    assert found + opposite == pytest.approx(abs(mean), abs=1e-5)


def test_the_mismatches_of_a_policy_with_itself_have_a_baseline_of_0() -> None:
    trees, policy = feedback_trees(6), tiny_policy()
    pairs = list(mismatched(trees, max_tokens=LONGEST).values())
    known = {tree_key(tree): tree.reference_sums()[0] for tree in with_reference(policy, pairs, [np.arange(len(pairs))])}
    assert mismatched_kl(policy, [TreeBatch.of(trees)], World(), reference=known, max_tokens=LONGEST) == 0.0


def with_long_prompts(trees: list[Tree]) -> list[Tree]:
    return [replace(tree, trunk=(*range(10, 70), *tree.trunk)) for tree in trees]


def test_mismatches_are_read_in_the_training_pass_where_that_costs_less_and_one_micro_batch_is_the_step() -> None:
    """Six operations a token of y' against two of it and of its prompt."""
    tree = Tree(trunk=(1, 2, 3, 4, 5), branches=(branch([7]),), key=0)
    for length, together in ((1, True), (2, True), (3, False)):
        pairs = {0: replace(tree, branches=(branch(range(length)),))}
        assert in_one_pass([tree], pairs, micro_tokens=6) == together
        assert not in_one_pass([tree], pairs, micro_tokens=5)
    assert not in_one_pass([tree], {}, micro_tokens=6)
    assert not in_one_pass([], {}, micro_tokens=6)


def test_read_in_one_pass_or_apart_the_numbers_are_the_same(monkeypatch) -> None:
    found = []
    for together in (True, False):
        monkeypatch.setattr(baselines, "in_one_pass", lambda *_, together=together, **__: together)
        policy, objective, trees = method(KTO(beta=0.3))
        less_likely = {key: known - 5.0 for key, known in objective.mismatched_reference.items()}  # so that z_0 is above 0
        objective, batch = replace(objective, mismatched_reference=less_likely), TreeBatch.of(trees)
        ((statistic,),) = objective.prepare(policy, [batch], World()).of_batches
        assert isinstance(statistic, ReadTogether if together else float)
        output = objective(policy, batch, statistic)
        output.total.backward()
        with torch.no_grad():
            ((without,),) = objective.prepare(policy, [batch], World()).of_batches
        assert isinstance(without, float), "an evaluation trains on nothing"
        found.append((output, gradients(policy), without))
    (one, of_one, again), (apart, of_apart, _) = found
    assert {name: mean.sum for name, mean in one.metrics.items()} == pytest.approx(
        {name: mean.sum for name, mean in apart.metrics.items()}, rel=1e-5, abs=1e-5
    )
    assert again == pytest.approx(apart.metrics["baseline"].sum / 8, abs=1e-6)
    assert again > 0
    assert relative_gap(of_one, of_apart) < 1e-6


@pytest.mark.parametrize(("micro_tokens", "long_prompts"), [(10_000, True), (10_000, False), (200, True)])
def test_trap_09_at_step_0_the_baseline_is_0_to_the_last_bit_in_bf16_too(micro_tokens: int, long_prompts: bool) -> None:
    """The reference reads mismatches as the step does: in one pass with the answers, or apart."""
    policy = tiny_policy(dtype=torch.bfloat16)
    trees = feedback_trees(12, same_prompts=True)
    trees = with_long_prompts(trees) if long_prompts else trees
    source = TreeSource(trees, batch_size=4, micro_tokens=micro_tokens, seed=0)
    asked: list[int] = []

    def referenced(wanted: Sequence[Tree], groups: Iterable[np.ndarray], _what: str) -> Sequence[Tree]:
        groups = list(groups)
        asked.append(sum(len(wanted[place].trunk) for group in groups for place in group.tolist()))
        return with_reference(policy, wanted, groups)

    objective = UnpairedFeedback(loss=KTO(), max_tokens=LONGEST, micro_tokens=micro_tokens)
    objective, source.trees = with_mismatches(objective, source, (), steps=6, budget=micro_tokens, referenced=referenced)
    together = long_prompts and micro_tokens > 1000
    for step in range(3):
        batches = [TreeBatch.of(group) for group in source.micro_batches(step, 0)]
        assert (len(batches) > 1) == (micro_tokens == 200)
        of_batches = objective.prepare(policy, batches, World()).of_batches
        assert {isinstance(statistic, ReadTogether) for (statistic,) in of_batches} == {together}
        for batch, (statistic,) in zip(batches, of_batches, strict=True):
            metrics = objective(policy, batch, statistic).metrics
            assert metrics["loss"].sum == 0.5 * batch.responses
            assert metrics["baseline"].sum == metrics["kl_k3"].sum == 0
    prompts = sum(len(tree.trunk) for tree in trees)
    assert asked[0] == prompts
    assert objective.mismatched_reference.keys() >= {
        tree_key(pair) for step in range(6) for pair in objective.mismatched(source.step_trees(step)).values()
    }


# -- the reward shift


def judged_batch(labels: list[bool]) -> TreeBatch:
    branches = [Tree(trunk=(5,), branches=(branch([7]),), key=i, desirable=(label,)) for i, label in enumerate(labels)]
    return TreeBatch.of(branches)


def test_means_of_both_classes_are_of_the_whole_batch() -> None:
    """Desirable 1, 2, 6, however they are split, and undesirable -4: means 3 and -4."""
    ratios = [torch.tensor([1.0, -4.0]), torch.tensor([2.0, 6.0])]
    batches = [judged_batch([True, False]), judged_batch([True, True])]
    assert class_means(ratios, batches, World()) == (3.0, -4.0)
    assert class_means(ratios[1:], batches[1:], World()) == (4.0, None)
    assert class_means([], [], World()) == (None, None)


def test_running_means_by_hand_and_a_class_that_a_step_lacks_keeps_its_own() -> None:
    """Decay 0.5: 0 -> 2 -> 1 + 3 = 4; asking changes nothing."""
    means = RunningMeans()
    assert means.after((4.0, -2.0), 0.5) == (2.0, -1.0)
    assert means.after((4.0, -2.0), 0.5) == (2.0, -1.0)
    means.take((2.0, -1.0))
    assert means.after((6.0, None), 0.5) == (4.0, -1.0)


def test_bco_remembers_only_steps_that_were_taken(monkeypatch) -> None:
    policy, objective, trees = method(BCO(shift_decay=0.5))
    learner, batch = Learner(policy, SETTINGS, total_steps=10), TreeBatch.of(trees)
    expected = class_means(log_ratios(policy, [batch]), [batch], World())
    first = learner.update(objective, [batch])
    assert objective.means.state_dict() == {"desirable": expected[0] / 2, "undesirable": expected[1] / 2}
    assert first["baseline"] == pytest.approx((expected[0] + expected[1]) / 4, rel=1e-6)
    spoilt = {"desirable": objective.means.desirable, "undesirable": objective.means.undesirable}
    monkeypatch.setattr(learner.optimizer, "grad_norm", lambda: math.nan)
    assert learner.update(objective, [batch])["skipped"] == 1
    assert objective.means.state_dict() == spoilt


# -- sorted counterparts


def counterparts_of(wanted: list[float], other: list[float]) -> list[list[tuple[float, float]]]:
    """Per response (the desirable ones first) its counterparts' log-ratios and weights."""
    values = [*wanted, *other]
    trees = [
        Tree(trunk=(5,), branches=(branch([7]),), key=i, desirable=(i < len(wanted),), reference=(torch.zeros(1),))
        for i in range(len(values))
    ]
    (found,) = sorted_counterparts([torch.tensor(values)], [TreeBatch.of(trees)], World())
    entries = list(zip(found.response.tolist(), found.baseline.tolist(), found.weight.tolist(), strict=True))
    return [[(value, weight) for number, value, weight in entries if number == i] for i in range(len(values))]


def test_equal_numbers_are_held_against_the_same_rank() -> None:
    assert counterparts_of([3.0, 1.0], [0.0, 2.0]) == [[(2.0, 2.0)], [(0.0, 2.0)], [(1.0, 2.0)], [(3.0, 2.0)]]


def test_unequal_numbers_are_held_against_the_quantiles_that_they_overlap() -> None:
    """One against two: each half of the one's step. The weights of a class add up to all responses: 3."""
    assert counterparts_of([5.0], [4.0, 6.0]) == [[(4.0, 1.5), (6.0, 1.5)], [(5.0, 1.5)], [(5.0, 1.5)]]
    assert counterparts_of([5.0, 7.0], [4.0, 6.0, 8.0])[0] == [(4.0, pytest.approx(5 / 3)), (6.0, pytest.approx(5 / 6))]


def test_one_class_alone_has_no_counterparts_and_a_loss_of_0() -> None:
    assert counterparts_of([1.0, 2.0], []) == [[], []]
    policy, objective, trees = method(UnpairedAOT())
    wanted = [tree for tree in trees if tree.desirable == (True,)]
    metrics = Learner(policy, SETTINGS, total_steps=10).update(objective, [TreeBatch.of(wanted)])
    assert metrics["loss"] == 0.0
    assert metrics["grad_norm"] == 0.0


def test_the_gradient_of_sorted_counterparts_is_that_of_the_whole_sorted_loss() -> None:
    policy, objective, trees = method(UnpairedAOT(beta=0.3), count=12)
    wanted = torch.tensor([tree.desirable == (True,) for tree in trees])
    assert int(wanted.sum()) == 2 * int((~wanted).sum())
    batch = TreeBatch.of(trees)
    ratios = policy.response_log_probs(batch) - batch.reference
    upper, lower = ratios[wanted].sort().values, ratios[~wanted].sort().values.repeat_interleave(2)
    loss = -nn.functional.logsigmoid(0.3 * (upper - lower)).mean()
    loss.backward()
    expected = gradients(policy)
    policy.zero_grad()
    ((statistic,),) = objective.prepare(policy, [batch], World()).of_batches
    output = objective(policy, batch, statistic)
    (output.total / objective.units(batch)).backward()
    assert output.total.item() / 12 == pytest.approx(loss.item(), abs=1e-6)
    assert relative_gap(gradients(policy), expected) < 1e-5


def paired_method(count: int = 8) -> tuple[Policy, SortedPreference, list[Tree]]:
    trees = random_trees(count)
    known = with_reference(tiny_policy(seed=2), trees, [np.arange(len(trees))])
    return tiny_policy(seed=1), SortedPreference(loss=AOT(beta=0.3)), known


def test_aot_by_hand() -> None:
    """Margins 1 and 4, of the reference 6 and 2: sorted, 1 meets 2 and 4 meets 6, though their own are the other way round."""
    values = [torch.tensor(side, dtype=torch.float64) for side in ([1.0, 4.0], [0.0, 0.0], [6.0, 2.0], [0.0, 0.0])]
    length = Pair(torch.tensor([1, 1]), torch.tensor([1, 1]))
    logps = PairLogps(policy=Pair(*values[:2]), reference=Pair(*values[2:]), length=length)
    losses = AOT(beta=0.1)(replace(logps, sorted_margin=torch.tensor([2.0, 6.0], dtype=torch.float64)))
    assert losses.tolist() == pytest.approx([math.log(1 + math.exp(0.1)), math.log(1 + math.exp(0.2))], abs=1e-9)
    assert AOT()(logps).tolist() == pytest.approx(DPO()(logps).tolist()), "alone, a pair is held against its own"


def test_aot_equals_trls_on_the_same_tensors() -> None:
    """Values of trl 1.16.0 (`DPOTrainer`, loss_type="aot") on these tensors, in the order of the policy's margins."""
    policy = Pair(torch.tensor([-10.5, -3.25, -20.0]), torch.tensor([-7.75, -12.0, -15.5]))  # margins -2.75, 8.75, -4.5
    reference = Pair(torch.tensor([-11.0, -4.0, -18.5]), torch.tensor([-7.0, -16.0, -13.0]))  # margins -4, 12, -5.5
    length = Pair(torch.tensor([9, 9, 9]), torch.tensor([9, 9, 9]))
    logps = PairLogps(policy=policy, reference=reference, length=length, sorted_margin=torch.tensor([-4.0, 12.0, -5.5]))
    assert AOT(beta=0.2)(logps)[[2, 0, 1]].tolist() == pytest.approx([0.5981389, 0.5759394, 1.0700554], abs=1e-6)


def test_each_pair_is_held_against_the_references_margin_of_its_rank() -> None:
    policy, objective, trees = paired_method()
    with torch.no_grad():
        now = policy.response_log_probs(TreeBatch.of(trees)).view(-1, 2)
    then = torch.tensor([tree.reference_sums() for tree in trees])
    margin, before = now[:, 0] - now[:, 1], then[:, 0] - then[:, 1]
    expected = before.sort().values[margin.argsort().argsort()]
    assert not torch.equal(expected, before)
    batches = [TreeBatch.of(trees[:3]), TreeBatch.of(trees[3:])]
    found = torch.cat([margins for (margins,) in objective.prepare(policy, batches, World()).of_batches])
    torch.testing.assert_close(found, expected.double(), rtol=2e-6, atol=0)


# -- the whole batch, however it is split


@pytest.mark.parametrize("loss", [KTO(desirable_weight=0.7), BCO(shift_decay=0.5), UnpairedAOT(), None])
def test_trap_08_feedback_gives_the_same_numbers_however_the_batch_is_split(loss: FeedbackLoss | None, monkeypatch) -> None:
    """Also paired AOT, which sorts the whole batch too."""
    found = []
    for size in (8, 4, 2, 1):
        policy, objective, trees = method(loss) if loss is not None else paired_method()
        learner, seen = Learner(policy, SETTINGS, total_steps=10), {}
        step = learner.optimizer.step

        def watched(rate: float, norm: float, step: Callable = step, policy: Policy = policy, seen: dict = seen) -> None:
            seen.update(gradients(policy))
            step(rate, norm)

        monkeypatch.setattr(learner.optimizer, "step", watched)
        batches = [TreeBatch.of(trees[i : i + size]) for i in range(0, 8, size)]
        metrics = [learner.update(objective, batches) for _ in range(3)]
        found.append((metrics, seen, {name: p.detach() for name, p in learner.trained.items()}))
    for metrics, last_gradients, weights in found[1:]:
        for mine, whole in zip(metrics, found[0][0], strict=True):
            assert mine == pytest.approx(whole, rel=1e-5, abs=1e-5)
        assert relative_gap(last_gradients, found[0][1]) < 1e-5
        assert relative_gap(weights, found[0][2]) < 1e-5


# -- the recipe's parts


def test_trap_22_pairs_read_as_feedback_are_shuffled_before_batching() -> None:
    """Chosen and rejected stand side by side, or all of one class first: no order in the file makes batches of one class."""
    for labels in ([i % 2 == 0 for i in range(64)], [i < 32 for i in range(64)]):
        trees = [replace(tree, desirable=(label,)) for tree, label in zip(random_trees(64, branches=1), labels, strict=True)]
        source = TreeSource(trees, batch_size=16, micro_tokens=400, seed=0)
        for step in range(8):
            judged = [(tree.desirable or ())[0] for tree in source.step_trees(step)]
            assert 0 < sum(judged) < 16


def test_good_and_bad_responses_of_one_prompt_are_compared() -> None:
    trees = feedback_trees(5, same_prompts=True)  # labels: no yes, yes no, yes
    pairs = comparable(trees)
    assert [(pair.trunk, pair.branches) for pair in pairs] == [
        (trees[0].trunk, (trees[1].branches[0], trees[0].branches[0])),
        (trees[2].trunk, (trees[2].branches[0], trees[3].branches[0])),
    ]
    assert [pair.key for pair in pairs] == [0, 1]


def test_log_ratios_are_those_of_the_training_pass() -> None:
    policy, _, trees = method(KTO())
    batches = [TreeBatch.of(trees[:3]), TreeBatch.of(trees[3:])]
    for ratio, batch in zip(log_ratios(policy, batches), batches, strict=True):
        assert torch.equal(ratio, (policy.response_log_probs(batch) - batch.reference).detach())


# -- from the command line


@pytest.fixture(scope="module")
def feedback_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 judged answers, a third of them undesirable, as JSONL."""
    path = tmp_path_factory.mktemp("data") / "feedback.jsonl"
    rows = [
        {"prompt": f"What is {i} plus {i}?", "completion": "No idea" if i % 3 else f"It is {2 * i}.", "label": i % 3 == 0}
        for i in range(24)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def trained(zygote: Zygote, method: str, data: Path, model: Path, run: Path, *settings: str) -> tuple[list[dict[str, float]], str]:
    """The metrics of a run, and what it said."""
    log = run.with_name(f"{run.name}.log")
    argv = ["train", method, f"data.path={data}", f"model={model}", f"run={run}", "dtype=fp32", "optimizer.lr=1e-3", *settings]
    assert zygote(argv, log) == [0], log.read_text()
    return [dict(row) for row in read_rows(run / "metrics.jsonl")], log.read_text()


@pytest.mark.parametrize("method", FEEDBACK_LOSSES)
def test_feedback_is_learnt_from_the_command_line(
    method: str, zygote: Zygote, feedback_file: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    rows, _ = trained(zygote, method, feedback_file, tiny_model_folder, tmp_path / "run", "epochs=4", "batch_size=8")
    assert rows[-1]["loss"] < rows[1]["loss"] - 0.05
    assert rows[-1]["reward_desirable"] > rows[-1]["reward_undesirable"]
    assert rows[-1]["margin"] == pytest.approx(rows[-1]["reward_desirable"] - rows[-1]["reward_undesirable"])
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["method"] == method
    assert "accuracy_after" not in result, "no prompt has a good and a bad answer here"


def test_pairs_are_learnt_from_as_feedback_and_measured_as_pairs(
    zygote: Zygote, pairs_file: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    settings = ("data.held_out_share=0.2", "batch_size=8", "epochs=3")
    rows, _ = trained(zygote, "kto", pairs_file, tiny_model_folder, tmp_path / "run", *settings)
    assert {row["share_desirable"] for row in rows if "share_desirable" in row} - {0.5}, "shuffled one by one, not pair by pair"
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["train"], result["held_out"]) == (32, 16)
    assert result["accuracy_after"]["n"] == 8


def test_messages_with_labels_are_trained_on(zygote: Zygote, tiny_model_folder: Path, tmp_path: Path) -> None:
    data = SHARED / "llamafactory_demos" / "kto_en_demo.json"
    if not data.is_file():
        pytest.skip(f"needs {data}")
    settings = ("data.max_tokens=256", "data.rows=40", "batch_size=4", "max_steps=3", "evaluate_every=0")
    rows, said = trained(zygote, "kto", data, tiny_model_folder, tmp_path / "run", *settings)
    assert "messages_feedback, 300 rows = 300 used + 0 skipped" in said
    assert rows[0]["loss"] == pytest.approx(0.5, abs=1e-5)
    assert len(rows) == 3
