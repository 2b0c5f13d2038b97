"""The layers beneath every adapter: computed once a round, to the same numbers, and by nobody whom they do not fit."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from rounds import Setup
from samples import Truing
from test_policy import FAMILIES, far_from_uniform
from trees import gradients, random_trees, relative_gap
from truing.data.tree import Tree, TreeBatch
from truing.models.layers import layers_of
from truing.models.lora import CRITIC, LoRA, adapter_off, adapter_on, adapter_tensors, add_lora, attach
from truing.models.lower_layers import LowerLayers
from truing.models.policy import Policy, probe, share_lower_layers
from truing.rollouts.credit import GAE, LeaveOneOut
from truing.rollouts.on_policy import Rounds
from truing.train.replay import Replay

ADAPTER = LoRA(rank=4, top_layers=1)


def with_adapters(family: str = "llama", lora: LoRA = ADAPTER) -> Policy:
    """A model of two layers with the policy's and a critic's adapter on the upper one, both with something to say."""
    policy = probe(far_from_uniform(family, **FAMILIES[family])).policy
    for name in ("default", CRITIC):
        add_lora(policy.model, lora, seed=0, name=name)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return policy


def counted(policy: Policy) -> list[int]:
    """Grows by one whenever the attention of the lowest layer runs."""
    calls: list[int] = []
    (attention, *_) = (
        module for name, module in layers_of(policy.model)[0].named_children() if "att" in name and "norm" not in name
    )
    attention.register_forward_hook(lambda *_: calls.append(1))
    return calls


def grown(beginning: int = 20) -> list[Tree]:
    return [replace(tree, trunk=tuple(range(40, 40 + beginning)) + tree.trunk) for tree in random_trees(5, branches=3, longest=30)]


@pytest.mark.parametrize("family", FAMILIES)
def test_in_other_batches_too_the_numbers_and_gradients_are_those_of_the_whole_model(family: str) -> None:
    policy, trees = with_adapters(family), grown()
    single = [replace(tree, branches=(branch,)) for tree in trees[:3] for branch in tree.branches]
    batches = [TreeBatch.of(trees), TreeBatch.of(trees[3:]), TreeBatch.of(trees[1:2]), TreeBatch.of(single)]

    def both(batch: TreeBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        policy.model.zero_grad()
        values = policy.log_probs(batch)
        (values * torch.linspace(-1, 1, len(values))).sum().backward()
        return values.detach(), gradients(policy.model)

    expected = [both(batch) for batch in batches]
    share_lower_layers(policy)
    assert policy.lower is not None
    assert len(policy.lower.layers) == 1
    calls = counted(policy)
    policy.lower.begin()
    found = [both(batch) for batch in batches]
    assert len(calls) == 1  # the first batch holds the trunks and branches of all others
    for (values, slopes), (own, own_slopes) in zip(found, expected, strict=True):
        torch.testing.assert_close(values, own, rtol=0, atol=5e-5)
        assert relative_gap(slopes, own_slopes) < 1e-4
    assert torch.equal(found[0][0], expected[0][0])
    policy.lower.end()
    assert not policy.lower.kept
    assert torch.equal(both(batches[1])[0], expected[1][0])
    assert len(calls) == 2


def test_all_roles_on_one_base_share_them_and_an_adapter_further_down_does_not() -> None:
    policy, batch = with_adapters(), TreeBatch.of(grown())
    whole = with_adapters(lora=LoRA(rank=4))
    attach(policy.model, adapter_tensors(whole.model, "default"), alpha=32.0, name="reward")

    def roles() -> list[torch.Tensor]:
        found = [policy.log_probs(batch)]
        for role in (
            lambda: adapter_on(policy.model, CRITIC),
            lambda: adapter_on(policy.model, "reward"),
            lambda: adapter_off(policy.model),
        ):
            with role():
                found.append(policy.log_probs(batch))
        return [one.detach() for one in found]

    expected = roles()
    share_lower_layers(policy)
    assert policy.lower is not None
    calls = counted(policy)
    for _ in range(2):
        policy.lower.begin()
        for one, own in zip(roles(), expected, strict=True):
            assert torch.equal(one, own)
    assert len(calls) == 4  # in each round once for all but the reward model, and for that once more


def test_what_does_not_fit_is_computed_each_time() -> None:
    policy, batch = with_adapters(), TreeBatch.of(grown())
    lower = LowerLayers.of(policy.model)
    assert lower is not None
    lower.room = 1000
    policy.lower = lower
    calls = counted(policy)
    lower.begin()
    first, second = policy.log_probs(batch), policy.log_probs(batch)
    assert torch.equal(first, second)
    assert len(calls) == 2
    assert 0 < sum(states.nbytes for states in lower.kept.values()) == lower.bytes <= 1000


def test_a_pass_that_fails_leaves_the_layers_as_they_were() -> None:
    policy, batch = with_adapters(), TreeBatch.of(grown())
    share_lower_layers(policy)
    assert policy.lower is not None
    own = policy.log_probs(batch)
    policy.lower.begin()
    for _ in range(2):  # while listening, and while standing still
        hook = layers_of(policy.model)[-1].register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            policy.log_probs(batch)
        hook.remove()
        policy.log_probs(batch)
    policy.lower.end()
    assert torch.equal(policy.log_probs(batch), own)
    assert "forward" not in vars(policy.lower.layers[0])


def test_without_layers_of_which_nothing_is_trained_there_is_nothing_to_share() -> None:
    for policy in (with_adapters(lora=LoRA(rank=4)), probe(far_from_uniform("llama")).policy):
        share_lower_layers(policy)
        assert policy.lower is None
    policy = with_adapters()
    policy.model.get_input_embeddings().weight.requires_grad_(True)
    share_lower_layers(policy)
    assert policy.lower is None


class Telling(nn.Module):
    """A layer that tells the next more than its states: by what stands still it would say nothing."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, states: torch.Tensor, *args: object, **options: object) -> torch.Tensor:
        self.heard = getattr(self, "heard", 0) + 1
        said: torch.Tensor = self.layer(states, *args, **options)
        return said + self.heard


