"""Length-normalised DPO."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from truing.losses.logps import Pair, PairLogps


@dataclass(frozen=True, kw_only=True)
class LengthNormalisedDPO:
    """Length-normalised DPO, as used for Tulu 3 (Lambert et al. 2024, arXiv 2411.15124, section 5.1).

    L = -log sigma(beta / |y_w| log(pi(y_w|x) / pi_ref(y_w|x)) - beta / |y_l| log(pi(y_l|x) / pi_ref(y_l|x)))

    DPO with the mean log-ratio of a token for the sum, and so with a far larger beta. ln 2 while policy = reference.
    """

    needs_reference: ClassVar[bool] = True
    beta: Annotated[float, Field(gt=0)] = 5.0
    """Strength of the pull towards the reference, per token. Customary: 2 to 15; Tulu 3 has 5."""

    def rewards(self, logps: PairLogps) -> Pair:
        """beta / |y| log(pi(y|x) / pi_ref(y|x))."""
        mean = logps.per_token(logps.log_ratios())
        return Pair(self.beta * mean.chosen, self.beta * mean.rejected)

    def __call__(self, logps: PairLogps) -> Float[Tensor, " pair"]:
        reward = self.rewards(logps)
        return -logsigmoid(reward.chosen - reward.rejected)
