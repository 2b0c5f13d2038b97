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


@runtime_checkable
class PairLoss(Protocol):
    """A loss over pairs: a frozen dataclass whose fields are its hyperparameters."""

    needs_reference: ClassVar[bool]

    def __call__(self, logps: PairLogps) -> Float[Tensor, " pair"]: ...


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
