"""Bradley-Terry: the loss of a reward model."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from truing.losses.logps import Pair


@dataclass(frozen=True, kw_only=True)
class BradleyTerry:
    """Bradley-Terry likelihood of a comparison (Ouyang et al. 2022, arXiv 2203.02155, eq. 1).

    L = -log sigma(r(x, y_w) - r(x, y_l) - m)

    m is an annotated margin (Llama 2, arXiv 2307.09288, eq. 2) or 0. The average over the pairs of one ranking, the paper's
    1 / (K choose 2), is taken by the objective.
    """

    def __call__(self, scores: Pair, margin: Float[Tensor, " pair"] | None = None) -> Float[Tensor, " pair"]:
        difference = scores.chosen - scores.rejected
        return -logsigmoid(difference if margin is None else difference - margin)
