"""Simple preference optimisation."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from truing.losses.logps import Pair, PairLogps


@dataclass(frozen=True, kw_only=True)
class SimPO:
    """Simple preference optimisation (Meng et al. 2024, arXiv 2405.14734, eq. 6).

    L = -log sigma(beta / |y_w| log pi(y_w|x) - beta / |y_l| log pi(y_l|x) - gamma)

    No reference, and no likelihood term: implementations that derive it from CPO's add one unless told not to.
    """

    needs_reference: ClassVar[bool] = False
    beta: Annotated[float, Field(gt=0)] = 2.0
    """Scale of the reward, the mean log-probability of a token. Customary: 2 to 10."""
    gamma: Annotated[float, Field(ge=0)] = 1.0
    """The margin that rewards shall exceed. Customary: 0.3 to 0.8 times beta."""

    def rewards(self, logps: PairLogps) -> Pair:
        """beta / |y| log pi(y|x)."""
        mean = logps.per_token(logps.policy)
        return Pair(self.beta * mean.chosen, self.beta * mean.rejected)

    def __call__(self, logps: PairLogps) -> Float[Tensor, " pair"]:
        reward = self.rewards(logps)
        return -logsigmoid(reward.chosen - reward.rejected - self.gamma)
