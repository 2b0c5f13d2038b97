"""DPO regularised by length."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from truing.losses.logps import PairLogps


@dataclass(frozen=True, kw_only=True)
class RegularisedDPO:
    """Length-regularised DPO (Park et al. 2024, arXiv 2403.19159, section 4).

    L = -log sigma(beta (log-ratio of y_w - log-ratio of y_l) + alpha (|y_w| - |y_l|))

    The reward that is maximised is r(x, y) - alpha |y|. A chosen response that is longer has won part of its margin by length
    already, and is pushed less. alpha = 0 is DPO.
    """

    needs_reference: ClassVar[bool] = True
    beta: Annotated[float, Field(gt=0)] = 0.1
    """As in DPO. Customary: 0.01 to 0.5."""
    alpha: Annotated[float, Field(ge=0)] = 0.01
    """The price of a token, in units of the reward. Customary: 0.005 to 0.05."""

    def __call__(self, logps: PairLogps) -> Float[Tensor, " pair"]:
        ratio = logps.log_ratios()
        h = self.beta * (ratio.chosen - ratio.rejected)
        return -logsigmoid(h + self.alpha * (logps.length.chosen - logps.length.rejected))
