"""Rankings: the scores of all responses to a prompt in one pass, and every pair that their order implies."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from truing.data.tree import TreeBatch
from truing.losses import Pair
from truing.losses.bradley_terry import BradleyTerry
from truing.models.heads import RewardModel
from truing.objectives.base import LossOutput, Mean
from truing.randomness import counted_seed


@dataclass(frozen=True, kw_only=True)
class RewardRanking:
    """Reward modelling: the mean over prompts of the mean loss of all pairs that a ranking implies (arXiv 2203.02155, eq. 1).

    Of an ensemble it is the mean over members, each of which has its own draw of the data. A pair that comes with a probability has
    the expected loss over its two labels (Bai et al. 2022, arXiv 2212.08073, section 4.1).
    """

    loss: BradleyTerry
    bootstrap: int | None = None
    """Seed of the bootstrap: a member that learns counts each prompt as often as a Poisson draw of mean 1 says (Oza and Russell
    2001), the same in every epoch. None: all count all once."""

    def units(self, batch: TreeBatch) -> int:
        return len(batch.trees) * len(batch.members or (0,))

    def __call__(self, model: nn.Module, batch: TreeBatch) -> LossOutput:
        assert isinstance(model, RewardModel)
        scores = model.member_scores(batch, batch.members)
        members, pairs = len(scores), batch.comparisons()
        better, worse = scores[:, pairs.better], scores[:, pairs.worse]
        losses = self._expected(batch, better, worse)
        of_tree = torch.bincount(pairs.tree, minlength=len(batch.trees))
        total = (self._drawn(batch, losses)[:, pairs.tree] * losses / of_tree[pairs.tree]).sum()
        apart = (better - worse).detach()
        judged = apart if batch.members else apart.mean(0)  # members learn each for itself, and are measured together
        metrics = {
            "loss": Mean(float(total.detach()), float(len(batch.trees) * members)),
            "accuracy": Mean.over((judged > 0).float() + 0.5 * (judged == 0).float()),
            "margin": Mean.over(apart),
            "reward_chosen": Mean.over(better),
            "reward_rejected": Mean.over(worse),
        }
        if members > 1:
            metrics["disagreement"] = Mean.over(apart.std(0, correction=0))
        return LossOutput(total=total, metrics=metrics)

    def _expected(
        self, batch: TreeBatch, better: Float[Tensor, "member pair"], worse: Float[Tensor, "member pair"]
    ) -> Float[Tensor, "member pair"]:
        """The loss of each pair, over both labels where it comes with a probability."""
        members, pairs = len(better), batch.comparisons()
        margin = batch.margin[pairs.tree].repeat(members) if batch.margin is not None else None
        losses = self.loss(Pair(better.flatten(), worse.flatten()), margin)
        if batch.probability is not None:
            chance = batch.probability[pairs.tree].repeat(members)
            other = self.loss(Pair(worse.flatten(), better.flatten()), None if margin is None else -margin)
            losses = chance * losses + (1 - chance) * other
        return losses.view(members, -1)

    def _drawn(self, batch: TreeBatch, like: Float[Tensor, "member pair"]) -> Float[Tensor, "member tree"]:
        """How often each member counts each tree."""
        if batch.members is None or self.bootstrap is None:
            return like.new_ones(len(like), len(batch.trees))
        seeds = [[counted_seed(self.bootstrap, "bootstrap", member, tree.key) for tree in batch.trees] for member in batch.members]
        return like.new_tensor([[float(np.random.Generator(np.random.PCG64(one)).poisson(1.0)) for one in row] for row in seeds])
