"""Anchored preference optimisation where the model is better than chosen responses."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from truing.losses.logps import PairLogps


@dataclass(frozen=True, kw_only=True)
class APODown:
    """Anchored preference optimisation, down (D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 8).

    L = sigma(r_w) + 1 - sigma(r_w - r_l),   r = beta log(pi(y|x) / pi_ref(y|x))

    The likelihood of y_w falls too, that of y_l faster. 1 while policy = reference, where the gradient of y_w is exactly 0; the
    paper leaves out the constant 1.
    """

    needs_reference: ClassVar[bool] = True
    beta: Annotated[float, Field(gt=0)] = 0.1
    """As in DPO. Customary: 0.01 to 0.5."""

    def __call__(self, logps: PairLogps) -> Float[Tensor, " pair"]:
        ratio = logps.log_ratios()
        margin = ratio.chosen - ratio.rejected
        return torch.sigmoid(self.beta * ratio.chosen) + torch.sigmoid(-self.beta * margin)
