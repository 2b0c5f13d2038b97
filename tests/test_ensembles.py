"""Ensembles on one base: members learn as if alone, are saved and loaded, ride on a policy's base, and disagree."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from conftest import make_tiny_llama
from rounds import Setup
from samples import Truing
from trees import gradients, random_trees, relative_gap
from truing.data.source import EachMember, TreeSource
from truing.data.tree import TreeBatch
from truing.losses.bradley_terry import BradleyTerry
from truing.models.heads import RewardModel, ValueModel
from truing.models.load import weights_hash
from truing.models.lora import BASE, CRITIC, LoRA, adapter_on, adapter_tensors, add_lora, attach, without_adapters
from truing.models.policy import Policy, probe
from truing.objectives import RewardRanking, averaged
from truing.recipes import rewarding
from truing.recipes.fit import load_policy
from truing.recipes.reward_folder import load_reward_model, start_critic
from truing.records import Completion, Message, Prompt, Rollout
from truing.rewards.base import Valued
from truing.rewards.learned import LearnedScorer
from truing.rollouts.scoring import Reference
from truing.runs.read import read_rows
from truing.train.learner import Learner
from truing.train.optim import Optimizer

NAMES = ("default", "member_2", "member_3")


def ensemble(members: int = 3) -> RewardModel:
    """Members under adapters that are no longer the identity."""
    model = make_tiny_llama(seed=1)
    policy = probe(model).policy
    for name in NAMES[:members]:
        add_lora(model, LoRA(rank=4), seed=0, name=name)
    generator = torch.Generator().manual_seed(5)
    for place, parameter in model.named_parameters():
        if "lora_B" in place:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return RewardModel(policy, seed=0, members=members, adapters=NAMES[:members])


def alone(model: RewardModel, member: int) -> RewardModel:
    """One member as a reward model on a base of its own."""
    policy = probe(make_tiny_llama(seed=1)).policy
    add_lora(policy.model, LoRA(rank=4), seed=0)
    own = dict(policy.model.named_parameters())
    for key, value in adapter_tensors(model.policy.model, NAMES[member]).items():
        own[f"{key[:-2]}.lora_{key[-1]}.default.weight"].data.copy_(value)
    single = RewardModel(policy, seed=0)
    rows = slice(member, member + 1)
    single.load_head({name: tensor[rows] for name, tensor in model.head_tensors().items()})
    return single


def test_each_member_scores_as_it_would_alone_and_the_mean_is_the_ensemble() -> None:
    model, batch = ensemble(), TreeBatch.of(random_trees(4, branches=3))
    with torch.no_grad():
        found = model.member_scores(batch)
        for member in range(3):
            torch.testing.assert_close(found[member], alone(model, member).scores(batch), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model.scores(batch), found.mean(0))
    assert float((found[0] - found[1]).abs().min()) > 1e-3
    assert torch.equal(model.member_scores(batch, (2, 0)), found[[2, 0]])


def test_a_member_has_the_gradient_that_it_would_have_alone_and_no_other_has_any() -> None:
    model, trees = ensemble(), random_trees(4, branches=3)
    objective = RewardRanking(loss=BradleyTerry())
    batch = replace(TreeBatch.of(trees), members=(1,))
    objective(model, batch).total.backward()
    found = gradients(model)
    assert all(".member_2." in name or name == "head.weight" for name in found if float(found[name].abs().max()))
    single = alone(model, 1)
    objective(single, TreeBatch.of(trees)).total.backward()
    expected = gradients(single)
    assert torch.equal(found["head.weight"][[0, 2]], torch.zeros(2, 64))
    torch.testing.assert_close(found["head.weight"][1:2], expected.pop("head.weight"), atol=1e-6, rtol=1e-4)
    own = {name.replace("member_2", "default"): value for name, value in found.items() if "member_2" in name}
    assert relative_gap(own, {name: value for name, value in expected.items() if "lora_" in name}) < 1e-4


def test_a_step_is_the_mean_over_members_whether_they_learn_in_turn_or_at_once() -> None:
    trees = random_trees(5, branches=2)
    weights = []
    for groups in ([(0,), (1,), (2,)], [(0, 1, 2)]):
        learner = Learner(ensemble(), Optimizer(lr=1e-3, warmup=0.0, eps=1e-3), total_steps=3)
        source = iter(EachMember(TreeSource(trees, batch_size=3, micro_tokens=60, seed=1), groups))
        metrics = [learner.update(RewardRanking(loss=BradleyTerry(), bootstrap=4), next(source)) for _ in range(3)]
        weights.append(learner.trained)
    assert relative_gap(weights[0], weights[1]) < 1e-4
    assert all("disagreement" in of_step for of_step in metrics)


def test_draws_are_poisson_of_mean_1_each_members_own_and_the_same_in_every_epoch() -> None:
    objective, like = RewardRanking(loss=BradleyTerry(), bootstrap=7), torch.zeros(2, 1)
    batch = replace(TreeBatch.of(random_trees(600)), members=(0, 1))
    drawn = objective._drawn(batch, like)
    assert torch.equal(drawn, objective._drawn(batch, like))
    assert drawn.mean(1).tolist() == pytest.approx([1.0, 1.0], abs=0.15)
    assert drawn.var(1).tolist() == pytest.approx([1.0, 1.0], abs=0.25)
    assert float((drawn[0] == drawn[1]).float().mean()) < 0.5
    assert torch.equal(objective._drawn(replace(batch, members=(1,)), like[:1]), drawn[1:])
    assert torch.equal(objective._drawn(replace(batch, members=None), like), torch.ones(2, 600)), "what is measured counts once"


def test_an_ensemble_in_training_goes_on_from_its_state_as_if_nothing_had_been() -> None:
    def parts() -> tuple[Learner, EachMember]:
        learner = Learner(ensemble(2), Optimizer(lr=1e-3), total_steps=6)
        return learner, EachMember(TreeSource(random_trees(5), batch_size=2, micro_tokens=80, seed=3), [(0,), (1,)])

    objective = RewardRanking(loss=BradleyTerry(), bootstrap=0)
    learner, source = parts()
    batches = iter(source)
    for _ in range(2):
        learner.update(objective, next(batches))
    kept = {name: tensor.clone() for name, tensor in learner.state_tensors().items()}, learner.state_dict(), source.state_dict()
    expected = learner.update(objective, next(batches))
    again, source = parts()
    again.load_state(kept[0], kept[1])
    source.load_state({}, kept[2])
    assert again.update(objective, next(iter(source))) == expected
    assert all(torch.equal(value, learner.trained[name]) for name, value in again.trained.items())


def test_measured_together_it_is_the_mean_that_is_right_or_wrong() -> None:
    """Differences 1 and -3 of two members: one is right, their mean is not, and their deviation is 2."""

    class Saying(RewardModel):
        def member_scores(self, batch, members=None):
            return torch.tensor([[1.0, 0.0], [-3.0, 0.0]])[list(members or (0, 1))]

    model, batch = Saying(probe(make_tiny_llama()).policy, members=2), TreeBatch.of(random_trees(1))
    objective = RewardRanking(loss=BradleyTerry())
    together = averaged([objective(model, batch).metrics])
    assert (together["accuracy"], together["disagreement"], together["margin"]) == (0.0, 2.0, -1.0)
    assert averaged([objective(model, replace(batch, members=(0, 1))).metrics])["accuracy"] == 0.5
    assert objective.units(replace(batch, members=(0, 1))) == 2


# -- as a part of the reward


def rollouts(count: int = 3) -> list[Rollout]:
    return [
        Rollout(
            prompt=Prompt(messages=(Message(role="user", content=""),)),
            trunk=tree.trunk,
            completion=Completion(tokens=branch.tokens, stop="end"),
            response="",
        )
        for tree in random_trees(count)
        for branch in tree.branches
    ]


def test_aggregates_by_hand() -> None:
    """Members say 1 and 3 of one answer, 2 and 2 of another: deviations 1 and 0."""
    scores, model = torch.tensor([[1.0, 2.0], [3.0, 2.0]]), ensemble(2)

    def of(**settings: object) -> list[float]:
        return LearnedScorer(model, budget=60, **settings).aggregated(scores).tolist()

    assert of() == [2.0, 2.0]
    assert of(aggregate="minimum") == [1.0, 2.0]
    assert of(aggregate="mean_less_deviation") == [1.0, 2.0]
    assert of(aggregate="mean_less_deviation", deviation_weight=0.5) == [1.5, 2.0]


def test_values_come_with_the_members_deviation_which_is_logged_and_written_down() -> None:
    model, said = ensemble(), rollouts()
    found = LearnedScorer(model, budget=60, aggregate="minimum")(said)
    assert all(isinstance(one, Valued) for one in found)
    with torch.no_grad():
        scores = model.member_scores(TreeBatch.of(random_trees(3)))
    assert [one.value for one in found] == pytest.approx(scores.amin(0).tolist(), abs=1e-5)
    assert [one.notes["disagreement"] for one in found] == pytest.approx(scores.std(0, correction=0).tolist(), abs=1e-5)
    setup = Setup(reward=LearnedScorer(ensemble(), budget=60), temperature=1.0)
    metrics = setup.run(1)[0]
    written = [row["notes"]["low_disagreement"] for row in setup.rows]
    assert min(written) > 0
    assert metrics["reward_low_disagreement"] == pytest.approx(sum(written) / len(written))
    assert metrics["reward"] == pytest.approx(sum(row["parts"]["low"] for row in setup.rows) / len(written))


def test_adapters_ride_on_a_policys_base_and_leave_policy_critic_and_reference_as_they_were() -> None:
    """The same scores as on a base of its own; what is trained and in force stays so; the reference's hash too."""
    setup, model = Setup(lora=True), ensemble(2)
    policy: Policy = setup.model.policy
    batch = TreeBatch.of(random_trees(3))
    trained, before = set(setup.weights()), policy.log_probs(batch).detach()
    for member, name in enumerate(("reward_0_0", "reward_0_1")):
        attach(policy.model, adapter_tensors(model.policy.model, NAMES[member]), alpha=32.0, name=name)
    riding = RewardModel(policy, members=2, adapters=("reward_0_0", "reward_0_1"))
    riding.load_head(model.head_tensors())
    with torch.no_grad():
        torch.testing.assert_close(riding.scores(batch), model.scores(batch), atol=1e-5, rtol=1e-5)
    assert torch.equal(policy.log_probs(batch).detach(), before)
    assert set(setup.weights()) == trained
    setup.reference.check()
    setup.source.reward.parts["low"] = LearnedScorer(riding, budget=60)
    setup.run(2)
    setup.reference.check()
    kept = adapter_tensors(policy.model, "reward_0_1")
    assert all(torch.equal(value, kept[key]) for key, value in adapter_tensors(model.policy.model, "member_2").items())
    assert not torch.equal(policy.log_probs(batch).detach(), before)


