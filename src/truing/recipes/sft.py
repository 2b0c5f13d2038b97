"""Supervised fine-tuning: imitate the assistant's turns of demonstrations (preferences show their chosen answer)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from truing.losses.nll import NLL
from truing.objectives import Imitation
from truing.recipes.fit import Plan, fit
from truing.recipes.settings import Optimizer, Shared
from truing.records import Demonstration
from truing.runs.sinks import Sink


@dataclass(frozen=True, kw_only=True)
class Config(Shared):
    """Settings of `truing train sft`."""

    optimizer: Optimizer = field(default_factory=lambda: Optimizer(lr=2e-5))
    """The optimizer; for LoRA take ten times the rate or more."""


def plan(config: Config) -> Plan:
    """Demonstrations and the loss of their tokens."""
    return Plan(
        method="sft",
        kinds=(Demonstration,),
        objective=Imitation(loss=NLL()),
        optimizer=config.optimizer,
        model=lambda policy: policy,
        outcomes=None,
    )


def run(config: Config, resolved: Mapping[str, object], sinks: Sequence[Sink]) -> Path:
    """Train by supervised fine-tuning; returns the run's folder."""
    return fit(config, plan(config), resolved, sinks)
