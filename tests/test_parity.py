"""Ten steps of each recipe's learner equal its one-file oracle to 1e-6 in fp32, on the same tokens; two on SmolLM2 to 1e-5."""

import copy
import importlib.util
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from conftest import make_tiny_llama
from trees import gradients, random_trees, relative_gap
from truing.config import load
from truing.data.packing import pack
from truing.data.tree import Tree, TreeBatch
from truing.losses import FEEDBACK_LOSSES, PAIR_LOSSES, Pair, PairLogps
from truing.losses.bradley_terry import BradleyTerry
from truing.losses.nll import NLL
from truing.models.heads import RewardModel
from truing.models.load import load_causal
from truing.models.policy import Policy, probe
from truing.models.reference import with_reference
from truing.objectives import (
    AnyObjective,
    Imitation,
    PairedPreference,
    RewardRanking,
    SortedPreference,
    UnpairedFeedback,
    averaged,
    prepared,
)
from truing.parallel.world import World
from truing.randomness import counted_seed
from truing.recipes import preference
from truing.train.learner import Learner
from truing.train.optim import Optimizer

STEPS = 10
# eps well above the gradients' rounding noise: Adam divides by their size, and would turn noise into whole steps
SETTINGS = Optimizer(lr=1e-4, warmup=0.2, schedule="cosine", max_grad_norm=0.5, eps=1e-6)


def one_file(name: str):
    path = Path(__file__).parents[1] / "examples" / "one_file" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"one_file_{name}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.parent))  # as when it is run as a script
    spec.loader.exec_module(module)
    sys.path.remove(str(path.parent))
    return module


def as_example(tree: Tree):
    return list(tree.trunk), [list(b.tokens) for b in tree.branches]


def schedule(steps: int) -> dict[str, object]:
    return {
        "lr": SETTINGS.lr,
        "total_steps": steps,
        "warmup_steps": round(SETTINGS.warmup * steps),
        "schedule": SETTINGS.schedule,
        "max_grad_norm": SETTINGS.max_grad_norm,
        "eps": SETTINGS.eps,
    }


def ours(model, objective, steps: list[list[Tree]], *, budget: int = 70) -> list[dict[str, float]]:
    learner = Learner(model, SETTINGS, total_steps=len(steps))
    return [learner.update(objective, [TreeBatch.of(group) for group in pack(trees, budget)]) for trees in steps]


def assert_same(found: list[dict[str, float]], expected: list[dict[str, float]], tolerance: float = 1e-6) -> None:
    """Losses to 1e-6; the rest to 1e-5, since a summed log-probability of -100 has no more digits in fp32."""
    for mine, theirs in zip(found, expected, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=tolerance, rel=tolerance)
        for key in mine.keys() & theirs.keys() - {"accuracy"}:  # ties at step 0 count half here and not at all there
            assert mine[key] == pytest.approx(theirs[key], abs=1e-5, rel=1e-5), key


