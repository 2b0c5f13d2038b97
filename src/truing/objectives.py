"""What is asked of a model and a batch: an objective runs the model, hands tensors to a loss, and returns sums.

Objectives never divide by a count that depends on the batch: the learner does, once, by the number of units over all micro-batches
and ranks. So how a batch was split or packed cannot change a number.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from truing.data.tree import TreeBatch
from truing.losses import Pair, PairLogps, PairLoss
from truing.losses.bradley_terry import BradleyTerry
from truing.losses.nll import NLL
from truing.models.heads import RewardModel
from truing.models.policy import Policy


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean in the making. Example: `Mean(3.0, 4) + Mean(1.0, 1)` is `Mean(4.0, 5)`, whose value is 0.8."""

    sum: float
    count: float

    def __add__(self, other: "Mean") -> "Mean":
        return Mean(self.sum + other.sum, self.count + other.count)

    @classmethod
    def over(cls, values: Tensor) -> "Mean":
        return cls(float(values.detach().double().sum()), float(values.numel()))


def averaged(parts: Iterable[Mapping[str, Mean]]) -> dict[str, float]:
    """Each metric over all the micro-batches that have it: sums and counts are added, and divided once."""
    found: dict[str, Mean] = {}
    for part in parts:
        for name, mean in part.items():
            found[name] = found.get(name, Mean(0.0, 0.0)) + mean
    return {name: mean.sum / mean.count for name, mean in found.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOutput:
    """A loss summed over the units of one micro-batch, and what is worth knowing of them."""

    total: Float[Tensor, ""]
    metrics: dict[str, Mean]


@runtime_checkable
class Objective(Protocol):
    """Anything that turns a model and a batch into a sum."""

    def units(self, batch: TreeBatch) -> int:
        """What the sum is divided by, added up over the step: tokens, pairs or prompts."""
        ...

    def __call__(self, model: nn.Module, batch: TreeBatch) -> LossOutput: ...


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


@dataclass(frozen=True, kw_only=True)
class PairedPreference:
    """DPO and its family: the mean loss of a pair. The first branch of each tree is the chosen response."""

    loss: PairLoss

    def units(self, batch: TreeBatch) -> int:
        return len(batch.trees)

    def __call__(self, model: nn.Module, batch: TreeBatch) -> LossOutput:
        assert isinstance(model, Policy)
        sides = batch.comparisons()
        assert len(sides.better) == len(batch.trees), "a pair has two responses"

        def pair(values: Tensor) -> Pair:
            return Pair(values[sides.better], values[sides.worse])

        policy = pair(model.response_log_probs(batch))
        if self.loss.needs_reference:
            assert batch.reference is not None, "reference log-probabilities are computed before the first step"
        reference = pair(batch.reference) if batch.reference is not None else None
        length = pair(batch.length)
        losses = self.loss(PairLogps(policy=policy, reference=reference, length=length))
        return LossOutput(
            total=losses.sum(), metrics={"loss": Mean.over(losses), **_pair_metrics(self.loss, policy, reference, length)}
        )


def _pair_metrics(loss: PairLoss, policy: Pair, reference: Pair | None, length: Pair) -> dict[str, Mean]:
    """Implicit rewards beta log(pi / pi_ref) of both sides and what follows from them; without a reference, beta log pi."""
    beta = float(getattr(loss, "beta", 1.0))
    with torch.no_grad():
        base = reference if reference is not None else Pair(torch.zeros_like(policy.chosen), torch.zeros_like(policy.rejected))
        chosen, rejected = beta * (policy.chosen - base.chosen), beta * (policy.rejected - base.rejected)
        return {
            "accuracy": Mean.over((chosen > rejected).float() + 0.5 * (chosen == rejected).float()),
            "margin": Mean.over(chosen - rejected),
            "reward_chosen": Mean.over(chosen),
            "reward_rejected": Mean.over(rejected),
            "logp_chosen": Mean.over(policy.chosen),
            "logp_rejected": Mean.over(policy.rejected),
            "length_chosen": Mean.over(length.chosen.float()),
            "length_rejected": Mean.over(length.rejected.float()),
        }


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
