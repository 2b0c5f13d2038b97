"""Robust DPO: an unbiased estimate of the DPO loss under noisy labels."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from truing.losses.logps import PairLogps


@dataclass(frozen=True, kw_only=True)
class RobustDPO:
    """Robust DPO (Ray Chowdhury et al. 2024, arXiv 2403.00409, section 3.1): labels are flipped with probability epsilon.

    L = [(1 - epsilon) l(y_w, y_l) - epsilon l(y_l, y_w)] / (1 - 2 epsilon),   l(y, y') = -log sigma(h(y) - h(y'))

    h = beta log(pi / pi_ref), so l is the loss of DPO. The expectation of L over noisy labels is that of l over clean ones. It has
    no lower bound: -epsilon l(y_l, y_w) falls with every margin. epsilon = 0 is DPO.
    """

    needs_reference: ClassVar[bool] = True
    beta: Annotated[float, Field(gt=0)] = 0.1
    """As in DPO. Customary: 0.01 to 0.5."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.1
    """epsilon, the believed share of flipped labels. Customary: 0.05 to 0.3."""

    def __call__(self, logps: PairLogps) -> Float[Tensor, " pair"]:
        ratio = logps.log_ratios()
        h = self.beta * (ratio.chosen - ratio.rejected)
        epsilon = self.label_smoothing
        return (-(1 - epsilon) * logsigmoid(h) + epsilon * logsigmoid(-h)) / (1 - 2 * epsilon)
