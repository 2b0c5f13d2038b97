"""Alignment via optimal transport, of unpaired responses."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from truing.losses.logps import Baseline, FeedbackLogps


@dataclass(frozen=True, kw_only=True)
class UnpairedAOT:
    """Alignment via optimal transport, unpaired (Melnyk et al. 2024, arXiv 2406.05882, section 3, with the logistic loss).

    L = (1/n) sum over ranks i of h(u_(i) - v_(i)),   h(t) = log(1 + exp(-beta t))

    u and v are the log-ratios log pi(y|x) / pi_ref(y|x) of the desirable and of the undesirable responses, each sorted: every
    quantile of the first is asked to exceed the same quantile of the second. Here a response is held against its counterpart's
    log-ratio as a constant; since each side is held against the other, the gradients add up to that of L. ln 2 while policy = ref.
    """

    needs_reference: ClassVar[bool] = True
    baseline: ClassVar[Baseline] = "sorted"
    beta: Annotated[float, Field(gt=0)] = 0.1
    """Strength of the pull towards the reference, as in DPO. Customary: 0.01 to 0.5."""

    def __call__(self, logps: FeedbackLogps) -> Float[Tensor, " response"]:
        lead = self.beta * logps.advantage()
        return -logsigmoid(torch.where(logps.desirable, lead, -lead))
