"""The clipped surrogate of PPO, also GRPO's and RLOO's: how far one batch of samples may move the policy."""

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ClippedSurrogate:
    """Clipped surrogate (Schulman et al. 2017, arXiv 1707.06347, eq. 7), as a loss.

    L = max(-A rho, -A clip(rho, 1 - epsilon_low, 1 + epsilon_high)),  rho = pi(a|s) / pi_old(a|s)

    The action a is a token, or a whole response (`PolicyGradient.ratio`). At rho = 1 its gradient is that of -A log pi.
    Two bounds where the paper has one: a larger epsilon_high lets unlikely tokens rise (DAPO, Yu et al. 2025, arXiv 2503.14476,
    eq. 10).
    """

    clip_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """epsilon_low: a ratio below 1 - epsilon_low gains nothing by falling further. Customary: 0.2."""
    clip_high: Annotated[float, Field(gt=0)] = 0.2
    """epsilon_high: a ratio above 1 + epsilon_high gains nothing by rising further. Customary: 0.2; clip-higher 0.28."""

    def __call__(self, log_ratio: Float[Tensor, " action"], advantages: Float[Tensor, " action"]) -> Float[Tensor, " action"]:
        ratio = log_ratio.exp()
        return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - self.clip_low, 1 + self.clip_high))

    def clipped(self, log_ratio: Float[Tensor, " action"], advantages: Float[Tensor, " action"]) -> Bool[Tensor, " action"]:
        """Where the bound is in force, so that the action has no gradient."""
        ratio = log_ratio.exp()
        return ((ratio > 1 + self.clip_high) & (advantages > 0)) | ((ratio < 1 - self.clip_low) & (advantages < 0))
