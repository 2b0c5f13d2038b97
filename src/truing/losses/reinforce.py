"""REINFORCE: the policy gradient without a bound on the step."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Reinforce:
    """REINFORCE with a baseline (Williams 1992, eq. 5), for samples that may be a few updates old.

    L = -A rho,  rho = pi(a|s) / pi_old(a|s)

    Its gradient is -A rho grad log pi(a|s): the score-function gradient, weighted by importance. On fresh samples rho is 1 and
    it is Williams's own. Nothing bounds rho: keep to one epoch.
    """

    def __call__(self, log_ratio: Float[Tensor, " action"], advantages: Float[Tensor, " action"]) -> Float[Tensor, " action"]:
        return -advantages * log_ratio.exp()

    def clipped(self, log_ratio: Float[Tensor, " action"], advantages: Float[Tensor, " action"]) -> Bool[Tensor, " action"]:
        """Nowhere."""
        return torch.zeros_like(advantages, dtype=torch.bool)
