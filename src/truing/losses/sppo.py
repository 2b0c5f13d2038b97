"""Self-play preference optimisation, on pairs with hard labels."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from truing.losses.logps import PairLogps


@dataclass(frozen=True, kw_only=True)
class SPPO:
    """Self-play preference optimisation (Wu et al. 2024, arXiv 2405.00675, eq. 4.7), a pair with P(y_w beats y_l) = 1.

    L = (log(pi(y_w|x) / pi_ref(y_w|x)) - eta / 2)^2 + (log(pi(y_l|x) / pi_ref(y_l|x)) + eta / 2)^2

    The paper's eta is 1 / beta here. Each log-ratio is regressed to eta (P - 1/2): sums over tokens, so a response's target is the
    same whatever its length. eta^2 / 2 while policy = reference. One round of the paper's self-play; further ones take new
    responses and the trained model as reference.
    """

    needs_reference: ClassVar[bool] = True
    beta: Annotated[float, Field(gt=0)] = 0.001
    """1 / eta. The target 1 / (2 beta) is 500 nats for 0.001, which acts as a constant push. Customary: 0.001 (paper) to 0.1."""

    def __call__(self, logps: PairLogps) -> Float[Tensor, " pair"]:
        ratio = logps.log_ratios()
        target = 1 / (2 * self.beta)
        return (ratio.chosen - target).square() + (ratio.rejected + target).square()
