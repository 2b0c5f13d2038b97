"""Negative log-likelihood of single tokens: supervised fine-tuning."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class NLL:
    """Negative log-likelihood (InstructGPT's supervised stage, Ouyang et al. 2022, arXiv 2203.02155, section 3.5).

    L = -log pi(y_t | x, y_<t) for every scored token t. Its unit is the token: long answers count for more, as is customary.
    """

    def __call__(self, logps: Float[Tensor, " token"]) -> Float[Tensor, " token"]:
        return -logps
