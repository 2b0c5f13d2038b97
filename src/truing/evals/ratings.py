"""Ratings of many models from pairwise comparisons: Bradley-Terry with or without style control, and Elo.

Bradley-Terry (Bradley and Terry 1952): P(a beats b) = 1 / (1 + 10^((R_b - R_a) / 400)), ties as half a win each, fitted by maximum
likelihood; the order of battles does not matter. Style control adds, as Chatbot Arena does, the difference of each style feature
(a - b) / (a + b), standardised over battles, so that ratings are what they would be at equal style. Elo (1978) goes through the
battles one by one; it is averaged over orders here because its result depends on them.
"""

import math
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from truing.evals.logistic import Logistic
from truing.statistics import NORMAL, Estimate, bootstrap_each, reach

SCALE = 400 / math.log(10)
"""Rating points a logit."""
CENTRE = 1000.0
LOOSE, FIRM = 1e4, 5.0
"""Deviation of the prior on ratings, in logits: where the maximum of the likelihood exists, and where it does not."""
FAR = 14.0
"""Logits between two that have met, beyond which a fit under the loose prior has no maximum of its own."""
STYLE = ("length", "headers", "lists", "bold")
_HEADER = re.compile(r"^#{1,6}\s", re.M)
_LIST = re.compile(r"^\s*(?:[-*+]|\d+[.)])\s", re.M)
_BOLD = re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__")
_CODE = re.compile(r"```.*?(?:```|\Z)", re.S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Battle:
    """Two models' answers to one prompt compared. Example: `Battle(a="sft", b="dpo", outcome=0.0, prompt="17")`: dpo won."""

    a: str
    b: str
    outcome: float
    """1 where a won, 0.5 a tie, 0 where b won; the mean of both orders where a judge was asked twice."""
    prompt: Hashable
    """Battles of one prompt are drawn together."""
    style_a: tuple[float, ...] = ()
    """Features of a's answer (`style_of`); empty without style control."""
    style_b: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratings:
    """Example: `bradley_terry(battles).ratings["dpo"].low`."""

    ratings: Mapping[str, Estimate]
    """Best first. A difference of 100 points is a win rate of 64%."""
    style: Mapping[str, float]
    """Logits that one standard deviation of a style difference is worth; empty without style control."""
    unbeaten: bool
    """True where some models never lost to others (or never won), so that a prior of 5 logits holds them finite."""
    battles: int
    leaning: float = 0.0
    """Share of the resamples in which some model never lost, so that the prior holds it: where it is 2.5% or more, outer ends are
    the prior's, and the rating may be further out."""

    def win_rate(self, a: str, b: str) -> float:
        """The chance that a beats b which the ratings imply."""
        return float(1 / (1 + 10 ** ((self.ratings[b].value - self.ratings[a].value) / 400)))


def style_of(answer: str) -> tuple[float, ...]:
    """Characters, headers, list items and bold stretches of an answer in Markdown; marks inside code do not count."""
    plain = _CODE.sub("", answer)
    return (float(len(answer)), *(float(len(mark.findall(plain))) for mark in (_HEADER, _LIST, _BOLD)))


def bradley_terry(
    battles: Sequence[Battle], *, control_style: bool = False, anchor: str | None = None, seed: int = 0, draws: int = 1000
) -> Ratings:
    """Ratings with intervals over prompts, centred on 1000, or with the anchor at 1000.

    Raises ValueError where models are not connected by battles, since their ratings cannot be compared.
    """
    names = _checked(battles, control_style)
    if anchor is not None and anchor not in names:
        raise ValueError(f"the anchor {anchor!r} is in no battle; there are {', '.join(names)}")
    unbeaten = not _all_reached(battles, names)
    design, rows = _design(battles, names, control_style)
    prompts, wins, losses = _by_prompt(battles, rows)
    # Each row of the design twice, as wins and as losses, because its share of wins changes from draw to draw.
    fit = Logistic(features=np.concatenate([design, design]), target=np.repeat([1.0, 0.0], len(design)))
    styles = design.shape[1] - len(names)
    priors = {sd: np.concatenate([np.full(len(names), sd), np.full(styles, sd)]) for sd in (LOOSE, FIRM)}
    leaning: list[bool] = []

    def fitted(counts: np.ndarray) -> np.ndarray:
        weights = np.concatenate([counts @ wins, counts @ losses], axis=1)
        if unbeaten:
            return fit.ridge(weights, prior_sd=priors[FIRM])
        found = fit.ridge(weights, prior_sd=priors[LOOSE])
        met = weights[:, : len(design)] + weights[:, len(design) :] > 0
        apart = ((np.abs(found @ design.T) > FAR) & met).any(1)
        if apart.any():
            found[apart] = fit.ridge(weights[apart], prior_sd=priors[FIRM])
        # Of resamples only: parts that are left out in turn hold fewer prompts.
        leaning.extend(apart[counts.sum(1) == prompts])
        return found

    def rated(counts: np.ndarray) -> np.ndarray:
        strength = fitted(counts)[:, : len(names)]
        zero = strength.mean(1) if anchor is None else strength[:, names.index(anchor)]
        return np.asarray(CENTRE + SCALE * (strength - zero[:, None]))

    found = bootstrap_each(rated, prompts, seed=seed, draws=draws, what="prompt", n=len(battles), groups=100)
    share = sum(leaning) / max(len(leaning), 1)
    worth = fitted(np.ones((1, prompts)))[0, len(names) :].tolist()
    return Ratings(
        ratings=_ranked(names, found),
        style=dict(zip(STYLE, worth, strict=True)) if control_style else {},
        unbeaten=unbeaten,
        battles=len(battles),
        leaning=share,
    )


def elo(battles: Sequence[Battle], *, k: float = 4.0, orders: int = 20, seed: int = 0, draws: int = 200) -> Ratings:
    """Elo ratings from 1000, averaged over random orders of the battles; the interval is over prompts.

    They lag behind Bradley-Terry's where battles are few, since k bounds how far a rating moves in one battle.
    """
    names = _checked(battles, False)
    generator = np.random.Generator(np.random.PCG64(seed))
    place = {name: i for i, name in enumerate(names)}
    prompts: dict[Hashable, list[int]] = {}
    for row, battle in enumerate(battles):
        prompts.setdefault(battle.prompt, []).append(row)
    groups = [np.array(rows) for rows in prompts.values()]
    sides = np.array([(place[battle.a], place[battle.b]) for battle in battles])
    outcome = np.array([battle.outcome for battle in battles])

    def played(samples: Sequence[np.ndarray]) -> np.ndarray:
        """Final ratings [sample, model], each sample's mean over its orders."""
        longest = max(map(len, samples))
        schedule = np.full((len(samples) * orders, longest), -1)
        for i, sample in enumerate(samples):
            for j in range(orders):
                schedule[i * orders + j, : len(sample)] = generator.permutation(sample)
        rating, who = np.full((len(schedule), len(names)), CENTRE), np.arange(len(schedule))
        for battle in schedule.T:
            a, b = sides[battle, 0], sides[battle, 1]
            expected = 1 / (1 + 10 ** ((rating[who, b] - rating[who, a]) / 400))
            change = np.where(battle >= 0, k * (outcome[battle] - expected), 0.0)
            rating[who, a] += change
            rating[who, b] -= change
        return np.asarray(rating.reshape(len(samples), orders, -1).mean(1))

    value = played([np.arange(len(battles))] * 10).mean(0)
    picks = [generator.integers(0, len(groups), len(groups)) for _ in range(draws)]
    drawn = played([np.concatenate([groups[i] for i in pick]) for pick in picks])
    tail = NORMAL.cdf(-reach(max(len(groups), 2)))
    low, high = np.quantile(drawn, [tail, 1 - tail], axis=0)
    method = f"percentile bootstrap over {len(groups)} prompts, {draws} draws of {orders} orders, 95%"
    estimates = [
        Estimate(value=float(v), low=float(min(v, lo)), high=float(max(v, hi)), n=len(battles), method=method)
        for v, lo, hi in zip(value, low, high, strict=True)
    ]
    return Ratings(ratings=_ranked(names, estimates), style={}, unbeaten=False, battles=len(battles))


def _ranked(names: Sequence[str], estimates: Sequence[Estimate]) -> dict[str, Estimate]:
    return dict(sorted(zip(names, estimates, strict=True), key=lambda item: -item[1].value))


def _design(battles: Sequence[Battle], names: Sequence[str], control_style: bool) -> tuple[np.ndarray, list[int]]:
    """Distinct rows of the regression and the row of each battle: one a pair of models, or one a battle under style control."""
    place = {name: i for i, name in enumerate(names)}
    if control_style:
        pairs, rows = [(place[battle.a], place[battle.b]) for battle in battles], list(range(len(battles)))
    else:
        index: dict[tuple[int, int], int] = {}
        rows = [index.setdefault((place[battle.a], place[battle.b]), len(index)) for battle in battles]
        pairs = list(index)
    sides = np.zeros((len(pairs), len(names)))
    for row, (a, b) in enumerate(pairs):
        sides[row, a], sides[row, b] = 1.0, -1.0
    return (np.concatenate([sides, _style_differences(battles)], axis=1) if control_style else sides), rows


def _by_prompt(battles: Sequence[Battle], rows: Sequence[int]) -> tuple[int, np.ndarray, np.ndarray]:
    """The number of prompts, and what each prompt adds to the wins and to the losses of each row."""
    number: dict[Hashable, int] = {}
    prompts = [number.setdefault(battle.prompt, len(number)) for battle in battles]
    outcome = np.array([battle.outcome for battle in battles])
    wins, losses = np.zeros((len(number), max(rows) + 1)), np.zeros((len(number), max(rows) + 1))
    np.add.at(wins, (prompts, rows), outcome)
    np.add.at(losses, (prompts, rows), 1 - outcome)
    return len(number), wins, losses


def _style_differences(battles: Sequence[Battle]) -> np.ndarray:
    """(a - b) / (a + b) of each feature, 0 where both are 0, over its deviation."""
    a, b = np.array([battle.style_a for battle in battles]), np.array([battle.style_b for battle in battles])
    difference = np.divide(a - b, a + b, out=np.zeros_like(a), where=a + b > 0)
    sd = difference.std(0)
    # Not centred: a constant would change who beats whom at equal style.
    return np.divide(difference, sd, out=np.zeros_like(difference), where=sd > 0)


def _checked(battles: Sequence[Battle], control_style: bool) -> list[str]:
    """The models in order of appearance. Raises ValueError naming a battle that cannot be used."""
    if not battles:
        raise ValueError("there are no battles")
    for number, battle in enumerate(battles, 1):
        if not 0 <= battle.outcome <= 1:
            raise ValueError(f"battle {number}: outcome is {battle.outcome}; a win of a is 1, a tie 0.5, a loss 0")
        if battle.a == battle.b:
            raise ValueError(f"battle {number}: {battle.a} is compared with itself")
        if control_style and not (
            len(battle.style_a) == len(battle.style_b) == len(STYLE) and all(map(math.isfinite, battle.style_a + battle.style_b))
        ):
            raise ValueError(f"battle {number}: style control needs {len(STYLE)} finite features of both answers (style_of)")
    names = list(dict.fromkeys(name for battle in battles for name in (battle.a, battle.b)))
    edges: dict[str, set[str]] = {name: set() for name in names}
    for battle in battles:
        edges[battle.a].add(battle.b)
        edges[battle.b].add(battle.a)
    joined = _reached(names[0], edges)
    if lonely := [name for name in names if name not in joined]:
        raise ValueError(f"no chain of battles leads from {names[0]} to {lonely[0]}: their ratings cannot be compared")
    return names


def _all_reached(battles: Sequence[Battle], names: Sequence[str]) -> bool:
    """Whether each model has, along some chain, lost to each other: else the likelihood has no maximum (Ford 1957)."""
    beaten: dict[str, set[str]] = {name: set() for name in names}
    lost: dict[str, set[str]] = {name: set() for name in names}
    for battle in battles:
        if battle.outcome > 0:
            beaten[battle.a].add(battle.b)
            lost[battle.b].add(battle.a)
        if battle.outcome < 1:
            beaten[battle.b].add(battle.a)
            lost[battle.a].add(battle.b)
    return len(_reached(names[0], beaten)) == len(_reached(names[0], lost)) == len(names)


def _reached(start: str, edges: Mapping[str, set[str]]) -> set[str]:
    seen, waiting = {start}, [start]
    while waiting:
        new = edges[waiting.pop()] - seen
        seen |= new
        waiting += new
    return seen
