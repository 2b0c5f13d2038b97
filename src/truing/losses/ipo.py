"""Identity preference optimisation."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from truing.losses.logps import PairLogps


@dataclass(frozen=True, kw_only=True)
class IPO:
    """Identity preference optimisation (Azar et al. 2023, arXiv 2310.12036, eq. 17).

    L = (h - 1 / (2 beta))^2,  h = log-ratio of y_w / |y_w| - log-ratio of y_l / |y_l|

    The paper's tau is beta here. Log-ratios are means over response tokens: the authors' correction of their own first code,
    without which the target 1 / (2 beta) would mean something else for every length.
    """

    needs_reference: ClassVar[bool] = True
    beta: Annotated[float, Field(gt=0)] = 0.1
    """tau in the paper: the margin aimed at is 1 / (2 beta), per token. Customary: 0.05 to 1."""

    def __call__(self, logps: PairLogps) -> Float[Tensor, " pair"]:
        ratio = logps.log_ratios()
        h = ratio.chosen / logps.length.chosen - ratio.rejected / logps.length.rejected
        return (h - 1 / (2 * self.beta)).square()
