"""The hinge loss on log-ratios."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import relu

from truing.losses.logps import PairLogps


@dataclass(frozen=True, kw_only=True)
class Hinge:
    """Hinge loss normalised by the reference (Liu et al. 2023, RSO, arXiv 2309.06657, section 3.2, "hinge-norm").

    L = max(0, 1 - gamma [log(pi(y_w|x) / pi_ref(y_w|x)) - log(pi(y_l|x) / pi_ref(y_l|x))])

    The paper's gamma is beta here. It is SLiC's loss (arXiv 2305.10425) with log-ratios for log-probabilities; 1 while policy =
    reference, 0 with no gradient once the margin beta h exceeds 1.
    """

    needs_reference: ClassVar[bool] = True
    beta: Annotated[float, Field(gt=0)] = 0.1
    """gamma in the paper: 1 / beta is the difference of log-ratios from which on a pair is left alone. Customary: 0.01 to 0.5."""

    def __call__(self, logps: PairLogps) -> Float[Tensor, " pair"]:
        ratio = logps.log_ratios()
        return relu(1 - self.beta * (ratio.chosen - ratio.rejected))
