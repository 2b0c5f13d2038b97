"""Learning from single responses that were approved of or not: KTO and its relatives, by the loss that is named."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from torch import nn

from truing.config import OneOf
from truing.data.tree import Tree
from truing.evals.measures import response_log_probs, right_order
from truing.losses import FEEDBACK_LOSSES, FeedbackLoss
from truing.losses.kto import KTO
from truing.models.policy import Policy
from truing.objectives import UnpairedFeedback
from truing.recipes.fit import Plan, fit
from truing.recipes.settings import Optimizer, Shared
from truing.records import Feedback
from truing.runs.sinks import Sink, Tick
from truing.train.moving_reference import TrustRegion


@dataclass(frozen=True, kw_only=True)
class Config(Shared):
    """Settings of `truing train kto` and of every other loss of single responses."""

    loss: Annotated[FeedbackLoss, OneOf(FEEDBACK_LOSSES)] = field(default_factory=KTO)
    """The loss, by name, with its own hyperparameters: loss=kto loss.undesirable_weight=2."""
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(lr=1e-6))
    """The optimizer; for LoRA take ten to a hundred times the rate."""
    trust_region: TrustRegion | None = None
    """Let the reference follow the policy: trust_region.alpha=0.6 trust_region.every=64; null keeps it where it started."""


def plan(config: Config) -> Plan:
    """Feedback, its loss against the reference, and how often a prompt's good response is likelier than its bad one."""

    def outcomes(model: nn.Module, trees: Sequence[Tree], progress: Tick) -> list[float]:
        assert isinstance(model, Policy)
        return right_order(response_log_probs(model, trees, budget=2 * config.micro_tokens, progress=progress))

    name = next(name for name, loss in FEEDBACK_LOSSES.items() if isinstance(config.loss, loss))
    return Plan(
        method=name,
        kinds=(Feedback,),
        objective=UnpairedFeedback(loss=config.loss, max_tokens=config.data.max_tokens, micro_tokens=config.micro_tokens),
        optimizer=config.optimizer,
        model=lambda policy: policy,
        outcomes=outcomes,
        needs_reference=config.loss.needs_reference,
        trust_region=config.trust_region,
        compared=comparable,
    )


def run(config: Config, resolved: Mapping[str, object], sinks: Sequence[Sink]) -> Path:
    """Train on single responses; returns the run's folder."""
    return fit(config, plan(config), resolved, sinks)


def comparable(trees: Sequence[Tree]) -> list[Tree]:
    """Each desirable response of a prompt with each undesirable one of the same prompt; the desirable one stands first."""
    sides: dict[tuple[int, ...], tuple[list[Tree], list[Tree]]] = {}
    for tree in trees:
        assert tree.desirable is not None, "feedback says of every response whether it is desirable"
        sides.setdefault(tree.trunk, ([], []))[not tree.desirable[0]].append(tree)
    pairs = [(good, bad) for wanted, other in sides.values() for good in wanted for bad in other]
    return [Tree(trunk=good.trunk, branches=good.branches + bad.branches, key=key) for key, (good, bad) in enumerate(pairs)]
