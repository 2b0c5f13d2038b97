"""Process rewards: each step of a response is scored at its last token, and compared with what people said of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from truing.data.tree import TreeBatch
from truing.losses.step_likelihood import StepLikelihood
from truing.models.heads import RewardModel
from truing.models.reference import tree_key
from truing.objectives.base import LossOutput, Mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """Where the steps of a response end, and whether they are right. Example: `Marks(ends=(4, 9), right=(True, False))`."""

    ends: tuple[int, ...]
    """Places of their last tokens among the response's."""
    right: tuple[bool, ...]


@dataclass(frozen=True, kw_only=True)
class StepJudging:
    """The mean loss of a step, over all steps of all responses."""

    loss: StepLikelihood
    marks: Mapping[bytes, Marks] = field(default_factory=dict)
    """Of each response, by `tree_key`: a step label has no place in a tree."""

    def units(self, batch: TreeBatch) -> int:
        return sum(len(self.marks[tree_key(tree)].ends) for tree in batch.trees)

    def __call__(self, model: nn.Module, batch: TreeBatch) -> LossOutput:
        assert isinstance(model, RewardModel)
        marks = [self.marks[tree_key(tree)] for tree in batch.trees]
        scores = model.step_scores(batch, [one.ends for one in marks])
        right = torch.tensor([label for one in marks for label in one.right], dtype=torch.bool, device=scores.device)
        losses = self.loss(scores, right)
        agrees = ((scores > 0) == right).float()
        metrics = {"loss": Mean.over(losses), "accuracy": Mean.over(agrees), "share_right": Mean.over(right.float())}
        for name, side in (("right", right), ("wrong", ~right)):
            if bool(side.any()):
                metrics[f"accuracy_{name}"] = Mean.over(agrees[side])
                metrics[f"chance_{name}"] = Mean.over(scores[side].sigmoid())
        return LossOutput(total=losses.sum(), metrics=metrics)
