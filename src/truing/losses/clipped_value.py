"""The clipped loss of a value function."""

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ClippedValue:
    """Clipped value loss (Huang et al. 2024, arXiv 2403.17031; first in OpenAI's PPO code, no equation of the PPO paper).

    L = 1/2 max((V - R)^2, (clip(V, V_old - epsilon, V_old + epsilon) - R)^2)

    V_old is the value when the response was scored, R the return. Without a clip it is half the squared error.
    """

    clip: Annotated[float, Field(gt=0)] | None = 0.2
    """epsilon, in units of reward: a value gains nothing by moving further in one round; null does not bound it. Customary: 0.2."""

    def __call__(
        self, values: Float[Tensor, " token"], old: Float[Tensor, " token"], returns: Float[Tensor, " token"]
    ) -> Float[Tensor, " token"]:
        error = (values - returns).square()
        if self.clip is not None:
            error = torch.maximum(error, (self._bounded(values, old, self.clip) - returns).square())
        return 0.5 * error

    def clipped(
        self, values: Float[Tensor, " token"], old: Float[Tensor, " token"], returns: Float[Tensor, " token"]
    ) -> Bool[Tensor, " token"]:
        """Where the bounded value is the worse one, so that the token has no gradient."""
        if self.clip is None:
            return torch.zeros_like(values, dtype=torch.bool)
        return (self._bounded(values, old, self.clip) - returns).square() > (values - returns).square()

    def _bounded(self, values: Tensor, old: Tensor, clip: float) -> Tensor:
        return torch.minimum(torch.maximum(values, old - clip), old + clip)
