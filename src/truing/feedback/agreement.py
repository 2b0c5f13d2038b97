"""How far annotators agree beyond chance: Cohen's and Fleiss' kappa, Gwet's AC1, Krippendorff's alpha, each with its interval.

Every coefficient is 1 - (observed disagreement) / (disagreement by chance); they differ in what chance is. Kappas fall when nearly
all items are of one category, though annotators agree (Feinstein and Cicchetti 1990): then read AC1 beside them. Intervals are
BCa bootstraps over items, since items were drawn and annotators were not. Left out: who annotated badly (`truing.quality`).
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float

from truing.statistics import Estimate, bootstrap

Label = Hashable | None
"""What an annotator said of an item; None where he was not asked."""
Items = Sequence[Sequence[Label]]
"""One item a row, one annotator a column."""
Level = Literal["nominal", "ordinal", "interval", "ratio"]
Table = Float[np.ndarray, "item label"]
"""How often each label was given to each item."""


def raw_agreement(items: Items, *, seed: int = 0, draws: int = 10_000) -> Estimate:
    """Share of pairs of annotators who agree, averaged over items with two labels or more; chance is not taken off."""
    table, _ = _counted(items, "nominal")
    table = table[table.sum(1) >= 2]
    agreed = _agreed(table)
    return _estimate(lambda weights: (weights @ agreed) / weights.sum(1), len(table), seed, draws)


def cohen_kappa(first: Sequence[Label], second: Sequence[Label], *, seed: int = 0, draws: int = 10_000) -> Estimate:
    """Agreement of two annotators, p_e from each one's own shares: kappa = (p_o - p_e) / (1 - p_e) (Cohen 1960).

    Items that one of the two did not label are an error: choose them before.
    """
    if len(first) != len(second):
        raise ValueError(f"the first annotator has {len(first)} labels and the second {len(second)}; give one for each item")
    for number, pair in enumerate(zip(first, second, strict=True), 1):
        if None in pair:
            raise ValueError(f"item {number}: a label is missing; Cohen's kappa needs both (Krippendorff's alpha does not)")
    _some(first)
    labels = {label: i for i, label in enumerate(dict.fromkeys([*first, *second]))}
    cells = np.zeros((len(first), len(labels), len(labels)))
    for item, (a, b) in enumerate(zip(first, second, strict=True)):
        cells[item, labels[a], labels[b]] = 1.0
    flat = cells.reshape(len(first), -1)

    def kappa(weights: np.ndarray) -> np.ndarray:
        shares = (weights @ flat / weights.sum(1, keepdims=True)).reshape(-1, len(labels), len(labels))
        observed = np.trace(shares, axis1=1, axis2=2)
        expected = (shares.sum(2) * shares.sum(1)).sum(1)
        return _beyond_chance(observed, expected)

    return _estimate(kappa, len(first), seed, draws)


def fleiss_kappa(items: Items, *, seed: int = 0, draws: int = 10_000) -> Estimate:
    """Agreement of any annotators, as many on each item, p_e from the shares of all labels (Fleiss 1971)."""
    table, _ = _counted(items, "nominal")
    asked = table.sum(1)
    if asked.min() != asked.max() or asked[0] < 2:
        number = int(np.flatnonzero(asked != asked[0])[0]) + 1 if asked.min() != asked.max() else 1
        raise ValueError(
            f"item {number} has {asked[number - 1]:g} labels, item 1 has {asked[0]:g}; Fleiss' kappa needs the same number, at"
            " least 2, on every item (Krippendorff's alpha does not)"
        )
    agreed, shares = _agreed(table), table / asked[:, None]

    def kappa(weights: np.ndarray) -> np.ndarray:
        total = weights.sum(1, keepdims=True)
        return _beyond_chance((weights @ agreed) / total[:, 0], ((weights @ shares / total) ** 2).sum(1))

    return _estimate(kappa, len(table), seed, draws)


def gwet_ac1(items: Items, *, seed: int = 0, draws: int = 10_000) -> Estimate:
    """Gwet's AC1: p_e = sum_k pi_k (1 - pi_k) / (q - 1) over q labels (Gwet 2008, eq. 10; missing labels as in Gwet 2014).

    It stays high where nearly all items are of one label and annotators agree on them.
    """
    table, labels = _counted(items, "nominal")
    if len(labels) < 2:
        raise ValueError(f"all labels are {labels[0]!r}; AC1 needs two labels or more")
    table = table[table.sum(1) >= 1]
    asked = table.sum(1)
    compared = (asked >= 2).astype(float)
    agreed = np.where(asked >= 2, _agreed(table), 0.0)
    shares = table / asked[:, None]

    def coefficient(weights: np.ndarray) -> np.ndarray:
        pi = weights @ shares / weights.sum(1, keepdims=True)
        expected = (pi * (1 - pi)).sum(1) / (len(labels) - 1)
        pairs = weights @ compared
        observed = np.divide(weights @ agreed, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)
        return _beyond_chance(observed, expected)

    return _estimate(coefficient, len(table), seed, draws)


def krippendorff_alpha(items: Items, *, level: Level = "nominal", seed: int = 0, draws: int = 10_000) -> Estimate:
    """alpha = 1 - D_o / D_e for any number of annotators, missing labels and four levels of measurement (Krippendorff 2011).

    Items with fewer than two labels say nothing and are left out, as the definition has it. Beyond nominal, labels are numbers;
    ordinal ranks them by how often the data hold them.
    """
    table, labels = _counted(items, level)
    table = table[table.sum(1) >= 2]
    if not len(table):
        raise ValueError("no item has two labels; agreement needs two annotators on the same item")
    asked = table.sum(1)
    # Coincidences of an item, weighted so that each of its labels counts once (Krippendorff 2011, section C).
    pairs = (table[:, :, None] * table[:, None, :] - table[:, :, None] * np.eye(len(labels))) / (asked - 1)[:, None, None]
    flat = pairs.reshape(len(table), -1)

    def alpha(weights: np.ndarray) -> np.ndarray:
        seen = (weights @ flat).reshape(-1, len(labels), len(labels))
        counts = seen.sum(2)
        total = counts.sum(1)
        distance = _distance(labels, counts, level)
        by_chance = counts[:, :, None] * counts[:, None, :] * distance
        expected = by_chance.sum((1, 2)) / (total - 1)
        observed = (seen * distance).sum((1, 2))
        return 1 - np.divide(observed, expected, out=np.full(len(weights), np.nan), where=expected > 0)

    return _estimate(alpha, len(table), seed, draws)


def _distance(labels: Sequence[Label], counts: Float[np.ndarray, "draw label"], level: Level) -> np.ndarray:
    """Squared difference of two labels [draw, label, label] by level of measurement."""
    if level == "nominal":
        return (1 - np.eye(len(labels)))[None]
    values = np.asarray(labels, dtype=np.float64)
    if level == "ordinal":
        middle = counts.cumsum(1) - counts / 2
        return np.asarray((middle[:, :, None] - middle[:, None, :]) ** 2)
    gap = (values[:, None] - values[None]) ** 2
    if level == "interval":
        return gap[None]
    sums = (values[:, None] + values[None]) ** 2
    return np.divide(gap, sums, out=np.zeros_like(gap), where=sums > 0)[None]


def _counted(items: Items, level: Level) -> tuple[Table, list[Label]]:
    """The table of counts and its labels, which are in order where they are numbers."""
    _some(items)
    found = dict.fromkeys(label for item in items for label in item if label is not None)
    if not found:
        raise ValueError("no item has a label")
    labels: list[Label] = list(found)
    if level != "nominal":
        for number, item in enumerate(items, 1):
            for label in item:
                if label is not None and (not isinstance(label, int | float | np.number) or not np.isfinite(label)):
                    raise ValueError(f"item {number}: {label!r} is no finite number; {level} alpha needs numbers")
        labels = sorted(labels, key=lambda label: float(label))  # type: ignore[arg-type]
    place: Mapping[Label, int] = {label: i for i, label in enumerate(labels)}
    table = np.zeros((len(items), len(labels)))
    for i, item in enumerate(items):
        for label in item:
            if label is not None:
                table[i, place[label]] += 1
    return table, labels


def _agreed(table: Table) -> Float[np.ndarray, " item"]:
    """Share of agreeing pairs of annotators on each item."""
    asked = table.sum(1)
    pairs = asked * (asked - 1)
    return np.divide((table * (table - 1)).sum(1), pairs, out=np.zeros(len(table)), where=pairs > 0)


def _beyond_chance(observed: np.ndarray, expected: np.ndarray) -> np.ndarray:
    room = 1 - expected
    return np.divide(observed - expected, room, out=np.full(len(room), np.nan), where=room > 1e-12)


def _some(items: Sequence[object]) -> None:
    if not len(items):
        raise ValueError("there are no items")


def _estimate(statistic: Callable[[np.ndarray], np.ndarray], items: int, seed: int, draws: int) -> Estimate:
    if not items:
        raise ValueError("no item has two labels; agreement needs two annotators on the same item")
    return bootstrap(statistic, items, seed=seed, draws=draws, what="item", bounds=(-1.0, 1.0))
