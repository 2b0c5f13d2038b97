"""Alignment via optimal transport, of pairs."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from truing.losses.logps import PairLogps


@dataclass(frozen=True, kw_only=True)
class AOT:
    """Alignment via optimal transport, paired (Melnyk et al. 2024, arXiv 2406.05882, section 3, with the logistic loss).

    L = (1/n) sum over ranks i of h(u_(i) - v_(i)),   h(t) = log(1 + exp(-beta t))

    u = log pi(y_w|x) / pi(y_l|x) and v = log pi_ref(y_w|x) / pi_ref(y_l|x) of the pairs of a batch, each sorted: every quantile of
    the policy's margins is asked to exceed the same quantile of the reference's. DPO asks it of every pair. ln 2 while
    policy = reference. v is a constant, so the gradient of each pair is that of h at its own u.
    """

    needs_reference: ClassVar[bool] = True
    sorts_margins: ClassVar[bool] = True
    beta: Annotated[float, Field(gt=0)] = 0.1
    """Strength of the pull towards the reference, as in DPO. Customary: 0.01 to 0.5."""

    def __call__(self, logps: PairLogps) -> Float[Tensor, " pair"]:
        margin = logps.policy.chosen - logps.policy.rejected
        return -logsigmoid(self.beta * (margin - logps.counterpart_margin()))
