"""Kahneman-Tversky optimisation."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from truing.losses.logps import Baseline, FeedbackLogps


@dataclass(frozen=True, kw_only=True)
class KTO:
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv 2402.01306, eq. 7).

    L = lambda_y - v(x, y)
    v = lambda_D sigma(beta (r - z_0))  for a desirable y,   lambda_U sigma(beta (z_0 - r))  for an undesirable one
    r = log pi(y|x) / pi_ref(y|x),   z_0 = max(0, mean of log pi(y'|x) / pi_ref(y'|x) over mismatched x and y')

    lambda_y / 2 while policy = reference. z_0 estimates KL(pi || pi_ref) and is a constant of the step, as in the paper.
    """

    needs_reference: ClassVar[bool] = True
    baseline: ClassVar[Baseline] = "mismatched"
    beta: Annotated[float, Field(gt=0)] = 0.1
    """Risk aversion: how soon gains and losses saturate. Customary: 0.01 to 0.5."""
    desirable_weight: Annotated[float, Field(gt=0)] = 1.0
    """lambda_D. With n_D desirable and n_U undesirable rows, lambda_D n_D / (lambda_U n_U) is best between 1 and 4/3."""
    undesirable_weight: Annotated[float, Field(gt=0)] = 1.0
    """lambda_U. Raise the weight of the rarer class; leave the other at 1."""

    def __call__(self, logps: FeedbackLogps) -> Float[Tensor, " response"]:
        gain = self.beta * logps.advantage()
        # 1 - sigma(t) is written sigma(-t): the difference would round to 0 for t above 17 in fp32
        return torch.where(
            logps.desirable, self.desirable_weight * torch.sigmoid(-gain), self.undesirable_weight * torch.sigmoid(gain)
        )
