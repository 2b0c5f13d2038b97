"""What is asked of a model and a batch: an objective runs the model, hands tensors to a loss, and returns sums.

Objectives never divide by a count that depends on the batch: the learner does, once, by the number of units over all micro-batches
and ranks. So how a batch was split or packed cannot change a number.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from truing.baselines import Counterparts, RunningMeans, class_means, log_ratios, mismatched_kl, sorted_counterparts, sorted_margins
from truing.data.mismatch import mismatched
from truing.data.tree import BatchCredit, Tree, TreeBatch
from truing.functional import kl_k1, kl_k2, kl_k3, segment_sum
from truing.losses import FeedbackLogps, FeedbackLoss, Pair, PairLogps, PairLoss, PolicyLoss
from truing.losses.bradley_terry import BradleyTerry
from truing.losses.clipped_value import ClippedValue
from truing.losses.logps import CollisionLoss, implicit_rewards
from truing.losses.nll import NLL
from truing.models.collision import with_collision
from truing.models.heads import ActorCritic, RewardModel
from truing.models.policy import Policy
from truing.models.reference import tree_key
from truing.parallel.world import World
from truing.runs.run import Part


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A statistic of the whole optimizer batch, for those who need it."""

    of_batches: Sequence[tuple[Any, ...]]
    """For each of this rank's micro-batches what the objective is called with beside model and batch; often nothing."""
    of_step: Any = None
    """What the objective remembers once the step has been taken; the same on all ranks."""


@runtime_checkable
class WholeBatchObjective(Protocol):
    """An objective with a statistic of the whole optimizer batch, over all micro-batches and ranks."""

    def units(self, batch: TreeBatch) -> int:
        """As of every objective."""
        ...

    def prepare(self, model: nn.Module, batches: Sequence[TreeBatch], world: World) -> Prepared:
        """The statistic, without gradient. Changes nothing: evaluation asks for it too.

        Every rank calls it in every step, also one that has no micro-batch.
        """
        ...

    def __call__(self, model: nn.Module, batch: TreeBatch, statistic: Any) -> LossOutput: ...


@runtime_checkable
class RememberingObjective(Protocol):
    """An objective that changes with the steps taken."""

    @property
    def memory(self) -> Mapping[str, Part]:
        """What changes, by name: parts of the checkpoint."""
        ...

    def remember(self, of_step: Any) -> None:
        """Called after each step that was taken, with what `prepare` gave for it."""
        ...


AnyObjective = Objective | WholeBatchObjective


def prepared(objective: AnyObjective, model: nn.Module, batches: Sequence[TreeBatch], world: World) -> Prepared:
    """What an objective needs beside each micro-batch: a statistic of the whole batch, or nothing."""
    if isinstance(objective, WholeBatchObjective):
        return objective.prepare(model, batches, world)
    return Prepared(of_batches=[()] * len(batches))


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

    def __call__(self, model: nn.Module, batch: TreeBatch, sorted_margin: Float[Tensor, " pair"] | None = None) -> LossOutput:
        assert isinstance(model, Policy)
        reference = None
        if self.loss.needs_reference:
            reference = batch.reference_tokens
            assert reference is not None, "reference log-probabilities are computed before the first step"
        if isinstance(self.loss, CollisionLoss) and self.loss.needs_collision:
            policy, collision = with_collision(model, batch)
        else:
            policy, collision = model.log_probs(batch), None
        logps = replace(_pair_logps(batch, policy, reference, collision), sorted_margin=sorted_margin)
        losses = self.loss(logps)
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


