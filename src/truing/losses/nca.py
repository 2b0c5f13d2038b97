"""Noise contrastive alignment."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from truing.losses.logps import PairLogps


@dataclass(frozen=True, kw_only=True)
class NCA:
    """Noise contrastive alignment of a pair (Chen et al. 2024, arXiv 2402.05369, section 4.1).

    L = -log sigma(r_w) - (1/2) log sigma(-r_w) - (1/2) log sigma(-r_l),   r = beta log(pi(y|x) / pi_ref(y|x))

    NCA for K = 2 responses of which the label says that one is better. The paper's alpha is beta here. 2 ln 2 while policy =
    reference. Unlike DPO it moves each reward by itself: r_w is not pushed beyond sigma(r_w) = 2/3.
    """

    needs_reference: ClassVar[bool] = True
    beta: Annotated[float, Field(gt=0)] = 0.01
    """alpha in the paper: strength of the pull towards the reference. Customary: 0.01 to 0.1."""

    def __call__(self, logps: PairLogps) -> Float[Tensor, " pair"]:
        ratio = logps.log_ratios()
        r_w, r_l = self.beta * ratio.chosen, self.beta * ratio.rejected
        return -logsigmoid(r_w) - 0.5 * logsigmoid(-r_w) - 0.5 * logsigmoid(-r_l)
