"""The likelihood of the chosen response: a part for mixtures."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from truing.losses.logps import PairLogps


@dataclass(frozen=True, kw_only=True)
class ChosenNLL:
    """Negative log-likelihood of the chosen response, per token (Pang et al. 2024, arXiv 2404.19733, eq. 1).

    L = -log pi(y_w|x) / |y_w|

    On its own this is supervised fine-tuning on chosen responses, each counting alike whatever its length. In a mixture it holds
    the likelihood of the chosen response up.
    """

    needs_reference: ClassVar[bool] = False

    def __call__(self, logps: PairLogps) -> Float[Tensor, " pair"]:
        return -logps.per_token(logps.policy).chosen
