"""Reward modelling: a scalar head on the SFT model learns to order responses (pairs or rankings); or an ensemble of such heads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from torch import nn

from truing.data.source import EachMember, TreeSource
from truing.data.tree import Tree
from truing.evals.measures import rewards, right_order
from truing.losses.bradley_terry import BradleyTerry
from truing.models.heads import RewardModel
from truing.models.lora import POLICY, add_lora
from truing.models.policy import Policy
from truing.objectives import RewardRanking
from truing.parallel.world import World
from truing.recipes.examples import Split
from truing.recipes.fit import Plan, fit
from truing.recipes.reward_folder import complete
from truing.recipes.reward_report import report
from truing.recipes.settings import Optimizer, Shared
from truing.records import Preference, Ranking
from truing.runs.sinks import Sink, Tick
from truing.train.loop import Source


@dataclass(frozen=True, kw_only=True)
class Config(Shared):
    """Settings of `truing train reward_model`."""

    ensemble: Annotated[int, Field(ge=1)] = 1
    """Members on one base: with lora an adapter and a head each, without it heads alone, on the frozen model."""
    bootstrap: bool = True
    """Whether each member learns from a draw of its own (a prompt counts 0, 1, 2, ... times), or members differ by seed alone."""
    loss: BradleyTerry = field(default_factory=BradleyTerry)
    """The loss."""
    patience: Annotated[int, Field(ge=0)] = 0
    """Evaluations without a better held-out accuracy after which training ends, with the best weights; 0 goes to the end."""
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(lr=1e-5))
    """The optimizer; for LoRA take ten times the rate or more, for heads alone a hundred times."""


def plan(config: Config) -> Plan:
    """Rankings or pairs, a scalar head or several, and how often it orders responses rightly."""
    if config.ensemble > 1 and config.lora and config.recompute == "always":
        raise ValueError("recompute=always cannot tell the members of an ensemble apart, which are adapters: set recompute=never")

    if config.patience and not config.evaluate_every:
        raise ValueError("patience counts evaluations, and evaluate_every=0 makes none: set evaluate_every, or patience=0")

    def outcomes(model: nn.Module, trees: Sequence[Tree], progress: Tick) -> list[float]:
        assert isinstance(model, RewardModel)
        return right_order(rewards(model, trees, budget=2 * config.micro_tokens, progress=progress))

    def completed(model: nn.Module, trees: Sequence[Tree]) -> Mapping[str, bytes]:
        assert isinstance(model, RewardModel)
        return complete(model, trees, config.lora)

    def reported(model: nn.Module, held_out: Split, world: World, progress: Tick) -> Mapping[str, Any]:
        assert isinstance(model, RewardModel)
        budget = 2 * config.micro_tokens
        scores = world.spread(held_out.trees, lambda share: rewards(model, share, budget=budget, progress=progress))
        return {"reward_model": report(held_out.trees, scores, held_out.records, seed=config.seed)}

    return Plan(
        method="reward_model",
        kinds=(Ranking, Preference),
        objective=RewardRanking(loss=config.loss, bootstrap=config.seed if config.bootstrap else None),
        optimizer=config.optimizer,
        model=lambda policy: _model(policy, config),
        outcomes=outcomes,
        source=lambda source: _source(source, config),
        complete=completed,
        merged=config.ensemble == 1,
        lines=_held_in_memory(config),
        patience=config.patience,
        report=reported,
    )


def _model(policy: Policy, config: Config) -> RewardModel:
    if config.ensemble == 1:
        return RewardModel(policy, seed=config.seed)
    if config.lora is None:
        policy.model.requires_grad_(False)
        return RewardModel(policy, seed=config.seed, members=config.ensemble)
    names = [POLICY, *(f"member_{number}" for number in range(2, config.ensemble + 1))]
    for name in names[1:]:
        add_lora(policy.model, config.lora, seed=config.seed, name=name)
    # What is computed again going backward would run under the adapter that is then in force.
    policy.recompute_above = None
    return RewardModel(policy, seed=config.seed, members=config.ensemble, adapters=names)


def _source(source: TreeSource, config: Config) -> Source:
    """Members with adapters learn one after the other, heads alone at once."""
    if config.ensemble == 1:
        return source
    members = tuple(range(config.ensemble))
    return EachMember(source, [(member,) for member in members] if config.lora else [members])


def _held_in_memory(config: Config) -> tuple[str, ...]:
    """What of an ensemble is held once."""
    if config.ensemble == 1:
        return ()
    each = "an adapter and a head each" if config.lora else "a head each (no adapters: the model itself is not trained)"
    return (f"one base for {config.ensemble} members: {each}",)


def run(config: Config, resolved: Mapping[str, object], sinks: Sequence[Sink]) -> Path:
    """Train by a reward model; returns the run's folder."""
    return fit(config, plan(config), resolved, sinks)
