"""One round of sampling and scoring, as the learner replays it. How it comes about is `truing.rollouts.on_policy`."""

from collections.abc import Mapping
from dataclasses import dataclass

from truing.data.tree import Tree


@dataclass(frozen=True, slots=True, kw_only=True)
class Experience:
    """Example: 64 prompts with one credited answer each, of which this rank has 32 trees."""

    round: int
    """Counted from 0."""
    trees: tuple[Tree, ...]
    """This rank's; `key` is the prompt's number in the round. Prompts none of whose answers has a reward have no tree."""
    answers: tuple[Tree, ...]
    """All answers to this rank's prompts, also those without a reward; no credit. Where the KL is measured that a budget is for."""
    prompts: int
    """Prompts of the round, on all ranks together."""
    kl_weight: float
    """Coefficient of the KL in the loss; 0 where it stands in the reward."""
    critic_only: bool
    """Whether the policy stands still in this round: warm-up of the critic."""
    metrics: Mapping[str, float]
    """What was measured while sampling and scoring, over all ranks."""
