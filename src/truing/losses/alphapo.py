"""AlphaPO: SimPO with a shaped reward."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from truing.functional import expm1_then_linear
from truing.losses.logps import Pair, PairLogps


@dataclass(frozen=True, kw_only=True)
class AlphaPO:
    """AlphaPO (Gupta et al. 2025, arXiv 2501.03884, section 3).

    L = -log sigma(r(y_w) - r(y_l) - gamma),   r(y) = beta (1 - p^-alpha) / alpha,   p = pi(y|x)^(1/|y|)

    p is the geometric mean of a token's probability: a summed log-probability, exponentiated, would be 0 and p^-alpha infinite.
    alpha -> 0 is SimPO. p^-alpha goes on as a straight line from e^30.
    """

    needs_reference: ClassVar[bool] = False
    beta: Annotated[float, Field(gt=0)] = 2.5
    """Scale of the reward. Customary: 2 to 10."""
    gamma: Annotated[float, Field(ge=0)] = 0.1
    """The margin that rewards shall exceed. Customary: 0.1 to 1.5."""
    alpha: float = 0.25
    """Shape of the reward. Above 0 it is steeper than the logarithm at small p, below 0 flatter. Customary: -0.5 to 1."""

    def rewards(self, logps: PairLogps) -> Pair:
        """beta (1 - p^-alpha) / alpha."""
        log_p = logps.per_token(logps.policy)
        if self.alpha == 0:
            return Pair(self.beta * log_p.chosen, self.beta * log_p.rejected)
        return Pair(*(-self.beta * expm1_then_linear(-self.alpha * side) / self.alpha for side in log_p))

    def __call__(self, logps: PairLogps) -> Float[Tensor, " pair"]:
        reward = self.rewards(logps)
        return -logsigmoid(reward.chosen - reward.rejected - self.gamma)
