"""From the parts of a reward to the one number that an answer is judged by: parts are shaped, weighted, summed and constrained.

What it remembers from round to round (running deviations, Lagrange coefficients) is in the checkpoint. Rewards themselves stay as
they are: what is logged of parts, and what held-out answers are worth, does not depend on any of this. No torch here.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import Field

from truing.records import Reward

SUM = "sum"
"""Stands among names of parts for their weighted sum."""

Row = tuple[Mapping[str, float], int]
"""The parts of one answer, and its length in tokens."""
Gather = Callable[[Sequence[Row]], Sequence[Row]]
"""The rows of all ranks."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What is done to one part, or to the sum of all, before it counts; in the order of these settings."""

    threshold: float | None = None
    """What lies above counts no more, and what is missing costs: min(value - threshold, 0). null: every value counts."""
    scale: bool = False
    """Divide by the running deviation of all values so far, this round's too. The mean is not subtracted: good stays good."""
    soft_clip: Annotated[float, Field(gt=0)] | None = None
    """Extremes are bent in: c tanh(value / c), which is the value itself near 0 and never beyond c; null does not."""
    clip: Annotated[float, Field(gt=0)] | None = None
    """Values beyond plus or minus this count as this; null does not clip."""
    token_price: Annotated[float, Field(ge=0)] = 0.0
    """Taken for every token of the answer, its end token too."""

    def __call__(self, value: float, *, deviation: float, tokens: int) -> float:
        """The value as it counts."""
        if self.threshold is not None:
            value = min(value - self.threshold, 0.0)
        if self.scale and deviation > 0:
            value /= deviation
        if self.soft_clip is not None:
            value = self.soft_clip * math.tanh(value / self.soft_clip)
        if self.clip is not None:
            value = min(max(value, -self.clip), self.clip)
        return value - self.token_price * tokens

    def clips(self, value: float, *, deviation: float) -> bool:
        """Whether clipping changes the value."""
        return (
            self.clip is not None
            and abs(replace(self, clip=None, token_price=0.0)(value, deviation=deviation, tokens=0)) > self.clip
        )


@dataclass(frozen=True, kw_only=True)
class Constraint:
    """A part whose mean is to be at least so much: its price rises while it is not, and falls while it is more.

    lambda <- min(max(lambda + rate (at_least - mean), 0), most) after each round; an answer is judged by
    (sum + lambda value) / (1 + lambda) (Dai et al. 2023, arXiv 2310.12773, eq. 9 to 12; Moskovitz et al. 2023, arXiv 2310.04373).
    """

    at_least: float
    """The mean over a round's answers that is asked for."""
    rate: Annotated[float, Field(gt=0)] = 0.1
    """How much the coefficient rises in a round for each unit that is missing. Customary: 0.01 to 1."""
    start: Annotated[float, Field(ge=0)] = 0.0
    """The coefficient at the start."""
    most: Annotated[float, Field(gt=0)] = 100.0
    """The coefficient goes no higher: a constraint that cannot be met does not drive all else out."""

    def next(self, coefficient: float, mean: float) -> float:
        """The coefficient after a round with this mean."""
        return min(max(coefficient + self.rate * (self.at_least - mean), 0.0), self.most)


class Running:
    """Count, mean and deviation of all values so far (Chan, Golub and LeVeque 1983): the same on any number of ranks."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self.squares = 0.0
        """Sum of squared differences from the mean."""

    def take(self, values: Sequence[float]) -> None:
        """Adds one round's values."""
        if not values:
            return
        new = len(values)
        mean = math.fsum(values) / new
        apart, total = mean - self.mean, self.count + new
        self.squares += math.fsum((value - mean) ** 2 for value in values) + apart**2 * self.count * new / total
        self.mean += apart * new / total
        self.count = total

    @property
    def deviation(self) -> float:
        """0 where nothing differs yet."""
        return math.sqrt(self.squares / self.count) if self.count else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Combined:
    """What came of one round."""

    scores: tuple[float, ...]
    """What each of this rank's answers is judged by; NaN where its reward has a problem."""
    metrics: Mapping[str, float]
    """Of all ranks' answers."""


