"""What the losses see: log-probabilities of responses, and nothing else."""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor


class Pair(NamedTuple):
    """A number for each side of each pair."""

    chosen: Float[Tensor, " pair"]
    rejected: Float[Tensor, " pair"]


@dataclass(frozen=True, kw_only=True)
class PairLogps:
    """Log-probabilities of paired responses. With policy = reference every reference-based loss is at its starting value."""

    policy: Pair
    """log pi(y|x), summed over response tokens."""
    reference: Pair | None
    """log pi_ref(y|x), summed over response tokens; None when the loss is reference-free."""
    length: Pair
    """Response tokens."""
    sorted_margin: Float[Tensor, " pair"] | None = None
    """The margin under the reference that has, in the whole optimizer batch, the rank of the pair's under the policy."""
    policy_prefix: Pair | None = None
    """log pi of the first min(|y_w|, |y_l|) tokens of each response, summed."""
    reference_prefix: Pair | None = None
    """The same under the reference."""
    collision: Pair | None = None
    """log sum_v pi(v|x, y_<t)^2, summed over response tokens, without gradient; None when the loss does not ask for it."""

    def swapped(self) -> "PairLogps":
        """The same pairs with their sides exchanged: what a label the other way round would be learnt from."""
        assert self.sorted_margin is None, "margins sorted over a batch have no other side"

        def other(pair: Pair | None) -> Pair | None:
            return None if pair is None else Pair(pair.rejected, pair.chosen)

        return PairLogps(
            policy=Pair(self.policy.rejected, self.policy.chosen),
            reference=other(self.reference),
            length=Pair(self.length.rejected, self.length.chosen),
            policy_prefix=other(self.policy_prefix),
            reference_prefix=other(self.reference_prefix),
            collision=other(self.collision),
        )

    def log_ratios(self) -> Pair:
        """log pi(y|x) - log pi_ref(y|x) of each side."""
        assert self.reference is not None, "this loss needs a reference"
        return Pair(self.policy.chosen - self.reference.chosen, self.policy.rejected - self.reference.rejected)

    def counterpart_margin(self) -> Float[Tensor, " pair"]:
        """`sorted_margin`, or the pair's own margin under the reference: the same in a batch of one."""
        if self.sorted_margin is not None:
            return self.sorted_margin
        assert self.reference is not None, "this loss needs a reference"
        return self.reference.chosen - self.reference.rejected

    def prefix_log_ratios(self) -> Pair:
        """log pi - log pi_ref of the first min(|y_w|, |y_l|) tokens of each side."""
        assert self.policy_prefix is not None, "this loss needs sums over the common length"
        assert self.reference_prefix is not None, "this loss needs a reference"
        return Pair(
            self.policy_prefix.chosen - self.reference_prefix.chosen, self.policy_prefix.rejected - self.reference_prefix.rejected
        )

    def per_token(self, sums: Pair) -> Pair:
        """Sums over a response as means over its tokens."""
        return Pair(sums.chosen / self.length.chosen, sums.rejected / self.length.rejected)


@runtime_checkable
class PairLoss(Protocol):
    """A loss over pairs: a frozen dataclass whose fields are its hyperparameters."""

    @property
    def needs_reference(self) -> bool:
        """Whether `PairLogps.reference` must be there. A ClassVar, unless the hyperparameters decide."""
        ...

    def __call__(self, logps: PairLogps) -> Float[Tensor, " pair"]:
        """The loss of each pair."""
        ...


@runtime_checkable
class CollisionLoss(Protocol):
    """A pair loss that also asks for `PairLogps.collision`, which costs a second pass of the hidden states through the head."""

    @property
    def needs_collision(self) -> bool:
        """Whether `PairLogps.collision` must be there."""
        ...


@runtime_checkable
class RewardedLoss(Protocol):
    """A pair loss whose implicit reward is another one than beta times the summed log-ratio."""

    def rewards(self, logps: PairLogps) -> Pair:
        """The implicit reward of each response, up to a term that depends on the prompt alone."""
        ...


def implicit_rewards(loss: PairLoss, logps: PairLogps) -> Pair:
    """What the loss takes for the reward of each response: its own, else beta log(pi / pi_ref), else (no reference) beta log pi."""
    if isinstance(loss, RewardedLoss):
        return loss.rewards(logps)
    beta = float(getattr(loss, "beta", 1.0))
    sums = logps.log_ratios() if loss.needs_reference else logps.policy
    return Pair(beta * sums.chosen, beta * sums.rejected)


@runtime_checkable
class SortingLoss(Protocol):
    """A pair loss that compares margins of the same rank."""

    sorts_margins: ClassVar[bool]


@dataclass(frozen=True, kw_only=True)
class FeedbackLogps:
    """Log-probabilities of responses that were approved of or not, one by one."""

    policy: Float[Tensor, " response"]
    """log pi(y|x), summed over response tokens."""
    reference: Float[Tensor, " response"]
    """log pi_ref(y|x), summed over response tokens."""
    desirable: Bool[Tensor, " response"]
    """Whether the response was approved of."""
    baseline: Float[Tensor, ""] | Float[Tensor, " response"]
    """The log-ratio that the responses' log-ratios are held against, found over the whole optimizer batch; a constant."""

    def advantage(self) -> Float[Tensor, " response"]:
        """By how much the log-ratio exceeds the baseline: wanted above 0 for a desirable response, below for another."""
        return self.policy - self.reference - self.baseline.detach()


Baseline = Literal["mismatched", "shift", "sorted"]
"""What a loss holds log-ratios against: their mean over mismatched prompts and responses, the middle between both classes' running
means, or the log-ratio of the other class's response of the same rank (`truing.baselines`)."""


@runtime_checkable
class FeedbackLoss(Protocol):
    """A loss over single responses: a frozen dataclass whose fields are its hyperparameters."""

    needs_reference: ClassVar[bool]
    baseline: ClassVar[Baseline]

    def __call__(self, logps: FeedbackLogps) -> Float[Tensor, " response"]: ...
