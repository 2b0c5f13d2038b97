"""Weighted sums of pair losses."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from truing.config import OneOf
from truing.losses.chosen_nll import ChosenNLL
from truing.losses.dpo import DPO
from truing.losses.logps import CollisionLoss, Pair, PairLogps, PairLoss, SortingLoss, implicit_rewards


def _table() -> Mapping[str, type]:
    from truing.losses import PAIR_LOSSES  # the table names this file

    return PAIR_LOSSES


@dataclass(frozen=True, kw_only=True)
class Part:
    """One loss of a mixture. Example: `Part(loss=ChosenNLL(), weight=0.2)`, written `{loss: chosen_nll, weight: 0.2}`."""

    loss: Annotated[PairLoss, OneOf(_table)]
    """A pair loss, by name, with its own hyperparameters."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """What it counts in the sum."""


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """A weighted sum of pair losses.

    L = sum over parts k of weight_k L_k

    The default is DPO with a likelihood term, 0.2 as for Llama 3 (Dubey et al. 2024, arXiv 2407.21783, section 4.1.4). All parts
    see the same log-probabilities; a reference is computed when one of them needs it. Weights are not made to sum to 1.
    """

    parts: tuple[Part, ...] = (Part(loss=DPO()), Part(loss=ChosenNLL(), weight=0.2))
    """The losses and their weights: parts=[{loss: dpo}, {loss: chosen_nll, weight: 0.2}]. The first one's rewards are logged."""

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("a mixture has no parts; write parts: [{loss: dpo}, {loss: chosen_nll, weight: 0.2}]")

    @property
    def needs_reference(self) -> bool:
        """Whether any part does."""
        return any(part.loss.needs_reference for part in self.parts)

    @property
    def needs_collision(self) -> bool:
        """Whether any part does."""
        return any(isinstance(part.loss, CollisionLoss) and part.loss.needs_collision for part in self.parts)

    @property
    def sorts_margins(self) -> bool:
        """Whether any part does."""
        return any(isinstance(part.loss, SortingLoss) and part.loss.sorts_margins for part in self.parts)

    def rewards(self, logps: PairLogps) -> Pair:
        """Those of the first part."""
        return implicit_rewards(self.parts[0].loss, logps)

    def __call__(self, logps: PairLogps) -> Float[Tensor, " pair"]:
        first, *others = (part.weight * part.loss(logps) for part in self.parts)
        return sum(others, start=first)