@dataclass(frozen=True, kw_only=True)
class UnpairedFeedback:
    """KTO and its relatives: the mean loss of a response that was approved of or not."""

    loss: FeedbackLoss
    max_tokens: int
    """Longest prompt with a mismatched response, in tokens."""
    mismatched_reference: Mapping[bytes, float] = field(default_factory=dict)
    """log pi_ref of mismatched prompts and responses, by `tree_key`, for the losses that need it."""
    means: RunningMeans = field(default_factory=RunningMeans)
    """Mean log-ratios of both classes over the last steps, for the losses that need them: all that an objective remembers."""

    def units(self, batch: TreeBatch) -> int:
        return batch.responses

    def mismatched(self, trees: Sequence[Tree]) -> dict[int, Tree]:
        """By record, what else of one optimizer batch the reference is asked for before training."""
        return mismatched(trees, max_tokens=self.max_tokens) if self.loss.baseline == "mismatched" else {}

    def knowing(self, trees: Iterable[Tree]) -> "UnpairedFeedback":
        """The objective that knows log pi_ref of these mismatched trees, which carry it."""
        known = {tree_key(tree): tree.reference_sums()[0] for tree in trees}
        return replace(self, mismatched_reference=known)

    def prepare(self, model: nn.Module, batches: Sequence[TreeBatch], world: World) -> Prepared:
        """KTO's z_0 or BCO's shift, the same for all; or the counterparts of each micro-batch's responses."""
        assert isinstance(model, Policy)
        if self.loss.baseline == "mismatched":
            kl = mismatched_kl(model, batches, world, reference=self.mismatched_reference, max_tokens=self.max_tokens)
            return Prepared(of_batches=[(kl,)] * len(batches))
        ratios = log_ratios(model, batches)
        if self.loss.baseline == "shift":
            means = self.means.after(class_means(ratios, batches, world), float(getattr(self.loss, "shift_decay", 0.0)))
            return Prepared(of_batches=[(sum(means) / 2,)] * len(batches), of_step=means)
        return Prepared(of_batches=[(found,) for found in sorted_counterparts(ratios, batches, world)])

    @property
    def memory(self) -> Mapping[str, Part]:
        """The running means of the losses that have them."""
        return {"means": self.means} if self.loss.baseline == "shift" else {}

    def remember(self, of_step: tuple[float, float] | None) -> None:
        """Takes over the means of a step that was taken."""
        if of_step is not None:
            self.means.take(of_step)

    def __call__(self, model: nn.Module, batch: TreeBatch, statistic: float | Counterparts) -> LossOutput:
        assert isinstance(model, Policy)
        assert batch.reference is not None, "reference log-probabilities are computed before the first step"
        assert batch.desirable is not None, "feedback says of every response whether it is desirable"
        policy, baseline = model.response_log_probs(batch), torch.zeros_like(batch.reference)
        logps = FeedbackLogps(policy=policy, reference=batch.reference, desirable=batch.desirable, baseline=baseline)
        if isinstance(statistic, float):
            logps = replace(logps, baseline=baseline + statistic)
            total = self.loss(logps).sum()
        else:
            of = statistic.response
            logps_of_entries = FeedbackLogps(
                policy=policy[of], reference=batch.reference[of], desirable=batch.desirable[of], baseline=statistic.baseline
            )
            both = (statistic.weight * self.loss(logps_of_entries)).sum() + 0.0 * policy.sum()
            # each side is held against the other as a constant, so both together have the gradient, but twice the value
            total = both - 0.5 * both.detach()
        return LossOutput(
            total=total,
            metrics={
                "loss": Mean(float(total.detach()), float(batch.responses)),
                **_feedback_metrics(self.loss, logps, batch.length),
            },
        )


def _feedback_metrics(loss: FeedbackLoss, logps: FeedbackLogps, length: Tensor) -> dict[str, Mean]:
    """Implicit rewards beta log(pi / pi_ref) of both classes, and which responses lie on their side of the baseline."""
    beta = float(getattr(loss, "beta", 1.0))
    with torch.no_grad():
        reward, ahead = beta * (logps.policy - logps.reference), logps.advantage()
        right = torch.where(logps.desirable, ahead > 0, ahead < 0).float() + 0.5 * (ahead == 0).float()
        found = {"accuracy": Mean.over(right), "share_desirable": Mean.over(logps.desirable.float())}
        if loss.baseline != "sorted":
            found["baseline"] = Mean.over(logps.baseline)
        for name, side in (("desirable", logps.desirable), ("undesirable", ~logps.desirable)):
            if bool(side.any()):
                found[f"reward_{name}"] = Mean.over(reward[side])
                found[f"logp_{name}"] = Mean.over(logps.policy[side])
                found[f"length_{name}"] = Mean.over(length[side].float())
        return found


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
        assert isinstance(model, ActorCritic)
        credit = batch.credit
        assert credit is not None, "the trees were sampled and scored"
        weight = torch.ones_like(credit.old)
        if self.per_response and self.action != "response":  # a product's logarithm is a sum over tokens: each weighs 1
            weight = weight / batch.length[batch.response]
        total = torch.zeros((), device=credit.old.device)
        metrics: dict[str, Mean] = {}
        if not self.value_only:
            total, metrics = self._policy(model, batch, credit, weight)
        if self.value_loss is not None:
            assert model.critic is not None
            assert credit.values is not None
            assert credit.returns is not None
            values = model.critic.values(batch)
            losses = self.value_loss(values, credit.values, credit.returns)
            total = total + self.value_weight * (weight * losses).sum()
            metrics["value_loss"] = Mean.over(losses)
            metrics["value_clip_fraction"] = Mean.over(self.value_loss.clipped(values, credit.values, credit.returns).float())
        return LossOutput(total=total, metrics={"loss": Mean(float(total.detach()), float(self.units(batch))), **metrics})

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

    @torch.no_grad()
    def divergence(self, model: ActorCritic, batch: TreeBatch) -> Mean:
        """KL(pi, pi_ref) of a response, now, by the responses of an older policy: the sum over tokens of rho_t k3_t.

        rho_t = pi / pi_old of the token makes each term unbiased for the divergence in its state; states are the older policy's.
        """
        assert batch.credit is not None
        log_probs = model.policy.log_probs(batch, temperature=self.temperature)
        terms = (log_probs - batch.credit.old).exp() * kl_k3(log_probs, batch.credit.reference)
        return Mean(float(terms.double().sum()), float(batch.responses))


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
