"""DPO with other divergences than the reverse KL."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from truing.functional import expm1_then_linear
from truing.losses.logps import Pair, PairLogps


@dataclass(frozen=True, kw_only=True)
class FDPO:
    """f-DPO (Wang et al. 2023, arXiv 2309.16240, section 4, table 1).

    L = -log sigma(beta f'(u_w) - beta f'(u_l)),   u = pi(y|x) / pi_ref(y|x)

    reverse_kl       f'(u) = log u + 1            which is DPO
    forward_kl       f'(u) = -1 / u
    jensen_shannon   f'(u) = log(2 u / (1 + u))
    alpha            f'(u) = (1 - u^-alpha) / alpha

    ln 2 while policy = reference. u is a ratio of whole responses and leaves the range of fp32 soon: 1 / u and u^-alpha go on as
    straight lines from e^30, where the loss of a losing pair stays finite and goes on to push it up.
    """

    needs_reference: ClassVar[bool] = True
    beta: Annotated[float, Field(gt=0)] = 0.1
    """Strength of the pull towards the reference, measured by the divergence. Customary: 0.01 to 0.5."""
    divergence: Literal["reverse_kl", "forward_kl", "jensen_shannon", "alpha"] = "jensen_shannon"
    """The divergence D_f(pi || pi_ref) that is implied. Reverse KL seeks modes, forward KL covers; the others lie between."""
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Of the alpha divergence: reverse KL towards 0, forward KL towards 1. Customary: 0.3 to 0.7."""

    def slope(self, log_u: Float[Tensor, " pair"]) -> Float[Tensor, " pair"]:
        """f'(u) - f'(1): the constant cancels in the loss, and without it the reward is 0 while policy = reference."""
        if self.divergence == "reverse_kl":
            return log_u
        if self.divergence == "forward_kl":
            return -expm1_then_linear(-log_u)
        if self.divergence == "jensen_shannon":
            return math.log(2) + logsigmoid(log_u)
        return -expm1_then_linear(-self.alpha * log_u) / self.alpha

    def rewards(self, logps: PairLogps) -> Pair:
        """beta (f'(u) - f'(1))."""
        ratio = logps.log_ratios()
        return Pair(self.beta * self.slope(ratio.chosen), self.beta * self.slope(ratio.rejected))

    def __call__(self, logps: PairLogps) -> Float[Tensor, " pair"]:
        reward = self.rewards(logps)
        return -logsigmoid(reward.chosen - reward.rejected)