def test_an_adapter_of_another_model_is_refused() -> None:
    other = make_tiny_llama(layers=1)
    tensors = adapter_tensors(ensemble(1).policy.model, "default")
    with pytest.raises(ValueError, match=r"an adapter for model\.layers\.1\..*, which LlamaForCausalLM does not have"):
        attach(other, tensors, alpha=8.0, name="one")
    cut = {key: value[:, :3] if key.endswith("A") else value for key, value in tensors.items()}
    with pytest.raises(ValueError, match=r"an adapter of shape \[4, 3\] for model\.layers"):
        attach(make_tiny_llama(), cut, alpha=8.0, name="one")


def test_heads_alone_on_a_policys_base_read_it_without_its_adapters() -> None:
    policy, batch = probe(make_tiny_llama(seed=1)).policy, TreeBatch.of(random_trees(2))
    plain = RewardModel(policy, members=2, seed=1)
    with torch.no_grad():
        expected = plain.member_scores(batch)
        adapted = copy.deepcopy(ensemble(1).policy)
        heads = RewardModel(adapted, members=2, seed=1, adapters=(BASE, BASE))
        torch.testing.assert_close(heads.member_scores(batch), expected, atol=1e-5, rtol=1e-5)
        with adapter_on(adapted.model, "default"):
            assert float((RewardModel(adapted, members=2, seed=1).member_scores(batch) - expected).abs().max()) > 1e-3
    assert weights_hash(without_adapters(adapted.model)) == weights_hash(policy.model)


