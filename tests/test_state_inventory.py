"""What training changes is in the checkpoint: every attribute of learner, optimizer and source is there, or listed with its reason.

An attribute that is new here fails until it is saved or explained; one that is said to stay the same is watched while training.
"""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import make_tiny_llama
from trees import random_trees
from truing import objectives
from truing.baselines import RunningMeans
from truing.data.source import TreeSource
from truing.losses.bradley_terry import BradleyTerry
from truing.losses.dpo import DPO
from truing.losses.nll import NLL
from truing.models.heads import RewardModel
from truing.models.lora import CRITIC, LoRA, add_lora
from truing.models.policy import probe
from truing.objectives import Imitation, PairedPreference, RewardRanking
from truing.train.learner import Learner
from truing.train.moving_reference import MovingReference, TrustRegion
from truing.train.optim import AdamW, Optimizer

SAVED = {
    Learner: {"trained", "optimizer", "steps_taken", "skipped", "skipped_in_a_row"},
    AdamW: {"masters", "first", "second", "steps", "missed"},
    TreeSource: {"steps_taken"},
    MovingReference: {"weights", "steps"},
    RunningMeans: {"desirable", "undesirable"},
}
NOT_SAVED = {
    Learner: {
        "model": "what of it is trained is `trained`; the rest is the starting model, whose hash is a fingerprint of the run",
        "settings": "from the config, which may not change",
        "total_steps": "compared with the run's max_steps",
        "world": "the processes are those of this start",
    },
    AdamW: {
        "parameters": "the learner's `trained`",
        "settings": "from the config, which may not change",
    },
    TreeSource: {
        "trees": "from the data, whose hash is a fingerprint of the run",
        "batch_size": "from the config, which may not change",
        "micro_tokens": "from the config, which may not change",
        "seed": "from the config, which may not change",
        "rank": "the processes are those of this start",
        "ranks": "the processes are those of this start",
        "device": "the machine is that of this start",
    },
    MovingReference: {
        "trained": "the learner's `trained`",
        "settings": "from the config, which may not change",
    },
    RunningMeans: {},
}


def parts() -> tuple[Learner, TreeSource]:
    """A reward model with adapters in bf16: parameters frozen and trained, with masters and without; some get no gradient."""
    model = make_tiny_llama(seed=1, tie=False).to(torch.bfloat16)
    add_lora(model, LoRA(rank=4), seed=0)
    add_lora(model, LoRA(rank=4), seed=0, name=CRITIC)
    learner = Learner(RewardModel(probe(model).policy, seed=0), Optimizer(lr=1e-3, weight_decay=0.1), total_steps=6)
    return learner, TreeSource(random_trees(5), batch_size=2, micro_tokens=80, seed=3)


def train(learner: Learner, source: TreeSource, steps: int) -> list[dict[str, float]]:
    objective = RewardRanking(loss=BradleyTerry())
    batches = iter(source)
    return [learner.update(objective, next(batches)) for _ in range(steps)]


def frozen(value: Any) -> Any:
    """Something to compare an attribute by."""
    if isinstance(value, nn.Module):
        trained = {name for name, p in value.named_parameters() if p.requires_grad}
        return {name: tensor.clone() for name, tensor in value.state_dict().items() if name not in trained}
    if isinstance(value, dict):
        return {key: frozen(item) for key, item in value.items()}
    if isinstance(value, AdamW):
        return {name: frozen(getattr(value, name)) for name in SAVED[AdamW]}
    return value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, Tensor) else one == other


@pytest.mark.parametrize("kind", [Learner, AdamW, TreeSource])
def test_every_attribute_is_saved_or_has_its_reason(kind: type) -> None:
    learner, source = parts()
    (found,) = [part for part in (learner, learner.optimizer, source) if type(part) is kind]
    assert not hasattr(kind, "__slots__"), "or the list of attributes is not whole"
    assert SAVED[kind] | NOT_SAVED[kind].keys() == vars(found).keys()
    assert not SAVED[kind] & NOT_SAVED[kind].keys()


def test_saved_attributes_come_back_and_the_others_do_not_change() -> None:
    learner, source = parts()
    # twice not a number and once in order, so that no counter is 0
    objective, batches = RewardRanking(loss=BradleyTerry()), iter(source)
    watched = {kind: {name: frozen(getattr(part, name)) for name in vars(part)} for kind, part in by_kind(learner, source).items()}
    learner.update(objective, next(batches))
    head = learner.trained["head.weight"]
    for _ in range(2):
        kept = head.data.clone()
        head.data.fill_(float("nan"))
        learner.update(objective, next(batches))
        head.data.copy_(kept)
    after = {kind: {name: frozen(getattr(part, name)) for name in vars(part)} for kind, part in by_kind(learner, source).items()}
    for kind, attributes in after.items():
        for name, value in attributes.items():
            changed = not same(value, watched[kind][name])
            assert changed == (name in SAVED[kind]) or name == "parameters", f"{kind.__name__}.{name}"
    again, source_again = parts()
    again.load_state(learner.state_tensors(), learner.state_dict())
    source_again.load_state(source.state_tensors(), source.state_dict())
    for kind, part in by_kind(again, source_again).items():
        for name in SAVED[kind]:
            assert same(frozen(getattr(part, name)), after[kind][name]), f"{kind.__name__}.{name}"
    assert train(again, source_again, 3) == train(learner, source, 3)
    assert same(frozen(again.trained), frozen(learner.trained))


def test_what_objectives_remember_is_saved_and_comes_back() -> None:
    learner, _ = parts()
    settings = TrustRegion(alpha=0.5, every=1)
    memories = {MovingReference: lambda: MovingReference(learner.trained, settings), RunningMeans: RunningMeans}
    moved = {kind: make() for kind, make in memories.items()}
    for parameter in learner.trained.values():
        parameter.data.add_(1.0)
    moved[MovingReference].advance()
    moved[RunningMeans].take((1.0, -2.0))
    for kind, part in moved.items():
        assert SAVED[kind] | NOT_SAVED[kind].keys() == vars(part).keys()
        again = memories[kind]()
        assert not any(same(frozen(getattr(again, name)), frozen(getattr(part, name))) for name in SAVED[kind])
        again.load_state(part.state_tensors(), part.state_dict())
        assert all(same(frozen(getattr(again, name)), frozen(getattr(part, name))) for name in SAVED[kind])


def by_kind(learner: Learner, source: TreeSource) -> dict[type, Any]:
    return {Learner: learner, AdamW: learner.optimizer, TreeSource: source}


@pytest.mark.parametrize("objective", [Imitation(loss=NLL()), PairedPreference(loss=DPO()), RewardRanking(loss=BradleyTerry())])
def test_objectives_and_losses_remember_nothing(objective: objectives.Objective) -> None:
    for part in (objective, objective.loss):
        assert type(part).__dataclass_params__.frozen
        assert vars(part).keys() <= set(type(part).__dataclass_fields__)
