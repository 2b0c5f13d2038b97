"""Reward modelling: a scalar head on the SFT model learns to order responses (pairs or rankings)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from truing.data.tree import Tree
from truing.evals.measures import rewards, right_order
from truing.losses.bradley_terry import BradleyTerry
from truing.models.heads import RewardModel
from truing.objectives import RewardRanking
from truing.recipes.fit import Plan, fit
from truing.recipes.settings import Optimizer, Shared
from truing.records import Preference, Ranking
from truing.runs.sinks import Sink, Tick


@dataclass(frozen=True, kw_only=True)
class Config(Shared):
    """Settings of `truing train reward_model`."""

    optimizer: Optimizer = field(default_factory=lambda: Optimizer(lr=1e-5))
    """The optimizer; for LoRA take ten times the rate or more."""


def plan(config: Config) -> Plan:
    """Rankings or pairs, a scalar head, and how often it orders responses rightly."""

    def outcomes(model: nn.Module, trees: Sequence[Tree], progress: Tick) -> list[float]:
        assert isinstance(model, RewardModel)
        return right_order(rewards(model, trees, budget=2 * config.micro_tokens, progress=progress))

    return Plan(
        method="reward_model",
        kinds=(Ranking, Preference),
        objective=RewardRanking(loss=BradleyTerry()),
        optimizer=config.optimizer,
        model=lambda policy: RewardModel(policy, seed=config.seed),
        outcomes=outcomes,
    )


def run(config: Config, resolved: Mapping[str, object], sinks: Sequence[Sink]) -> Path:
    """Train by a reward model; returns the run's folder."""
    return fit(config, plan(config), resolved, sinks)
