"""What a loss of sampled actions looks like."""

from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor


@runtime_checkable
class PolicyLoss(Protocol):
    """A loss over actions drawn from an older policy: a frozen dataclass whose fields are its hyperparameters."""

    def __call__(self, log_ratio: Float[Tensor, " action"], advantages: Float[Tensor, " action"]) -> Float[Tensor, " action"]:
        """The loss of each action; `log_ratio` is log pi(a|s) - log pi_old(a|s)."""
        ...

    def clipped(self, log_ratio: Float[Tensor, " action"], advantages: Float[Tensor, " action"]) -> Bool[Tensor, " action"]:
        """Where a bound is in force."""
        ...
