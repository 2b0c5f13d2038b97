"""Rankings: the scores of all responses to a prompt in one pass, and every pair that their order implies."""

from dataclasses import dataclass

import torch
from torch import nn

from truing.data.tree import TreeBatch
from truing.losses import Pair
from truing.losses.bradley_terry import BradleyTerry
from truing.models.heads import RewardModel
from truing.objectives.base import LossOutput, Mean


@dataclass(frozen=True, kw_only=True)
class RewardRanking:
    """Reward modelling: the mean over prompts of the mean loss of all pairs that a ranking implies (arXiv 2203.02155, eq. 1)."""

    loss: BradleyTerry

    def units(self, batch: TreeBatch) -> int:
        return len(batch.trees)

    def __call__(self, model: nn.Module, batch: TreeBatch) -> LossOutput:
        assert isinstance(model, RewardModel)
        scores = model.scores(batch)
        pairs = batch.comparisons()
        pair = Pair(scores[pairs.better], scores[pairs.worse])
        losses = self.loss(pair, batch.margin[pairs.tree] if batch.margin is not None else None)
        of_tree = torch.bincount(pairs.tree, minlength=len(batch.trees))
        total = (losses / of_tree[pairs.tree]).sum()
        difference = (pair.chosen - pair.rejected).detach()
        return LossOutput(
            total=total,
            metrics={
                "loss": Mean(float(total.detach()), float(len(batch.trees))),
                "accuracy": Mean.over((difference > 0).float() + 0.5 * (difference == 0).float()),
                "margin": Mean.over(difference),
                "reward_chosen": Mean.over(pair.chosen),
                "reward_rejected": Mean.over(pair.rejected),
            },
        )