def test_a_model_of_which_other_numbers_come_out_computes_all_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = with_adapters()
    layers = policy.model.base_model.layers
    layers[0] = Telling(layers[0])
    monkeypatch.setattr("truing.models.lower_layers.layers_of", lambda _: list(layers))
    share_lower_layers(policy)
    assert policy.lower is None


class Reading(Telling):
    """A layer that reads what the one beneath it has left, as layers do that share keys and values."""

    def forward(self, states: torch.Tensor, *args: object, **options: object) -> torch.Tensor:
        said: torch.Tensor = self.layer(states, *args, **options)
        return said + 0 * {"left": 1}[self.beneath.left.pop()]


def test_a_model_whose_upper_layers_need_what_lower_ones_leave_computes_all_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = with_adapters()
    layers = policy.model.base_model.layers
    left: list[str] = []
    lowest, reading = layers[0], Reading(layers[1])
    reading.beneath = type("Left", (), {"left": left})
    actual = lowest.forward
    lowest.forward = lambda *args, **options: (left.append("left"), actual(*args, **options))[1]
    layers[1] = reading
    monkeypatch.setattr("truing.models.lower_layers.layers_of", lambda _: list(layers))
    share_lower_layers(policy)
    assert policy.lower is None
    assert not left


def test_the_layers_of_a_tower_of_images_are_not_the_text_models() -> None:
    policy = with_adapters()
    text = list(layers_of(policy.model))
    tower = nn.ModuleList([*text, *text, *text])
    policy.model.base_model._modules = {"tower": tower, **policy.model.base_model._modules}
    assert list(layers_of(policy.model)) == text


@pytest.mark.parametrize(
    ("credit", "samples"), [(GAE(), 1), (GAE(), 3), (LeaveOneOut(), 3)], ids=["gae-1", "gae-3", "leave_one_out-3"]
)
def test_rounds_come_to_the_same_weights_with_the_lower_layers_once_as_with_all_each_time(credit: object, samples: int) -> None:
    runs = []
    for shared in (True, False):
        setup = Setup(
            credit=credit,
            lora=True,
            top_layers=1,
            shared=shared,
            rounds=Rounds(samples=samples),
            replay=Replay(epochs=2, minibatches=2, kl_budget=50.0),
            lr=1e-2,
        )
        assert (setup.model.policy.lower is not None) == shared
        calls = counted(setup.model.policy)
        metrics = setup.run(3)
        runs.append((setup.weights(), metrics, len(calls)))
    (weights, metrics, few), (expected, own, many) = runs
    assert many - few >= 3 * 6  # reference, four minibatches and the budget's two passes in each round; sampling is on top
    assert max(float((weights[name] - expected[name]).abs().max()) for name in expected) < 1e-5
    for found, other in zip(metrics, own, strict=True):
        assert found == pytest.approx(other, abs=1e-4)


@pytest.mark.parametrize(("count", "layers"), [(1, {1}), (2, {0, 1}), (9, {0, 1})])
def test_only_the_uppermost_layers_get_adapters(count: int, layers: set[int]) -> None:
    policy = with_adapters(lora=LoRA(rank=2, top_layers=count))
    assert {int(name.split(".layers.")[1].split(".")[0]) for name in adapter_tensors(policy.model, "default")} == layers


def test_adapters_that_would_be_nowhere_are_refused() -> None:
    with pytest.raises(ValueError, match=r"lora.top_layers=1 and lora.targets='layers.0' have no layer in common"):
        with_adapters(lora=LoRA(rank=2, top_layers=1, targets="layers.0"))


def test_a_model_that_does_not_list_its_layers_is_told_to_name_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("truing.models.lora.layers_of", lambda _: [])
    with pytest.raises(
        ValueError, match=r"lora.top_layers=1: LlamaForCausalLM does not list its layers; name them by lora.targets"
    ):
        with_adapters()


def test_the_command_says_what_is_computed_once_and_its_reward_model_shares_it(
    truing: Truing, tiny_model_folder: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = (f"model={tiny_model_folder}", f"data.path={pairs_file}", "dtype=fp32", "batch_size=4", "lora.rank=4")
    upper = (*common, "lora.top_layers=1", "optimizer.lr=1e-3", "data.held_out_share=0.2")
    judge = tmp_path / "judge"
    assert truing("train", "reward_model", *upper, f"run={judge}")[0] == 0
    passes: list[bool] = []
    actual = LowerLayers._known

    def known(lower: LowerLayers, batch: TreeBatch) -> torch.Tensor | None:
        found = actual(lower, batch)
        passes.append(found is not None)
        return found

    monkeypatch.setattr(LowerLayers, "_known", known)
    options = ("reward.good=learned", f"reward.good.run={judge}", "max_steps=2", "answers.max_tokens=6", "replay.epochs=2")
    code, said, told = truing("train", "ppo", *upper, *options, f"run={tmp_path / 'ppo'}")
    assert code == 0, told
    assert "the layers beneath them (1 of 2) are computed once a round" in said + told
    ones = [f"{flag:d}" for flag in passes]
    # Behind the two passes of the trial two rounds: the policy, then reference, critic, reward model, and two epochs of both.
    assert "".join(ones) == "01" + 2 * ("0" + 7 * "1")
