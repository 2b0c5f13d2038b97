"""DPO-Positive."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from truing.losses.logps import PairLogps


@dataclass(frozen=True, kw_only=True)
class DPOPositive:
    """DPO-Positive (Pal et al. 2024, Smaug, arXiv 2402.13228, eq. 3).

    L = -log sigma(beta [log-ratio of y_w - log-ratio of y_l - lambda max(0, log(pi_ref(y_w|x) / pi(y_w|x)))])

    DPO with a fee on letting the chosen response become less likely than it was, against both rewards falling together. ln 2 while
    policy = reference; lambda = 0 is DPO.
    """

    needs_reference: ClassVar[bool] = True
    beta: Annotated[float, Field(gt=0)] = 0.3
    """As in DPO; it scales the fee too. Customary: 0.1 to 0.5; the paper has 0.3."""
    penalty: Annotated[float, Field(ge=0)] = 50.0
    """lambda. Customary: 5 to 50; the paper has 50."""

    def __call__(self, logps: PairLogps) -> Float[Tensor, " pair"]:
        ratio = logps.log_ratios()
        lost = relu(-ratio.chosen)
        return -logsigmoid(self.beta * (ratio.chosen - ratio.rejected - self.penalty * lost))
