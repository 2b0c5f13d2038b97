"""Length-desensitised DPO."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from truing.losses.logps import Pair, PairLogps


@dataclass(frozen=True, kw_only=True)
class LengthDesensitisedDPO:
    """Length-desensitised DPO (Liu et al. 2024, arXiv 2409.06411, section 3.3).

    log pi^(y|x) = sum of log pi(y_t|x, y_<t) over t <= l_p  +  alpha times the same sum over t > l_p,   l_p = min(|y_w|, |y_l|)

    and DPO's loss on log(pi^ / pi_ref^). Tokens beyond the shorter response's length count alpha, under policy and reference alike.
    alpha = 1 is DPO; alpha = 0 compares the common length only.
    """

    needs_reference: ClassVar[bool] = True
    beta: Annotated[float, Field(gt=0)] = 0.1
    """As in DPO. Customary: 0.01 to 0.5."""
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    """What a token beyond the common length counts. Customary: 0.3 to 0.6; the weaker the model, the higher."""

    def rewards(self, logps: PairLogps) -> Pair:
        """beta log(pi^(y|x) / pi_ref^(y|x))."""
        whole, prefix = logps.log_ratios(), logps.prefix_log_ratios()
        return Pair(*(self.beta * (p + self.alpha * (w - p)) for w, p in zip(whole, prefix, strict=True)))

    def __call__(self, logps: PairLogps) -> Float[Tensor, " pair"]:
        reward = self.rewards(logps)
        return -logsigmoid(reward.chosen - reward.rejected)
