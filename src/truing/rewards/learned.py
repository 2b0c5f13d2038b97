"""A trained reward model as a part of the reward: it scores the very tokens that were said, as it was trained to."""

import math
from collections.abc import Sequence
from itertools import groupby

import torch

from truing.data.tree import Branch, Tree, TreeBatch, pack
from truing.models.heads import RewardModel
from truing.records import Rollout
from truing.rewards.base import Failure


class LearnedScorer:
    """Example: `LearnedScorer(load_reward_model(run, dtype), budget=4096)(rollouts)`."""

    def __init__(self, model: RewardModel, *, budget: int) -> None:
        self.model = model
        self.budget = budget

    @torch.no_grad()
    def __call__(self, rollouts: Sequence[Rollout]) -> list[float | Failure]:
        places = [list(group) for _, group in groupby(range(len(rollouts)), lambda i: rollouts[i].trunk)]
        trees = [
            Tree(trunk=rollouts[group[0]].trunk, branches=tuple(_branch(rollouts[i]) for i in group), key=number)
            for number, group in enumerate(places)
        ]
        found: list[float | Failure] = [math.nan] * len(rollouts)
        for group in pack(trees, self.budget):
            scores = iter(self.model.scores(TreeBatch.of(group, self.model.policy.device)).tolist())
            for tree in group:
                for place in places[tree.key]:
                    found[place] = next(scores)
        return found


def _branch(rollout: Rollout) -> Branch:
    return Branch(tokens=rollout.completion.tokens, scored=(True,) * len(rollout.completion.tokens))
