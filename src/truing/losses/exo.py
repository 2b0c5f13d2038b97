"""Efficient exact optimisation."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from truing.losses.logps import PairLogps


@dataclass(frozen=True, kw_only=True)
class EXO:
    """Efficient exact optimisation on preferences (Ji et al. 2024, arXiv 2402.00856, eq. 16, for K = 2).

    L = KL(p || q),   p = (sigma(h), sigma(-h)),   q = (1 - epsilon, epsilon),   h = beta (log-ratio of y_w - log-ratio of y_l)

    The reverse KL from what the policy says of the pair to its smoothed label; DPO is the forward one, up to a constant. The loss
    is least at sigma(h) = 1 - epsilon, and the gradient of a pair that is badly wrong vanishes.
    """

    needs_reference: ClassVar[bool] = True
    beta: Annotated[float, Field(gt=0)] = 0.1
    """beta_pi in the paper (beta_r is 1 for labels): strength of the pull towards the reference. Customary: 0.05 to 0.5."""
    label_smoothing: Annotated[float, Field(gt=0, lt=0.5)] = 1e-3
    """epsilon, the probability of the other label; the loss is infinite at 0. Customary: 1e-3."""

    def __call__(self, logps: PairLogps) -> Float[Tensor, " pair"]:
        ratio = logps.log_ratios()
        h = self.beta * (ratio.chosen - ratio.rejected)
        log_q_w, log_q_l = math.log1p(-self.label_smoothing), math.log(self.label_smoothing)
        return torch.sigmoid(h) * (logsigmoid(h) - log_q_w) + torch.sigmoid(-h) * (logsigmoid(-h) - log_q_l)
