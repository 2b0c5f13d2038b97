"""Sequence likelihood calibration with human feedback."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import relu

from truing.losses.logps import PairLogps


@dataclass(frozen=True, kw_only=True)
class SLiC:
    """SLiC-HF (Zhao et al. 2023, arXiv 2305.10425, section 2.1).

    L = max(0, delta - log pi(y_w|x) + log pi(y_l|x)) - lambda log pi(y_ref|x)

    Without a reference model; sums over tokens. y_ref, the target of the preceding supervised training, is y_w here: preference
    data holds no other.
    """

    needs_reference: ClassVar[bool] = False
    delta: Annotated[float, Field(gt=0)] = 1.0
    """The margin of log-probabilities, in nats, from which on a pair is left alone. Customary: 1 to 10."""
    nll_weight: Annotated[float, Field(ge=0)] = 0.1
    """lambda, the weight of the likelihood of y_w; 0 leaves the calibration alone. Customary: 0.01 to 1."""

    def __call__(self, logps: PairLogps) -> Float[Tensor, " pair"]:
        chosen, rejected = logps.policy
        return relu(self.delta - chosen + rejected) - self.nll_weight * chosen
