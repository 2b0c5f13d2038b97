"""Contrastive preference optimisation."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from truing.losses.logps import PairLogps


@dataclass(frozen=True, kw_only=True)
class CPO:
    """Contrastive preference optimisation (Xu et al. 2024, arXiv 2401.08417, eq. 3 and section 3.2).

    L = L_prefer + L_NLL,   L_prefer = -log sigma(beta log pi(y_w|x) - beta log pi(y_l|x)),   L_NLL = -log pi(y_w|x) / |y_w|

    DPO with a uniform reference, held in place by the likelihood of y_w. Log-probabilities are summed in L_prefer. The paper writes
    L_NLL as a sum too; its authors' code takes the mean over tokens, and so does this.
    """

    needs_reference: ClassVar[bool] = False
    beta: Annotated[float, Field(gt=0)] = 0.1
    """As in DPO. Customary: 0.05 to 0.5."""
    nll_weight: Annotated[float, Field(ge=0)] = 1.0
    """The weight of L_NLL; the paper's is 1, and 0 leaves the preference alone. Customary: 0.1 to 1."""

    def __call__(self, logps: PairLogps) -> Float[Tensor, " pair"]:
        chosen, rejected = logps.policy
        nll = -logps.per_token(logps.policy).chosen
        return -logsigmoid(self.beta * (chosen - rejected)) + self.nll_weight * nll
