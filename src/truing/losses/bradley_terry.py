"""Bradley-Terry: the loss of a reward model."""

from dataclasses import dataclass
from typing import Annotated

from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from truing.losses.logps import Pair


@dataclass(frozen=True, kw_only=True)
class BradleyTerry:
    """Bradley-Terry likelihood of a comparison (Ouyang et al. 2022, arXiv 2203.02155, eq. 1).

    L = -(1 - e) log sigma(h) - e log sigma(-h) + c (r_w + r_l)^2,   h = r(x, y_w) - r(x, y_l) - s m

    m is an annotated margin (Llama 2, arXiv 2307.09288, eq. 2) or 0; e says how many labels are taken to be wrong; the last term
    keeps rewards near 0 (Eisenstein et al. 2023, arXiv 2312.09244, eq. 4). The average over the pairs of one ranking, the paper's
    1 / (K choose 2), is taken by the objective.
    """

    margin_scale: Annotated[float, Field(ge=0)] = 1.0
    """s, by which annotated margins are multiplied; 0 leaves them out."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """e, the share of labels that are taken to be the wrong way round. Customary: 0, or 0.05 to 0.2 where people disagree."""
    centring: Annotated[float, Field(ge=0)] = 0.0
    """c, the price of rewards that are not around 0. Customary: 0 or 0.01."""

    def __call__(self, scores: Pair, margin: Float[Tensor, " pair"] | None = None) -> Float[Tensor, " pair"]:
        ahead = scores.chosen - scores.rejected
        if margin is not None:
            ahead = ahead - self.margin_scale * margin
        losses = -logsigmoid(ahead)
        if self.label_smoothing:
            losses = (1 - self.label_smoothing) * losses - self.label_smoothing * logsigmoid(-ahead)
        if self.centring:
            losses = losses + self.centring * (scores.chosen + scores.rejected).square()
        return losses
