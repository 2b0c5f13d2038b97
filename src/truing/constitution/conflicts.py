"""Where principles disagree about two answers: which one decides, and how often each pair of them was at odds.

Pure: numbers in, a decision or a table out.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

Rule = Literal["priority", "average"]
"""priority: the mean, but where principles disagree that of the first priority which is sure. average: always the mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opinion:
    """What one principle says of two answers. Example: `Opinion(principle="brief", priority=3, probability=0.8)`."""

    principle: str
    priority: int
    probability: float
    """That the first answer is the better one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """Two principles that are sure of opposite answers."""

    first: str
    """The principle for the first answer."""
    second: str
    """The principle for the second answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What all principles together say of two answers."""

    probability: float
    """That the first answer is the better one."""
    decided_by: tuple[str, ...]
    """The principles of which it is the mean."""
    conflicts: tuple[Conflict, ...]
    sure: tuple[str, ...]
    """The principles that were sure of one of the answers."""


def decide(opinions: Sequence[Opinion], rule: Rule, *, sure: float) -> Decision:
    """One probability out of many. A principle is sure where its probability is more than `sure` from 1/2.

    Where those that are sure agree, all are averaged. Where they do not, `priority` takes the mean of the first priority that is
    itself sure; a priority at odds with itself leaves it to the next, and without any the mean over all stands.
    """
    if not opinions:
        raise ValueError("no principle applies to these answers, so nothing can be decided; give one principle the scope always")
    firm = [opinion for opinion in opinions if abs(opinion.probability - 0.5) > sure]
    conflicts = tuple(
        Conflict(first=one.principle, second=other.principle)
        for one in firm
        for other in firm
        if one.probability > 0.5 > other.probability
    )
    deciding = list(opinions)
    if conflicts and rule == "priority":
        for level in sorted({opinion.priority for opinion in firm}):
            of_level = [opinion for opinion in firm if opinion.priority == level]
            if abs(_mean(of_level) - 0.5) > sure:
                deciding = of_level
                break
    return Decision(
        probability=_mean(deciding),
        decided_by=tuple(opinion.principle for opinion in deciding),
        conflicts=conflicts,
        sure=tuple(opinion.principle for opinion in firm),
    )


def _mean(opinions: Sequence[Opinion]) -> float:
    return fmean(opinion.probability for opinion in opinions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarrel:
    """How two principles fared with each other over many comparisons."""

    one: str
    other: str
    met: int
    """Comparisons of which both were sure."""
    disagreed: int
    """Those in which they were sure of opposite answers."""
    one_decided: int
    """Of these, those in which the decision went with `one`."""
    other_decided: int
    """Those in which it went with `other`; a decision of 1/2 goes with neither."""


def quarrels(decisions: Iterable[Decision]) -> list[Quarrel]:
    """Every pair of principles that were ever at odds, the most frequent first."""
    met: dict[tuple[str, str], int] = {}
    sides: dict[tuple[str, str], list[str]] = {}
    for decision in decisions:
        for i, one in enumerate(decision.sure):
            for other in decision.sure[i + 1 :]:
                key = (min(one, other), max(one, other))
                met[key] = met.get(key, 0) + 1
        for conflict in decision.conflicts:
            key = (min(conflict.first, conflict.second), max(conflict.first, conflict.second))
            winner = conflict.first if decision.probability > 0.5 else conflict.second if decision.probability < 0.5 else ""
            sides.setdefault(key, []).append(winner)
    found = [
        Quarrel(
            one=key[0],
            other=key[1],
            met=met[key],
            disagreed=len(winners),
            one_decided=winners.count(key[0]),
            other_decided=winners.count(key[1]),
        )
        for key, winners in sides.items()
    ]
    return sorted(found, key=lambda quarrel: (-quarrel.disagreed, quarrel.one, quarrel.other))


def conflict_report(decisions: Sequence[Decision], *, most: int = 20) -> str:
    """The conflicts met, by pair of principles, as a table for people."""
    found = quarrels(decisions)
    torn = sum(bool(decision.conflicts) for decision in decisions)
    lines = [f"{len(decisions)} comparisons; in {torn} of them principles disagreed, {len(found)} pairs of principles in all"]
    if found:
        wide = max(len(name) for quarrel in found[:most] for name in (quarrel.one, quarrel.other))
        lines.append(f"{'one':<{wide}}  {'other':<{wide}}  both sure  disagreed  went with one  with other")
    for q in found[:most]:
        lines.append(
            f"{q.one:<{wide}}  {q.other:<{wide}}  {q.met:>9}  {q.disagreed:>9}  {q.one_decided:>13}  {q.other_decided:>10}"
        )
    if len(found) > most:
        lines.append(f"and {len(found) - most} pairs more")
    return "\n".join(lines) + "\n"
