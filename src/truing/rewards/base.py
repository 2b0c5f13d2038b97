"""What a reward function is, how a part of it fails by name, and the weighted sum of named parts. No torch here."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Protocol, runtime_checkable

from pydantic import Field

from truing.records import Reward, Rollout

Fault = Literal["not a number", "raised", "timed out", "died"]
Aggregate = Literal["mean", "minimum", "mean_less_deviation"]
StepAggregate = Literal["minimum", "product", "last"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a part has no value for a rollout. Example: `Failure(fault="raised", text="KeyError: 'answer'")`."""

    fault: Fault
    text: str = ""

    def __str__(self) -> str:
        return f"{self.fault}: {self.text}" if self.text else self.fault


@dataclass(frozen=True, slots=True, kw_only=True)
class Valued:
    """A value with notes on it. Example: `Valued(value=0.7, notes={"disagreement": 0.2})`."""

    value: float
    notes: Mapping[str, float]
    """Written down and averaged under the part's name, no part of the sum."""


Found = float | Valued | Failure


@runtime_checkable
class RewardFunction(Protocol):
    """Scores rollouts, one reward each, in their order. It never raises for what a policy said: that is a problem of one reward."""

    def __call__(self, rollouts: Sequence[Rollout]) -> Sequence[Reward]: ...


@runtime_checkable
class Scorer(Protocol):
    """One named part of a reward: a number for each rollout, with notes or without, or why there is none."""

    def __call__(self, rollouts: Sequence[Rollout]) -> Sequence[Found]: ...


@dataclass(frozen=True, kw_only=True)
class LearnedReward:
    """A reward model that `truing train reward_model` has trained, or an ensemble of them (Coste et al. 2023, arXiv 2310.02743)."""

    run: Path
    """The folder of its run."""
    aggregate: Aggregate = "mean"
    """What an ensemble's value is: its mean, the minimum of its members, or the mean less `deviation_weight` deviations."""
    deviation_weight: Annotated[float, Field(ge=0)] = 1.0
    """lambda of mean_less_deviation, on the deviation between members. Customary: 0.1 to 2."""
    weight: float = 1.0
    """What its value is multiplied by in the sum."""


@dataclass(frozen=True, kw_only=True)
class ProcessReward:
    """A process reward model that `truing train process_reward` has trained: the chance that steps are right."""

    run: Path
    """The folder of its run, which says what parts the steps."""
    aggregate: StepAggregate = "minimum"
    """The weakest step's chance, the product of all steps' (arXiv 2305.20050, section 2.6), or the last step's."""
    weight: float = 1.0
    """What its value is multiplied by in the sum."""


@dataclass(frozen=True, kw_only=True)
class WeightedSum:
    """The sum of weighted parts. A rollout for which a part failed has no value; the others keep theirs.

    Example: `WeightedSum(parts={"right": rule}, weights={"right": 1.0})(rollouts)[0].parts["right"]`.
    """

    parts: Mapping[str, Scorer]
    weights: Mapping[str, float]

    def __call__(self, rollouts: Sequence[Rollout]) -> list[Reward]:
        columns = {name: scorer(rollouts) for name, scorer in self.parts.items()}
        assert all(len(column) == len(rollouts) for column in columns.values()), "one value a rollout"
        return [self._sum({name: column[i] for name, column in columns.items()}) for i in range(len(rollouts))]

    def _sum(self, found: Mapping[str, Found]) -> Reward:
        values: dict[str, float] = {}
        notes: dict[str, float] = {}
        problems: list[str] = []
        for name, value in found.items():
            if isinstance(value, Valued):
                notes |= {f"{name}_{note}": number for note, number in value.notes.items() if math.isfinite(number)}
                value = value.value
            if not isinstance(value, Failure) and not math.isfinite(value):
                value = Failure(fault="not a number", text=str(value))
            if isinstance(value, Failure):
                problems.append(f"{name} {value}")
            else:
                values[name] = float(value)
        total = math.nan if problems else sum(self.weights[name] * value for name, value in values.items())
        return Reward(value=total, parts=values, notes=notes, problem="; ".join(problems))