# -- the recipes


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trained")


def shared(tiny_model_folder: Path, pairs_file: Path) -> list[str]:
    return [f"model={tiny_model_folder}", f"data.path={pairs_file}", "dtype=fp32", "batch_size=4", "data.held_out_share=0.2"]


def test_an_ensemble_is_trained_saved_and_rewards_a_policy_on_the_policys_own_base(
    truing: Truing, tiny_model_folder: Path, pairs_file: Path, trained: Path
) -> None:
    common = shared(tiny_model_folder, pairs_file)
    run = trained / "judges"
    code, said, told = truing("train", "reward_model", *common, "ensemble=3", "lora.rank=4", "optimizer.lr=1e-2", f"run={run}")
    assert code == 0, told
    assert "one base for 3 members: an adapter and a head each" in told + said
    rows = list(read_rows(run / "metrics.jsonl"))
    assert {"held_out_accuracy", "held_out_disagreement"} <= rows[-1].keys()
    own = load_reward_model(run, torch.float32)
    batch = TreeBatch.of(random_trees(3))
    with torch.no_grad():
        scores = own.member_scores(batch)
    assert own.members == 3
    assert float(scores.std(0).min()) > 1e-3

    policy = load_policy(tiny_model_folder, torch.float32)[0]
    base = weights_hash(policy.model)
    add_lora(policy.model, LoRA(rank=2, targets="q_proj"), seed=0)
    reference = Reference(policy)
    riding = load_reward_model(run, torch.float32, bases={base: policy})
    assert riding.policy is policy
    with torch.no_grad():
        torch.testing.assert_close(riding.member_scores(batch), scores, atol=1e-5, rtol=1e-5)
    reference.check()

    ppo = trained / "ppo"
    settings = ("reward.good=learned", f"reward.good.run={run}", "reward.good.aggregate=minimum", "max_steps=2")
    options = (f"run={ppo}", "lora.rank=2", "lora.targets=q_proj", "answers.max_tokens=6", "optimizer.lr=1e-3")
    code, said, told = truing("train", "ppo", *common, *settings, *options)
    assert code == 0, told
    assert "reward good: 3 members, adapters and heads on the policy's base" in told + said
    assert list(read_rows(ppo / "metrics.jsonl"))[-1]["reward_good_disagreement"] > 0
    assert all(row["notes"]["good_disagreement"] > 0 for row in list(read_rows(ppo / "samples.jsonl")))
    assert load_policy(ppo / "model", torch.float32)[1] is None


