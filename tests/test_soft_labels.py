"""Pairs with a probability: the expected loss over both labels, from a file to the gradient."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pairs import four_pairs, one_pair
from trees import random_trees, tiny_policy, with_zero_reference
from truing.data.tree import TreeBatch
from truing.losses import PAIR_LOSSES
from truing.losses.aot import AOT
from truing.losses.bradley_terry import BradleyTerry
from truing.losses.cdpo import ConservativeDPO
from truing.losses.dpo import DPO
from truing.models.heads import RewardModel
from truing.objectives import PairedPreference, RewardRanking
from truing.recipes import commands
from truing.records import Message, Preference
from truing.runs.sinks import Silent


def test_the_opposite_statement_has_the_other_probability() -> None:
    pair = Preference(prompt=(Message(role="user", content="?"),), chosen="a", rejected="b", margin=2.0, probability=0.75)
    assert pair.swapped() == replace(pair, chosen="b", rejected="a", margin=-2.0, probability=0.25)
    assert pair.swapped().swapped() == pair


def test_swapped_pairs_by_hand() -> None:
    """h = 0.1 ((-10 + 11) - (-12 + 11.5)) = 0.15 one way and -0.15 the other."""
    pair = one_pair((-10.0, -12.0))
    assert DPO()(pair).item() == pytest.approx(math.log1p(math.exp(-0.15)))
    assert DPO()(pair.swapped()).item() == pytest.approx(math.log1p(math.exp(0.15)))


def test_swapping_twice_changes_nothing() -> None:
    pairs = four_pairs()
    again = pairs.swapped().swapped()
    for name in ("policy", "reference", "length", "policy_prefix", "reference_prefix", "collision"):
        for one, other in zip(getattr(pairs, name), getattr(again, name), strict=True):
            assert torch.equal(one, other), name


def batch_of(probabilities: list[float | None]) -> TreeBatch:
    trees = with_zero_reference(random_trees(len(probabilities)))
    return TreeBatch.of([replace(tree, probability=p) for tree, p in zip(trees, probabilities, strict=True)])


def test_dpo_with_probabilities_is_cdpo_with_an_epsilon_for_each_pair() -> None:
    policy = tiny_policy()
    soft = PairedPreference(loss=DPO())(policy, batch_of([0.75, 0.75, 0.75])).total
    conservative = PairedPreference(loss=ConservativeDPO(label_smoothing=0.25))(policy, batch_of([None] * 3)).total
    assert soft.item() == pytest.approx(conservative.item(), rel=1e-6)


def test_a_pair_without_a_probability_among_others_is_certain() -> None:
    policy = tiny_policy()
    mixed = PairedPreference(loss=DPO())(policy, batch_of([None, 1.0])).total
    certain = PairedPreference(loss=DPO())(policy, batch_of([None, None])).total
    assert mixed.item() == pytest.approx(certain.item(), rel=1e-6)


@pytest.mark.parametrize("name", [name for name, loss in PAIR_LOSSES.items() if loss is not AOT and name != "mixture"])
def test_every_loss_takes_probabilities_and_at_one_half_both_orders_are_one(name: str) -> None:
    policy, objective = tiny_policy(), PairedPreference(loss=PAIR_LOSSES[name]())
    trees = with_zero_reference(random_trees(2))
    turned = [replace(t, branches=t.branches[::-1], reference=None if t.reference is None else t.reference[::-1]) for t in trees]
    totals = [
        objective(policy, TreeBatch.of([replace(tree, probability=0.5) for tree in of])).total.item() for of in (trees, turned)
    ]
    assert totals[0] == pytest.approx(totals[1], rel=1e-5)


@pytest.mark.parametrize("settings", [["aot"], ["mixture", "loss.parts=[{loss: dpo}, {loss: aot}]"]])
def test_a_loss_that_sorts_margins_refuses_probabilities_before_anything_is_computed(
    settings: list[str], tiny_model_folder: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "pairs.jsonl"
    rows.write_text("".join(f'{{"prompt": "p{i}", "chosen": "a", "rejected": "b", "probability": 0.75}}\n' for i in range(4)))
    method, *more = settings
    run = tmp_path / "run"
    overrides = [f"data.path={rows}", f"model={tiny_model_folder}", "data.held_out_share=0", *more]
    for verb in (
        lambda: commands.train(method, [*overrides, f"run={run}"], [Silent()]),
        lambda: commands.check(method, overrides, 1),
    ):
        with pytest.raises(ValueError, match="leave out the column probability"):
            verb()
    assert not (run / "status.json").exists()


def test_feedback_of_a_pair_goes_by_its_likelier_side() -> None:
    pair = Preference(prompt=(Message(role="user", content="?"),), chosen="a", rejected="b")
    for probability, likely in ((None, True), (0.9, True), (0.5, True), (0.2, False)):
        found = replace(pair, probability=probability).as_feedback()
        assert [(one.response, one.desirable) for one in found] == [("a", likely), ("b", not likely)]


def test_a_reward_model_learns_the_expected_loss() -> None:
    """With equal scores any probability gives ln 2; else p L + (1 - p) L of the pair turned round, its margin too."""
    model = RewardModel(tiny_policy())
    with torch.no_grad():
        torch.nn.init.normal_(model.head.weight, std=1.0, generator=torch.Generator().manual_seed(0))
    certain = batch_of([None])
    scores = model.scores(certain)
    difference = (scores[0] - scores[1]).item()
    assert abs(difference) > 0.01
    found = RewardRanking(loss=BradleyTerry())(model, batch_of([0.75])).total.item()
    assert found == pytest.approx(0.75 * math.log1p(math.exp(-difference)) + 0.25 * math.log1p(math.exp(difference)), rel=1e-5)
    tree = replace(certain.trees[0], margin=1.0, probability=0.75)
    found = RewardRanking(loss=BradleyTerry())(model, TreeBatch.of([tree])).total.item()
    expected = 0.75 * math.log1p(math.exp(1 - difference)) + 0.25 * math.log1p(math.exp(difference - 1))
    assert found == pytest.approx(expected, rel=1e-5)
