"""What the losses see: log-probabilities of responses, and nothing else."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float
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

    def log_ratios(self) -> Pair:
        """log pi(y|x) - log pi_ref(y|x) of each side."""
        assert self.reference is not None, "this loss needs a reference"
        return Pair(self.policy.chosen - self.reference.chosen, self.policy.rejected - self.reference.rejected)


@runtime_checkable
class PairLoss(Protocol):
    """A loss over pairs: a frozen dataclass whose fields are its hyperparameters."""

    needs_reference: ClassVar[bool]

    def __call__(self, logps: PairLogps) -> Float[Tensor, " pair"]: ...
