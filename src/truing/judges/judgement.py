"""What judges are asked and what they say: a comparison, an opinion in one order, a judgement over both. No torch here.

Judges prefer what stands first or second, whatever it says (Zheng et al. 2023, arXiv 2306.05685, section 3.3), so each pair is
shown in both orders; an answer wins only where both agree. An always-first judge says 0.5 of everything, and decides nothing.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from truing.feedback.sides import Side
from truing.records import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two answers to one prompt. Example: `Comparison(prompt=p, first="Yes, it is on.", second="Look.")`."""

    prompt: Prompt
    first: str
    second: str
    finished: tuple[bool, bool] = (True, True)
    """Whether each answer ended by itself: a reward model is not shown a cut one as if it had."""

    def swapped(self) -> "Comparison":
        """The same two in the other order."""
        return replace(self, first=self.second, second=self.first, finished=self.finished[::-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Opinion:
    """What a judge says of one comparison as it is shown. Example: `Opinion(probability=0.8)`."""

    probability: float
    """That the answer shown first is better; NaN where there is a problem, so that it cannot be used unseen."""
    problem: str = ""
    """Why there is none; empty where there is one."""
    reason: str = ""
    """What the judge said before its verdict, where it was asked to."""
    mass: float = math.nan
    """How probable the verdict's words were together, where tokens were scored; near 0 the judge would have said something else."""

    @classmethod
    def none(cls, problem: str) -> "Opinion":
        """No opinion, and why."""
        return cls(probability=math.nan, problem=problem)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """What several judgements of one comparison came to, such as those of principles (`truing.constitution.prefer`)."""

    probability: float
    """That the first answer is better; NaN where none of them is there."""
    by: tuple[str, ...]
    """Whose word it is, by name."""
    parts: "Mapping[str, Judgement]"
    """All that were asked for, by name; those with a problem too."""
    sure: tuple[str, ...] = ()
    """Those that were sure of one of the answers."""
    conflicts: tuple[tuple[str, str], ...] = ()
    """Two that were sure of opposite answers: the one for the first answer, the one for the second."""

    def swapped(self) -> "Decided":
        """The same said of the comparison the other way round."""
        return replace(
            self,
            probability=1 - self.probability,
            parts={name: one.swapped() for name, one in self.parts.items()},
            conflicts=tuple((second, first) for first, second in self.conflicts),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What a judge says of a comparison over both orders. Example: `Judgement(orders=(0.9, 0.5)).probability` is 0.75."""

    orders: tuple[float, float]
    """That the first answer is better, as said when it was shown first, and when it was shown second."""
    problem: str = ""
    reasons: tuple[str, str] = ("", "")
    mass: float = math.nan
    """The smaller of both opinions'."""
    decided: Decided | None = None
    """Where several judgements were made into this one; `orders` are then the means over those that decided."""

    @property
    def probability(self) -> float:
        """That the first answer is better, over both orders (`over_orders`) or as decided; NaN where there is a problem."""
        if self.problem:
            return math.nan
        return over_orders(*self.orders) if self.decided is None else self.decided.probability

    @property
    def parts(self) -> "tuple[Judgement, ...]":
        """What it was made of: itself, where nothing else."""
        return (self,) if self.decided is None or not self.decided.parts else tuple(self.decided.parts.values())

    @property
    def problems(self) -> tuple[str, ...]:
        """Why parts of it are missing, one by one."""
        return tuple(one.problem for one in self.parts if one.problem)

    @property
    def side(self) -> Side:
        """The answer that both orders prefer, else a tie. Raises ValueError where there is a problem."""
        if self.problem:
            raise ValueError(f"there is no judgement: {self.problem}")
        told = (*self.orders, self.probability)
        if all(said > 0.5 for said in told):
            return "first"
        return "second" if all(said < 0.5 for said in told) else "tie"

    @property
    def flips(self) -> bool:
        """Whether one order prefers the first answer and the other one the second."""
        return not self.problem and (self.orders[0] - 0.5) * (self.orders[1] - 0.5) < 0

    def swapped(self) -> "Judgement":
        """The same said of the comparison the other way round."""
        decided = None if self.decided is None else self.decided.swapped()
        return replace(self, orders=(1 - self.orders[1], 1 - self.orders[0]), reasons=self.reasons[::-1], decided=decided)


@runtime_checkable
class Judge(Protocol):
    """Compares pairs of answers. It never raises for what an answer says: that is a problem of one judgement."""

    @property
    def name(self) -> str:
        """Who judges, for people."""
        ...

    @property
    def identity(self) -> str:
        """A hash of what decides the judgements beside the comparisons, for provenance and for keeping them."""
        ...

    def __call__(self, comparisons: Sequence[Comparison]) -> list[Judgement]:
        """One judgement each, in their order."""
        ...


def both_orders(ask: Callable[[Sequence[Comparison]], Sequence[Opinion]], comparisons: Sequence[Comparison]) -> list[Judgement]:
    """Judgements of a judge that is asked in one order at a time; a problem in either order is one of the judgement."""
    said = ask([shown for comparison in comparisons for shown in (comparison, comparison.swapped())])
    assert len(said) == 2 * len(comparisons), "one opinion each"
    return [_merged(there, back) for there, back in zip(said[::2], said[1::2], strict=True)]


def over_orders(there: float, back: float) -> float:
    """One probability of the two that an answer was given, shown first and shown second: the mean of their log-odds.

    A judge whose log-odds rise by one amount for whatever stands first is so read as if it had no such bias; the mean of the
    probabilities would draw its labels towards 1/2. Verdicts (1, 0, 1/2 for a tie) have no log-odds, and their plain mean is taken.
    Both means prefer the same answer.

    Example: `over_orders(0.9, 0.5)` is 0.75, where the plain mean is 0.7.
    """
    if there == back or there + back == 1 or {there, back} <= {0.0, 0.5, 1.0}:
        return (there + back) / 2  # exactly 1/2 for a judge that sees nothing but the order
    odds = math.sqrt(_odds(there) * _odds(back))
    return odds / (1 + odds)


def _odds(probability: float) -> float:
    nearest = 2.0**-53  # to certainty, of what is not 1 itself
    bounded = min(max(probability, nearest), 1 - nearest)
    return bounded / (1 - bounded)


def _merged(there: Opinion, back: Opinion) -> Judgement:
    problem = there.problem or back.problem
    orders = (there.probability, 1 - back.probability)
    assert problem or all(0 <= said <= 1 for said in orders), "an opinion is a probability or names its problem"
    return Judgement(
        orders=orders,
        problem=problem,
        reasons=(there.reason, back.reason),
        mass=min(there.mass, back.mass),
    )