def assert_same_weights(policy: Policy, oracle, tolerance: float) -> None:
    for (name, mine), (_, theirs) in zip(policy.model.named_parameters(), oracle.named_parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")


def batches(branches: int, longest: int = 23) -> list[list[Tree]]:
    trees = random_trees(3 * STEPS, branches=branches, seed=branches, longest=longest)
    return [trees[3 * i : 3 * i + 3] for i in range(STEPS)]


def test_sft_equals_its_oracle():
    model, steps = make_tiny_llama(seed=1), batches(1)
    oracle = copy.deepcopy(model)
    policy = probe(model).policy
    found = ours(policy, Imitation(loss=NLL()), steps)
    assert_same(found, one_file("sft").train(oracle, [[as_example(t) for t in s] for s in steps], **schedule(STEPS)))
    assert_same_weights(policy, oracle, 1e-6)


@pytest.mark.parametrize("loss", ["dpo", "cdpo", "ipo", "aot"])
def test_preference_losses_equal_their_oracle(loss):
    model, steps = make_tiny_llama(seed=2), batches(2)
    oracle = copy.deepcopy(model)
    policy = probe(model).policy
    with_refs = [with_reference(policy, s, [np.arange(len(s))]) for s in steps]
    method = {"label_smoothing": 0.1} if loss == "cdpo" else {}
    objective = SortedPreference if loss == "aot" else PairedPreference
    found = ours(policy, objective(loss=PAIR_LOSSES[loss](beta=0.1, **method)), with_refs)
    expected = one_file("dpo").train(
        oracle, [[as_example(t) for t in s] for s in steps], loss=loss, beta=0.1, **method, **schedule(STEPS)
    )
    assert_same(found, expected)
    assert_same_weights(policy, oracle, 1e-6)
    if loss != "ipo":
        assert found[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("budget", [30, 70, 1000])
@pytest.mark.parametrize("loss", FEEDBACK_LOSSES)
def test_feedback_losses_equal_their_oracle_in_one_micro_batch_or_several(loss, budget):
    """The oracle takes the next example's answer as the mismatched one, so its batches are put into the package's order.

    Answers are short: a class of one or two responses averages no rounding away, and a log-probability of -130 has five digits.
    """
    model, steps = make_tiny_llama(seed=2), batches(1, longest=8)
    steps = [[replace(tree, desirable=(place != 1,)) for place, tree in enumerate(step)] for step in steps]
    oracle = copy.deepcopy(model)
    policy = probe(model).policy
    objective = UnpairedFeedback(loss=FEEDBACK_LOSSES[loss](beta=0.1), max_tokens=1000)
    pairs = [list(objective.mismatched(step).values()) for step in steps]
    further = [tree for group in pairs if group for tree in with_reference(policy, group, [np.arange(len(group))])]
    found = ours(policy, objective.knowing(further), [with_reference(policy, s, [np.arange(len(s))]) for s in steps], budget=budget)

    def as_feedback(tree: Tree):
        return list(tree.trunk), list(tree.branches[0].tokens), tree.desirable == (True,)

    ordered = [sorted(step, key=lambda tree: counted_seed(0, "mismatch", tree.key)) for step in steps]
    expected = one_file("kto").train(oracle, [[as_feedback(t) for t in s] for s in ordered], loss=loss, beta=0.1, **schedule(STEPS))
    assert_same(found, expected)
    assert_same_weights(policy, oracle, 1e-6)
    assert found[0]["loss"] == pytest.approx(0.5 if loss == "kto" else math.log(2), abs=1e-6)
    if loss == "kto":
        assert max(step["baseline"] for step in found) > 0.001


PREFERENCE = one_file("preference")
FAMILY = [*PREFERENCE.LOSSES, "aot"]
MILD = {"alphapo": {"beta": 0.2}, "dpop": {"beta": 0.1, "penalty": 1.0}}
"""For the losses whose own defaults multiply the rounding of tokens' fp32 log-probabilities beyond 1e-6."""


def oracle_of(loss: str):
    """The file whose `loss_of` is to be equalled."""
    return PREFERENCE if loss in PREFERENCE.LOSSES else one_file("dpo")


def family(name: str) -> AnyObjective:
    """What `truing train NAME` asks of a model."""
    loss, _, divergence = name.partition(" ")
    fields = {**({"divergence": divergence} if divergence else {}), **MILD.get(name, {})}
    overrides = ["data.path=x", f"loss={loss}", *(f"loss.{key}={value}" for key, value in fields.items())]
    return preference.plan(load(preference.Config, overrides=overrides).value).objective


@dataclass(frozen=True, kw_only=True)
class Apart:
    """A policy that has left its reference, so that no loss is at a kink; and the steps that it is trained on."""

    policy: Policy
    oracle: nn.Module
    reference: nn.Module
    steps: list[list[Tree]]
    examples: list[list[object]]


@pytest.fixture(scope="module")
def apart() -> Apart:
    reference = make_tiny_llama(seed=2, layers=1)
    trees = random_trees(2 * STEPS, seed=9, longest=8)
    trees = list(with_reference(probe(copy.deepcopy(reference)).policy, trees, [np.arange(len(trees))]))
    oracle = copy.deepcopy(reference)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(7)
        for parameter in oracle.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    steps = [trees[2 * i : 2 * i + 2] for i in range(STEPS)]
    examples = [[as_example(t) for t in step] for step in steps]
    policy = probe(copy.deepcopy(oracle)).policy
    return Apart(policy=policy, oracle=oracle, reference=reference, steps=steps, examples=examples)


def test_every_pair_loss_has_its_oracle():
    assert {name.partition(" ")[0] for name in FAMILY} == set(PAIR_LOSSES)


ROUNDED = {"discopop": 5e-6, "f_dpo forward_kl": 5e-6}
"""Gradients that are equal to less than 1e-6: a slope that changes fast multiplies the rounding of tokens' log-probabilities."""
OWN = {"alphapo": 5e-6, "dpop": 3e-5}
"""The same for the losses that are milder elsewhere; loss and gradient, relative to their size."""


def assert_equal_to_the_oracle(loss, apart, settings, objective, tolerance, slopes):
    """A step's loss, metrics and gradients, in one micro-batch and in two."""
    trees, examples = [t for step in apart.steps[:3] for t in step], [e for step in apart.examples[:3] for e in step]
    value, numbers = oracle_of(loss).loss_of(apart.oracle, apart.reference, examples, loss=loss, **settings)
    apart.oracle.zero_grad()
    value.backward()
    for groups in ([trees], [trees[:2], trees[2:]]):
        apart.policy.zero_grad()
        micro_batches = [TreeBatch.of(group) for group in groups]
        statistics = prepared(objective, apart.policy, micro_batches, World()).of_batches
        parts = [objective(apart.policy, batch, *found) for batch, found in zip(micro_batches, statistics, strict=True)]
        for part in parts:
            (part.total / len(trees)).backward()
        found = averaged(part.metrics for part in parts)
        assert found["loss"] == pytest.approx(value.item(), rel=tolerance, abs=tolerance)
        for key, number in numbers.items():
            assert found[key] == pytest.approx(number, abs=1e-5, rel=tolerance), key
        assert relative_gap(gradients(apart.policy.model), gradients(apart.oracle)) < slopes


@pytest.mark.parametrize("loss", FAMILY)
def test_losses_and_gradients_of_the_family_equal_the_oracle_for_any_split(loss, apart):
    assert_equal_to_the_oracle(loss, apart, MILD.get(loss, {}), family(loss), 1e-6, ROUNDED.get(loss, 1e-6))


@pytest.mark.parametrize("loss", OWN)
def test_losses_and_gradients_equal_the_oracle_with_the_losses_own_defaults_too(loss, apart):
    objective = PairedPreference(loss=PAIR_LOSSES[loss]())
    assert_equal_to_the_oracle(loss, apart, {}, objective, OWN[loss], OWN[loss])


def sides(policy: list[torch.Tensor], reference: list[torch.Tensor], collision: list[torch.Tensor], masks: list[torch.Tensor]):
    """What the oracle's losses see of tokens' log-probs, and what the package's see."""
    lengths = Pair(*(mask.sum(1) for mask in masks))
    shorter = torch.minimum(*lengths)[:, None]
    within = [mask & (mask.cumsum(1) <= shorter) for mask in masks]

    def sums(tokens: list[torch.Tensor], counted: list[torch.Tensor]) -> Pair:
        return Pair(*(side.masked_fill(~mask, 0.0).sum(1) for side, mask in zip(tokens, counted, strict=True)))

    logps = PairLogps(
        policy=sums(policy, masks),
        reference=sums(reference, masks),
        length=lengths,
        policy_prefix=sums(policy, within),
        reference_prefix=sums(reference, within),
        collision=sums(collision, masks),
    )
    theirs = [PREFERENCE.Side(*side) for side in zip(policy, reference, collision, masks, strict=True)]
    return theirs, logps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss", PREFERENCE.LOSSES)
def test_losses_and_their_slopes_on_the_same_log_probs_equal_the_oracle_with_the_losses_own_defaults(loss, dtype):
    """Sixteenths, so that fp32 holds every sum exactly: nothing is left of what a steep loss makes of the rounding of a model.

    Relative to the largest. In fp32 DiscoPOP's slope has a digit less: it is a difference of terms six times as large.
    """
    tolerance = 2e-6 if (loss, dtype) == ("discopop", torch.float32) else 1e-6
    generator = torch.Generator().manual_seed(0)

    def sixteenths(low: float, high: float) -> torch.Tensor:
        return torch.randint(int(16 * low), int(16 * high), (64, 12), generator=generator).to(dtype) / 16

    masks = [torch.arange(12) < torch.randint(1, 13, (64, 1), generator=generator) for _ in range(2)]
    tokens = [sixteenths(-4, 0).requires_grad_() for _ in masks]
    policy = [side.masked_fill(~mask, 0.0) for side, mask in zip(tokens, masks, strict=True)]
    reference = [(side.detach() + sixteenths(-0.5, 0.5)).masked_fill(~mask, 0.0) for side, mask in zip(policy, masks, strict=True)]
    collision = [sixteenths(-4, 0) for _ in masks]
    name, _, divergence = loss.partition(" ")
    ours = PAIR_LOSSES[name](**({"divergence": divergence} if divergence else {}))
    theirs, logps = sides(policy, reference, collision, masks)
    found, expected = ours(logps), PREFERENCE.LOSSES[loss](*theirs)
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()
    slopes = [torch.autograd.grad(values.sum(), tokens, retain_graph=True, materialize_grads=True) for values in (found, expected)]
    largest = max(side.abs().max() for side in slopes[1])
    assert largest > 0
    for mine, other in zip(*slopes, strict=True):
        assert (mine - other).abs().max() <= tolerance * largest


@pytest.mark.parametrize("loss", FEEDBACK_LOSSES)
def test_gradients_of_feedback_losses_equal_the_oracle_for_any_split(loss, apart):
    """Away from the reference, answers of both classes, z_0 above 0 for KTO."""
    reference, oracle = apart.policy, copy.deepcopy(apart.reference)  # the other way round: here mismatches are likelier than there
    policy = probe(copy.deepcopy(oracle)).policy
    trees = [part for step in apart.steps[:4] for tree in step for part in halves(tree)]
    trees = sorted(trees, key=lambda tree: counted_seed(0, "mismatch", tree.key))
    trees = list(with_reference(reference, trees, [np.arange(len(trees))]))
    objective = UnpairedFeedback(loss=FEEDBACK_LOSSES[loss](beta=0.1), max_tokens=1000)
    pairs = list(objective.mismatched(trees).values())
    if pairs:
        objective = objective.knowing(with_reference(reference, pairs, [np.arange(len(pairs))]))
    examples = [(list(tree.trunk), list(tree.branches[0].tokens), tree.desirable == (True,)) for tree in trees]
    value, numbers = one_file("kto").loss_of(oracle, apart.oracle, examples, loss=loss, beta=0.1)
    value.backward()
    for groups in ([trees], [trees[:3], trees[3:8], trees[8:]]):
        policy.zero_grad()
        batches = [TreeBatch.of(group) for group in groups]
        statistics = objective.prepare(policy, batches, World()).of_batches
        parts = [objective(policy, batch, *found) for batch, found in zip(batches, statistics, strict=True)]
        for part in parts:
            (part.total / len(trees)).backward()
        found = averaged(part.metrics for part in parts)
        assert found["loss"] == pytest.approx(value.item(), rel=1e-6, abs=1e-6)
        for key, number in numbers.items():
            assert found[key] == pytest.approx(number, abs=1e-5, rel=1e-5), key
        assert relative_gap(gradients(policy.model), gradients(oracle)) < 1e-6
    if loss == "kto":
        assert numbers["baseline"] > 0.001


def halves(tree: Tree) -> list[Tree]:
    """A pair as two judged answers."""
    return [
        replace(tree, branches=(side,), reference=None, desirable=(number == 0,), key=2 * tree.key + number)
        for number, side in enumerate(tree.branches)
    ]


@pytest.mark.parametrize("loss", FAMILY)
def test_ten_steps_of_the_family_equal_the_oracle(loss, apart):
    """One pair a micro-batch, two micro-batches a step."""
    policy, oracle = probe(copy.deepcopy(apart.oracle)).policy, copy.deepcopy(apart.oracle)
    found = ours(policy, family(loss), apart.steps, budget=1)
    settings = {
        "loss_of": oracle_of(loss).loss_of,
        "loss": loss,
        "reference": apart.reference,
        **MILD.get(loss, {}),
        **schedule(STEPS),
    }
    squares = 1e-5 if loss == "sppo" else 1e-6  # of summed log-ratios: their rounding is doubled and not divided by a length
    assert_same(found, one_file("dpo").train(oracle, apart.examples, **settings), squares)
    assert_same_weights(policy, oracle, 1e-6)


@pytest.mark.parametrize("branches", [2, 4])
def test_reward_model_equals_its_oracle_on_pairs_and_rankings(branches):
    script = one_file("reward_model")
    language_model, steps = make_tiny_llama(seed=3), batches(branches)
    oracle = script.RewardModel(copy.deepcopy(language_model))
    model = RewardModel(probe(language_model).policy, seed=0)
    with torch.no_grad():
        oracle.head.weight.copy_(model.head.weight)
    oracle.head.bias.requires_grad_(False)
    found = ours(model, RewardRanking(loss=BradleyTerry()), steps)
    expected = script.train(oracle, [[as_example(t) for t in s] for s in steps], **schedule(STEPS))
    assert_same([{"loss": f["loss"], "grad_norm": f["grad_norm"]} for f in found], expected)


@pytest.mark.smollm2
@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_two_steps_on_smollm2_equal_the_oracle(smollm2_folder, method):
    torch.manual_seed(0)
    model = load_causal(smollm2_folder, dtype=torch.float32)
    oracle = load_causal(smollm2_folder, dtype=torch.float32)
    oracle.set_attn_implementation("eager")
    steps = [
        [replace(t, key=i) for i, t in enumerate(random_trees(2, branches=1 if method == "sft" else 2, seed=s, longest=12))]
        for s in (1, 2)
    ]
    policy = probe(model).policy
    settings = {"lr": 1e-6, "total_steps": 2, "warmup_steps": 0, "schedule": "constant"}
    learner = Learner(policy, Optimizer(lr=1e-6, warmup=0.0, schedule="constant"), total_steps=2)
    if method == "dpo":
        steps = [with_reference(policy, s, [np.arange(len(s))]) for s in steps]
    objective = Imitation(loss=NLL()) if method == "sft" else PairedPreference(loss=PAIR_LOSSES["dpo"](beta=0.1))
    found = [learner.update(objective, [TreeBatch.of(s)]) for s in steps]
    expected = one_file(method).train(oracle, [[as_example(t) for t in s] for s in steps], **settings)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5, abs=1e-5)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
