"""Credited samples: the policy's loss, the critic's, an entropy bonus and a KL term, in one objective."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from truing.data.tree import BatchCredit, TreeBatch
from truing.functional import kl_k1, kl_k2, kl_k3, segment_sum
from truing.losses import PolicyLoss
from truing.losses.clipped_value import ClippedValue
from truing.models.heads import ActorCritic
from truing.objectives.base import LossOutput, Mean

LOSS_KL = {"k2": kl_k2, "k3": kl_k3}
"""Estimators that may stand in a loss: k1 is not among them, since its expected gradient is 0."""


@dataclass(frozen=True, kw_only=True)
class PolicyGradient:
    """Policy optimisation from credited samples: PPO, RLOO, GRPO and REINFORCE by what is set here and by their credit.

    total = policy loss + value_weight x value loss - entropy_weight x entropy + kl_weight x KL, summed over tokens. The unit that
    the sum is divided by is the token, or the response where `action` or `average` says so.
    """

    loss: PolicyLoss
    value_loss: ClippedValue | None = None
    """The critic's; None without a critic."""
    value_weight: float = 0.1
    entropy_weight: float = 0.0
    action: Literal["token", "response", "response_mean"] = "token"
    """What a ratio is of: a token; a response (product over its tokens); their geometric mean (GSPO, arXiv 2507.18071, eq. 7)."""
    average: Literal["token", "response"] = "token"
    """Whether all tokens weigh alike, or all responses (each the mean of its tokens: GRPO, arXiv 2402.03300, eq. 3)."""
    kl_estimator: Literal["k2", "k3"] = "k2"
    kl_weight: float = 0.0
    """Coefficient of the KL in the loss; 0 where it stands in the reward."""
    value_only: bool = False
    """The policy stands still: warm-up of the critic."""
    temperature: float = 1.0
    """Of sampling; logits are divided by it here too."""

    @property
    def per_response(self) -> bool:
        """Whether the unit is the response."""
        return self.action != "token" or self.average == "response"

    def units(self, batch: TreeBatch) -> int:
        return batch.responses if self.per_response else len(batch.target)

    def __call__(self, model: nn.Module, batch: TreeBatch) -> LossOutput:
        first, *others = self.parts(model, batch)
        total, metrics = first.total, dict(first.metrics)
        for part in others:
            total = total + part.total
            metrics |= {name: metrics.get(name, Mean(0.0, 0.0)) + mean for name, mean in part.metrics.items()}
        return LossOutput(total=total, metrics=metrics)

    def parts(self, model: nn.Module, batch: TreeBatch) -> Iterator[LossOutput]:
        """The policy's terms, then the critic's: the two share weights at most that are frozen, and no activations."""
        assert isinstance(model, ActorCritic)
        credit = batch.credit
        assert credit is not None, "the trees were sampled and scored"
        weight = torch.ones_like(credit.old)
        if self.per_response and self.action != "response":  # a product's logarithm is a sum over tokens: each weighs 1
            weight = weight / batch.length[batch.response]
        counted = float(self.units(batch))
        if not self.value_only:
            total, metrics = self._policy(model, batch, credit, weight)
            yield LossOutput(total=total, metrics={"loss": Mean(float(total.detach()), counted), **metrics})
            counted = 0.0  # the loss is one mean of both parts
        if self.value_loss is not None:
            total, metrics = self._critic(model, batch, credit, weight, self.value_loss)
            yield LossOutput(total=total, metrics={"loss": Mean(float(total.detach()), counted), **metrics})

    def _critic(
        self,
        model: ActorCritic,
        batch: TreeBatch,
        credit: BatchCredit,
        weight: Float[Tensor, " scored"],
        loss: ClippedValue,
    ) -> tuple[Float[Tensor, ""], dict[str, Mean]]:
        assert model.critic is not None
        assert credit.values is not None
        assert credit.returns is not None
        values = model.critic.values(batch)
        losses = loss(values, credit.values, credit.returns)
        clipped = loss.clipped(values, credit.values, credit.returns).float()
        metrics = {"value_loss": Mean.over(losses), "value_clip_fraction": Mean.over(clipped)}
        return self.value_weight * (weight * losses).sum(), metrics

    def _policy(
        self, model: ActorCritic, batch: TreeBatch, credit: BatchCredit, weight: Float[Tensor, " scored"]
    ) -> tuple[Float[Tensor, ""], dict[str, Mean]]:
        log_probs = model.policy.log_probs(batch, temperature=self.temperature)
        difference = log_probs - credit.old
        if self.action == "token":
            log_ratio, advantages, of_action = difference, credit.advantages, weight
        else:
            log_ratio, advantages = (
                segment_sum(weight * values, batch.response, batch.responses) for values in (difference, credit.advantages)
            )
            if self.action == "response":  # of one response all tokens have the same advantage
                advantages = advantages / batch.length
            of_action = torch.ones_like(advantages)
        losses = self.loss(log_ratio, advantages)
        total = (of_action * losses).sum()
        metrics = {"policy_loss": Mean.over(losses), **_ratio_metrics(log_ratio, difference)}
        metrics["clip_fraction"] = Mean.over(self.loss.clipped(log_ratio, advantages).float())
        if self.entropy_weight:
            entropies = model.policy.entropies(batch, temperature=self.temperature)
            total = total - self.entropy_weight * (weight * entropies).sum()
            metrics["entropy_exact"] = Mean.over(entropies)
        if self.kl_weight:
            kl = LOSS_KL[self.kl_estimator](log_probs, credit.reference)
            total = total + self.kl_weight * (weight * kl).sum()
            metrics["kl_loss"] = Mean.over(kl)
        return total, metrics


def _ratio_metrics(log_ratio: Tensor, difference: Tensor) -> dict[str, Mean]:
    """Of the actions: the ratio and its variance about 1. Of the tokens: KL(pi_old, pi) by samples of pi_old."""
    with torch.no_grad():
        ratio = log_ratio.exp()
        return {
            "ratio": Mean.over(ratio),
            "ratio_variance": Mean.over((ratio - 1).square()),
            "approx_kl_k1": Mean.over(kl_k1(-difference, torch.zeros_like(difference))),
            "approx_kl_k3": Mean.over(kl_k3(-difference, torch.zeros_like(difference))),
        }