class Combination:
    """Example: `Combination({"good": 1.0}, shapes={"good": Shape(clip=5.0)}, constraints={})(rewards, lengths, world.gather)`."""

    def __init__(self, weights: Mapping[str, float], *, shapes: Mapping[str, Shape], constraints: Mapping[str, Constraint]) -> None:
        self.weights = weights
        """Of the parts that are summed."""
        self.shapes = shapes
        self.constraints = constraints
        self.running = {name: Running() for name, shape in shapes.items() if shape.scale}
        self.coefficients = {name: constraint.start for name, constraint in constraints.items()}

    def __call__(self, rewards: Sequence[Reward], lengths: Sequence[int], gather: Gather) -> Combined:
        """Judges one round and learns from it; called alike on all ranks. Rewards with a problem teach it nothing."""
        good = [(reward.parts, tokens) for reward, tokens in zip(rewards, lengths, strict=True) if not reward.problem]
        every = gather(good)
        for name in self.running.keys() - {SUM}:
            self.running[name].take([parts[name] for parts, _ in every])
        if SUM in self.running:
            self.running[SUM].take([self._sum(row) for row in every])
        judged = iter([self._score(row) for row in good])
        metrics = self._metrics(every)
        if every:
            for name, constraint in self.constraints.items():
                self.coefficients[name] = constraint.next(self.coefficients[name], _mean([parts[name] for parts, _ in every]))
        return Combined(scores=tuple(math.nan if reward.problem else next(judged) for reward in rewards), metrics=metrics)

    def _shaped(self, name: str, value: float, tokens: int) -> float:
        shape = self.shapes.get(name)
        return value if shape is None else shape(value, deviation=self._deviation(name), tokens=tokens)

    def _deviation(self, name: str) -> float:
        return self.running[name].deviation if name in self.running else 0.0

    def _sum(self, row: Row) -> float:
        parts, tokens = row
        return math.fsum(weight * self._shaped(name, parts[name], tokens) for name, weight in self.weights.items())

    def _score(self, row: Row) -> float:
        parts, tokens = row
        whole = self._shaped(SUM, self._sum(row), tokens)
        priced = math.fsum(price * self._shaped(name, parts[name], tokens) for name, price in self.coefficients.items())
        return (whole + priced) / (1 + math.fsum(self.coefficients.values()))

    def _metrics(self, rows: Sequence[Row]) -> dict[str, float]:
        if not rows or not (self.shapes or self.constraints):
            return {}
        found = {"shaped_reward": _mean([self._score(row) for row in rows])}
        found |= {f"deviation_{name}": running.deviation for name, running in self.running.items()}
        for name, shape in self.shapes.items():
            if shape.clip is not None:
                values = [self._sum(row) if name == SUM else row[0][name] for row in rows]
                found[f"clipped_{name}"] = _mean([float(shape.clips(value, deviation=self._deviation(name))) for value in values])
        for name, constraint in self.constraints.items():
            found[f"lagrange_{name}"] = self.coefficients[name]
            found[f"violation_{name}"] = constraint.at_least - _mean([parts[name] for parts, _ in rows])
        return found

    def state_dict(self) -> dict[str, Any]:
        return {
            "running": {name: [one.count, one.mean, one.squares] for name, one in self.running.items()},
            "coefficients": dict(self.coefficients),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        for name, (count, mean, squares) in state["running"].items():
            one = self.running[name]
            one.count, one.mean, one.squares = int(count), float(mean), float(squares)
        self.coefficients = {name: float(value) for name, value in state["coefficients"].items()}


def combination(weights: Mapping[str, float], shapes: Mapping[str, Shape], constraints: Mapping[str, Constraint]) -> Combination:
    """The combination of named parts; a constrained part is not summed. Raises ValueError for a name that no part has."""
    if SUM in weights:
        raise ValueError(f"a part of the reward cannot be called {SUM}, which stands for all of them: call it otherwise")
    there = ", ".join(weights)
    for setting, names in (("shape", shapes.keys() - {SUM}), ("constraints", constraints.keys())):
        for name in sorted(names - weights.keys()):
            raise ValueError(f"{setting}.{name}: the reward has no part {name} (there are {there})")
    if weights.keys() <= constraints.keys():
        raise ValueError("every part of the reward is a constraint: leave one that is to be as large as possible")
    summed = {name: weight for name, weight in weights.items() if name not in constraints}
    return Combination(summed, shapes=shapes, constraints=constraints)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
