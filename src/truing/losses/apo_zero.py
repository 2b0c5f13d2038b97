"""Anchored preference optimisation where chosen responses are better than the model."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from truing.losses.logps import PairLogps


@dataclass(frozen=True, kw_only=True)
class APOZero:
    """Anchored preference optimisation, zero (D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 7).

    L = -sigma(r_w) + sigma(r_l) + 1,   r = beta log(pi(y|x) / pi_ref(y|x))

    The likelihood of y_w rises and that of y_l falls, each against its anchor 0. 1 while policy = reference; the paper leaves out
    the constant 1, which makes the loss lie between 0 and 2.
    """

    needs_reference: ClassVar[bool] = True
    beta: Annotated[float, Field(gt=0)] = 0.1
    """As in DPO. Customary: 0.01 to 0.5."""

    def __call__(self, logps: PairLogps) -> Float[Tensor, " pair"]:
        ratio = logps.log_ratios()
        return torch.sigmoid(-self.beta * ratio.chosen) + torch.sigmoid(self.beta * ratio.rejected)