def test_one_adapter_is_merged_and_rides_too_and_full_training_lends_its_frozen_reference(
    truing: Truing, tiny_model_folder: Path, pairs_file: Path, trained: Path
) -> None:
    common = shared(tiny_model_folder, pairs_file)
    run = trained / "judge"
    code, _, told = truing("train", "reward_model", *common, "lora.rank=4", "optimizer.lr=1e-2", f"run={run}")
    assert code == 0, told
    batch, policy = TreeBatch.of(random_trees(3)), load_policy(tiny_model_folder, torch.float32)[0]
    riding = load_reward_model(run, torch.float32, bases={weights_hash(policy.model): policy})
    assert riding.policy is policy
    merged = load_reward_model(run, torch.float32)
    assert merged.adapters == ()
    with torch.no_grad():
        torch.testing.assert_close(riding.scores(batch), merged.scores(batch), atol=1e-4, rtol=1e-4)
    settings = ("reward.good=learned", f"reward.good.run={run}", "max_steps=1", "answers.max_tokens=4", "measure_before=false")
    code, said, told = truing("train", "rloo", *common, *settings, f"run={trained / 'rloo'}")
    assert code == 0, told
    assert "reward good: adapters and heads on the policy's base" in told + said


def test_a_reward_that_was_saved_in_bf16_is_held_in_it_and_the_reference_in_the_dtype_of_the_policy(
    truing: Truing, tiny_model_folder: Path, pairs_file: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another reference would not be the policy at step 0, nor its KL 0; a machine without bf16 is not slowed down by it."""
    narrow, common = trained / "narrow", shared(tiny_model_folder, pairs_file)
    code, _, told = truing("train", "reward_model", *common, "dtype=bf16", "max_steps=1", f"run={narrow}")
    assert code == 0, told
    for computes, held in ((torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16)):
        monkeypatch.setattr(rewarding, "torch_dtype", lambda _, computes=computes: computes)
        assert rewarding.lower(narrow, torch.float32) == held
        assert rewarding.lower(narrow, torch.bfloat16) == torch.bfloat16
        assert rewarding.lower(tiny_model_folder, torch.float32) == torch.float32
    settings = ("reward.good=learned", f"reward.good.run={narrow}", "max_steps=1", "answers.max_tokens=4", "measure_before=false")
    code, said, told = truing("train", "ppo", *common, *settings, f"run={trained / 'wide'}")
    assert code == 0, told
    assert "reward good: weights of its own, in bf16" in told + said
    assert "held in fp32: the policy, a frozen reference, a critic with weights of its own" in told + said
    row = list(read_rows(trained / "wide" / "metrics.jsonl"))[-1]
    assert (row["kl"], row["kl_k3"], row["first_ratio"]) == (0.0, 0.0, pytest.approx(1, abs=1e-5))


def test_a_critic_that_is_an_adapter_starts_as_the_reward_model(
    truing: Truing, tiny_model_folder: Path, pairs_file: Path, trained: Path
) -> None:
    """What it expects behind the last token is the reward; another alpha is made up for; what cannot be is said with its remedy."""
    common = shared(tiny_model_folder, pairs_file)
    run = trained / "start"
    code, _, told = truing("train", "reward_model", *common, "lora.rank=4", "optimizer.lr=1e-2", f"run={run}")
    assert code == 0, told
    batch = TreeBatch.of(random_trees(3))

    def critic(folder: Path = tiny_model_folder, **lora: object) -> ValueModel:
        policy = load_policy(folder, torch.float32)[0]
        for name in ("default", CRITIC):
            add_lora(policy.model, LoRA(**({"rank": 4} | lora)), seed=0, name=name)  # type: ignore[arg-type]
        return ValueModel(policy, adapter=CRITIC)

    with torch.no_grad():
        scores = load_reward_model(run, torch.float32).scores(batch)
        for alpha in (32.0, 5.0):
            value = critic(alpha=alpha)
            expected, said = value.policy.log_probs(batch), value.values_and_after(batch)[1]
            assert float((said - scores).abs().max()) > 1e-3
            start_critic(run, value)
            torch.testing.assert_close(value.values_and_after(batch)[1], scores, atol=1e-4, rtol=1e-4)
            assert torch.equal(value.policy.log_probs(batch), expected), "the policy's adapter is its own"
    with pytest.raises(ValueError, match=r"an adapter of shape \[4, \d+\] for model"):
        start_critic(run, critic(rank=2))
    with pytest.raises(ValueError, match=r"only one of the two has an adapter at model.*lora\.targets differ"):
        start_critic(run, critic(targets="q_proj"))
    options = ("reward.low=length_window", "reward.low.most=3", "answers.max_tokens=4", "max_steps=1", "lora.rank=4")
    code, _, told = truing("train", "ppo", *common, *options, f"critic={run}", f"run={trained / 'from_judge'}")
    assert code == 0, told
    moved = (f"model={run}", *common[1:], *options, f"critic={run}", f"run={trained / 'moved'}")
    code, _, told = truing("train", "ppo", *moved)
    assert code != 0
    remedy = "train it with model= and lora.* as here and dtype=fp32, or leave critic out"
    assert f"it was trained on another model or in another dtype; {remedy}" in told


def test_heads_alone_leave_the_model_as_it_was(truing: Truing, tiny_model_folder: Path, pairs_file: Path, trained: Path) -> None:
    run = trained / "heads"
    common = shared(tiny_model_folder, pairs_file)
    code, said, told = truing("train", "reward_model", *common, "ensemble=2", "optimizer.lr=1e-2", f"run={run}")
    assert code == 0, told
    assert "a head each (no adapters: the model itself is not trained)" in told + said
    made = json.loads((run / "model" / "reward_model.json").read_bytes())
    policy = load_policy(tiny_model_folder, torch.float32)[0]
    assert made == {"members": 2, "base": weights_hash(policy.model), "alpha": None, "steps": None}
    riding = load_reward_model(run, torch.float32, bases={made["base"]: policy})
    assert (riding.policy is policy, riding.adapters) == (True, (BASE, BASE))
    code, said, told = truing("train", "reward_model", *common, "ensemble=2", "lora.rank=2", "recompute=always", f"run={run}2")
    assert code != 0
    assert "set recompute=never" in told
