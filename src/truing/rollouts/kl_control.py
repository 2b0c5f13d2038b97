"""The coefficient of the KL: fixed, or steered towards a target, and raised when a budget was overrun.

KL here is the sum over the tokens of a response, averaged over responses.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, runtime_checkable

from pydantic import Field

LIMIT = 0.2
"""Largest relative error that is acted on."""


@runtime_checkable
class KLRule(Protocol):
    """How the coefficient follows the KL."""

    @property
    def coefficient(self) -> float:
        """beta at the start."""
        ...

    def next(self, coefficient: float, kl: float, episodes: int) -> float:
        """The coefficient after a round of so many episodes that had this KL."""
        ...


@dataclass(frozen=True, kw_only=True)
class FixedKL:
    """beta stays what it is, unless a budget is overrun; 0 stays 0 then, too."""

    coefficient: Annotated[float, Field(ge=0)] = 0.05
    """beta, the price of a nat. Customary: 0.01 to 0.2; 0.05 for summaries (Huang et al. 2024, arXiv 2403.17031)."""

    def next(self, coefficient: float, kl: float, episodes: int) -> float:
        return coefficient


@dataclass(frozen=True, kw_only=True)
class AdaptiveKL:
    """Proportional control (Ziegler et al. 2019, arXiv 1909.08593, section 2.2): beta <- beta (1 + e n / horizon).

    e = clip(KL / target - 1, -0.2, 0.2); n episodes a round.
    """

    coefficient: Annotated[float, Field(gt=0)] = 0.1
    """beta at the start."""
    target: Annotated[float, Field(gt=0)] = 6.0
    """KL in nats a response that is steered to. Customary: 3 to 10."""
    horizon: Annotated[float, Field(gt=0)] = 10000.0
    """Episodes over which a lasting error of 20% moves beta by about 20%. Customary: 10000; shorter for short runs."""

    def next(self, coefficient: float, kl: float, episodes: int) -> float:
        error = min(max(kl / self.target - 1.0, -LIMIT), LIMIT)
        return coefficient * (1.0 + error * episodes / self.horizon)


KL_RULES: dict[str, type] = {"fixed": FixedKL, "adaptive": AdaptiveKL}
"""Name in a config -> rule."""


class KLControl:
    """The coefficient as it stands. Example: `KLControl(AdaptiveKL(target=6.0)).observe(kl=9.0, episodes=512)`."""

    def __init__(self, rule: KLRule, *, raise_by: float = 1.5) -> None:
        self.rule = rule
        self.raise_by = raise_by
        self.coefficient = rule.coefficient

    def observe(self, *, kl: float, episodes: int) -> None:
        """Takes note of a round."""
        self.coefficient = self.rule.next(self.coefficient, kl, episodes)

    def raise_(self) -> None:
        """After an update that was taken back: the same prompts would lead there again."""
        self.coefficient *= self.raise_by

    def state_dict(self) -> dict[str, Any]:
        return {"coefficient": self.coefficient}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.coefficient = float(state["coefficient"])
