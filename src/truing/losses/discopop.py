"""DiscoPOP: a loss that a search over programs found."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from truing.losses.logps import PairLogps


@dataclass(frozen=True, kw_only=True)
class DiscoPOP:
    """DiscoPOP, the log-ratio modulated loss (Lu et al. 2024, arXiv 2406.08414, eq. 5).

    L = (1 - sigma(h / tau)) (-log sigma(h)) + sigma(h / tau) exp(-h),   h = beta (log-ratio of y_w - log-ratio of y_l)

    DPO's logistic loss for pairs that are still wrong, an exponential one for those that are right. Not convex: for tau = 0.05 it
    rises with the margin between h = -0.119 and h = 0.072, so that a policy at its reference is pushed the wrong way at first.
    (1 + ln 2) / 2 while policy = reference.
    """

    needs_reference: ClassVar[bool] = True
    beta: Annotated[float, Field(gt=0)] = 0.05
    """As in DPO. Customary: 0.01 to 0.1; the paper trains with 0.05."""
    tau: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Temperature of the passage from one loss to the other. Customary: 0.05."""

    def __call__(self, logps: PairLogps) -> Float[Tensor, " pair"]:
        ratio = logps.log_ratios()
        h = self.beta * (ratio.chosen - ratio.rejected)
        # One exponential, since exp(-h) alone overflows where sigma(h / tau) is 0
        exponential = torch.exp(logsigmoid(h / self.tau) - h)
        return -torch.sigmoid(-h / self.tau) * logsigmoid(h) + exponential
