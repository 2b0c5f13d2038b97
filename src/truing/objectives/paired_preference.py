"""Pairs: log-probabilities of both responses to a prompt, against the reference where the loss has one.

A pair that comes with a probability p (a judge's soft label) has the expected loss p L(y_w, y_l) + (1 - p) L(y_l, y_w), whatever
the loss. For DPO this is cDPO's equation with epsilon = 1 - p, each pair's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from truing.baselines import sorted_margins
from truing.data.tree import TreeBatch
from truing.functional import kl_k1, kl_k3, segment_sum
from truing.losses import Pair, PairLogps, PairLoss
from truing.losses.logps import CollisionLoss, implicit_rewards
from truing.models.policy import Policy
from truing.objectives.base import LossOutput, Mean, Prepared
from truing.parallel.world import World


@dataclass(frozen=True, kw_only=True)
class PairedPreference:
    """DPO and its family: the mean loss of a pair. The first branch of each tree is the chosen response."""

    loss: PairLoss

    def units(self, batch: TreeBatch) -> int:
        return len(batch.trees)

    def __call__(self, model: nn.Module, batch: TreeBatch, sorted_margin: Float[Tensor, " pair"] | None = None) -> LossOutput:
        assert isinstance(model, Policy)
        reference = None
        if self.loss.needs_reference:
            reference = batch.reference_tokens
            assert reference is not None, "reference log-probabilities are computed before the first step"
        if isinstance(self.loss, CollisionLoss) and self.loss.needs_collision:
            policy, collision = model.log_probs_and_collision(batch)
        else:
            policy, collision = model.log_probs(batch), None
        logps = replace(_pair_logps(batch, policy, reference, collision), sorted_margin=sorted_margin)
        losses = self.loss(logps)
        if batch.probability is not None:
            losses = batch.probability * losses + (1 - batch.probability) * self.loss(logps.swapped())
        metrics = {"loss": Mean.over(losses), **_pair_metrics(self.loss, logps)}
        if reference is not None:
            now, before = policy.detach().double(), reference.double()
            metrics |= {"kl_k1": Mean.over(kl_k1(now, before)), "kl_k3": Mean.over(kl_k3(now, before))}
        return LossOutput(total=losses.sum(), metrics=metrics)


@dataclass(frozen=True, kw_only=True)
class SortedPreference:
    """AOT: as PairedPreference, each pair held against the reference's margin of the same rank in the whole optimizer batch."""

    loss: PairLoss

    def units(self, batch: TreeBatch) -> int:
        return len(batch.trees)

    def prepare(self, model: nn.Module, batches: Sequence[TreeBatch], world: World) -> Prepared:
        """Sorts both policies' margins, and gives each pair the reference's of its own rank."""
        assert isinstance(model, Policy)
        assert all(batch.probability is None for batch in batches), "the recipe refuses pairs with probabilities"
        return Prepared(of_batches=[(margins,) for margins in sorted_margins(model, batches, world)])

    def __call__(self, model: nn.Module, batch: TreeBatch, statistic: Float[Tensor, " pair"]) -> LossOutput:
        return PairedPreference(loss=self.loss)(model, batch, statistic)


def _pair_logps(
    batch: TreeBatch,
    policy: Float[Tensor, " scored"],
    reference: Float[Tensor, " scored"] | None,
    collision: Float[Tensor, " scored"] | None,
) -> PairLogps:
    """Values of tokens as the sums over responses, and over the beginnings that both sides have, that losses ask for."""
    sides = batch.comparisons()
    assert len(sides.better) == len(batch.trees), "a pair has two responses"

    def pair(values: Tensor) -> Pair:
        return Pair(values[sides.better], values[sides.worse])

    def sums(values: Tensor) -> Pair:
        return pair(segment_sum(values, batch.response, batch.responses))

    length = pair(batch.length)
    shorter = torch.minimum(*length)
    common = batch.length.index_put((sides.better,), shorter).index_put((sides.worse,), shorter)
    first = batch.length.cumsum(0) - batch.length
    place = torch.arange(len(policy), device=policy.device) - first[batch.response]
    beyond = place >= common[batch.response]
    return PairLogps(
        policy=sums(policy),
        reference=None if reference is None else sums(reference),
        length=length,
        policy_prefix=sums(policy.masked_fill(beyond, 0.0)),
        reference_prefix=None if reference is None else sums(reference.masked_fill(beyond, 0.0)),
        collision=None if collision is None else sums(collision),
    )


@torch.no_grad()
def _pair_metrics(loss: PairLoss, logps: PairLogps) -> dict[str, Mean]:
    """Implicit rewards of both sides, as the loss has them, and what follows from them; log-probabilities and lengths."""
    reward = implicit_rewards(loss, logps)
    difference = reward.chosen - reward.rejected
    return {
        "accuracy": Mean.over((difference > 0).float() + 0.5 * (difference == 0).float()),
        "margin": Mean.over(difference),
        "reward_chosen": Mean.over(reward.chosen),
        "reward_rejected": Mean.over(reward.rejected),
        "logp_chosen": Mean.over(logps.policy.chosen),
        "logp_rejected": Mean.over(logps.policy.rejected),
        "length_chosen": Mean.over(logps.length.chosen.float()),
        "length_rejected": Mean.over(logps.length.rejected.float()),
    }
