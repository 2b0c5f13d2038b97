"""Preference optimisation in one step: DPO and its family, by the loss that is named."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from torch import nn

from truing.config import OneOf
from truing.data.tree import Tree
from truing.evals.measures import response_log_probs, right_order
from truing.losses import PAIR_LOSSES, PairLoss
from truing.losses.dpo import DPO
from truing.losses.logps import SortingLoss
from truing.models.policy import Policy
from truing.objectives import PairedPreference, SortedPreference
from truing.recipes.fit import Plan, fit
from truing.recipes.settings import Optimizer, Shared
from truing.records import Preference
from truing.runs.sinks import Sink, Tick
from truing.train.moving_reference import TrustRegion


@dataclass(frozen=True, kw_only=True)
class Config(Shared):
    """Settings of `truing train dpo` and of every other pair loss."""

    loss: Annotated[PairLoss, OneOf(PAIR_LOSSES)] = field(default_factory=DPO)
    """The loss, by name, with its own hyperparameters: loss=ipo loss.beta=0.2."""
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(lr=1e-6))
    """The optimizer; for LoRA take ten to a hundred times the rate."""
    trust_region: TrustRegion | None = None
    """Let the reference follow the policy: trust_region.alpha=0.6 trust_region.every=64; null keeps it where it started."""


def plan(config: Config) -> Plan:
    """Pairs, their loss against the reference, and how often the good response is the likelier one."""

    def outcomes(model: nn.Module, trees: Sequence[Tree], progress: Tick) -> list[float]:
        assert isinstance(model, Policy)
        return right_order(response_log_probs(model, trees, budget=2 * config.micro_tokens, progress=progress))

    name = next(name for name, loss in PAIR_LOSSES.items() if isinstance(config.loss, loss))
    sorts = isinstance(config.loss, SortingLoss) and config.loss.sorts_margins
    if config.trust_region is not None and not config.loss.needs_reference:
        raise ValueError(f"trust_region: {name} has no reference that could follow the policy; leave it out")
    return Plan(
        method=name,
        kinds=(Preference,),
        objective=SortedPreference(loss=config.loss) if sorts else PairedPreference(loss=config.loss),
        optimizer=config.optimizer,
        model=lambda policy: policy,
        outcomes=outcomes,
        needs_reference=config.loss.needs_reference,
        trust_region=config.trust_region,
    )


def run(config: Config, resolved: Mapping[str, object], sinks: Sequence[Sink]) -> Path:
    """Train by preference optimisation; returns the run's folder."""
    return fit(config, plan(config), resolved, sinks)
