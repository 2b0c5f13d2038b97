"""Supervised fine-tuning: what is asked is the log-probability of every scored token."""

from dataclasses import dataclass

from torch import nn

from truing.data.tree import TreeBatch
from truing.losses.nll import NLL
from truing.models.policy import Policy
from truing.objectives.base import LossOutput, Mean


@dataclass(frozen=True, kw_only=True)
class Imitation:
    """Supervised fine-tuning: the mean loss of a scored token."""

    loss: NLL

    def units(self, batch: TreeBatch) -> int:
        return len(batch.target)

    def __call__(self, model: nn.Module, batch: TreeBatch) -> LossOutput:
        assert isinstance(model, Policy)
        losses = self.loss(model.log_probs(batch))
        return LossOutput(total=losses.sum(), metrics={"loss": Mean.over(losses)})
