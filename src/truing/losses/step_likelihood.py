"""The likelihood of step labels: the loss of a process reward model."""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits


@dataclass(frozen=True, kw_only=True)
class StepLikelihood:
    """Log-likelihood of whether a step is right (Uesato et al. 2022, arXiv 2211.14275; Lightman et al. 2023, arXiv 2305.20050).

    L = -log sigma(s) for a right step, -log sigma(-s) for a wrong one; s is the head's score at the step's last token.
    """

    def __call__(self, scores: Float[Tensor, " step"], right: Bool[Tensor, " step"]) -> Float[Tensor, " step"]:
        return binary_cross_entropy_with_logits(scores, right.to(scores.dtype), reduction="none")
