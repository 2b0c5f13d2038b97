"""Pairs whose two answers are too alike to teach anything but their difference in spelling.

Similarity is 1 - Levenshtein distance / longer length. Pairs that are equal are no records: readers refuse them by row.
"""

import numpy as np

from truing.quality.finding import Finding, Flagged, rate_finding
from truing.quality.sample import Sample

COMPARED = 1200
"""Characters of what differs that are compared; beyond them the distance is taken in proportion."""


class TooAlike:
    """Flags pairs of a similarity of at least `limit`."""

    def __init__(self, limit: float = 0.9) -> None:
        self.limit = limit
        self.pairs = 0
        self.flagged = Flagged()

    def see(self, sample: Sample) -> None:
        """Compares the two answers of a pair."""
        if not sample.pair:
            return
        self.pairs += 1
        chosen, rejected = sample.pair
        if alike(chosen, rejected, self.limit):
            self.flagged.add(sample.origin, f"chosen: {chosen[:110]} | rejected: {rejected[:110]}")

    def findings(self) -> list[Finding]:
        """One finding, for data of pairs."""
        if not self.pairs:
            return []
        return [
            rate_finding(
                "too_alike",
                self.flagged,
                self.pairs,
                said=f"pairs whose answers are at least {self.limit:.0%} the same by edit distance",
                why="the loss pushes apart texts that hardly differ, which lowers the probability of both (arXiv 2402.13228)",
                mend="truing data filter FILE to=OUT drop=[too_alike]",
                watch=0.005,
                act=0.05,
            )
        ]


def alike(a: str, b: str, limit: float) -> bool:
    """Whether 1 - distance / longer length is at least `limit`, without computing the distance where it cannot be."""
    longer = max(len(a), len(b))
    allowed = int((1 - limit) * longer + 1e-9)
    if abs(len(a) - len(b)) > allowed:
        return False
    a, b = _unshared(a, b)
    if not a or not b:
        return max(len(a), len(b)) <= allowed
    if _bag_distance(a, b) > allowed:
        return False
    if max(len(a), len(b)) > COMPARED:
        share = COMPARED / max(len(a), len(b))
        return edit_distance(a[:COMPARED], b[:COMPARED], round(allowed * share)) <= round(allowed * share)
    return edit_distance(a, b, allowed) <= allowed


def _unshared(a: str, b: str) -> tuple[str, str]:
    """The two texts without what both begin and end with, which costs no edit."""
    start = _shared(a, b)
    a, b = a[start:], b[start:]
    end = _shared(a[::-1], b[::-1])
    return a[: len(a) - end], b[: len(b) - end]


def _shared(a: str, b: str) -> int:
    """Characters of the common beginning, by bisection: comparing slices is what a computer does fast."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _bag_distance(a: str, b: str) -> int:
    """A lower bound of the edit distance: characters that one text has and the other lacks (folded to 256 kinds)."""
    counts = [np.bincount(np.frombuffer(text.encode("utf-32-le"), np.uint32) & 255, minlength=256) for text in (a, b)]
    difference = counts[0] - counts[1]
    return int(max(difference[difference > 0].sum(), -difference[difference < 0].sum()))


def edit_distance(a: str, b: str, at_most: int | None = None) -> int:
    """The Levenshtein distance by the bit vectors of Myers (1999), as Hyyrö (2003) writes them: one word a column.

    Gives up once more than `at_most` is certain, and then returns `at_most + 1`.
    """
    if not a:
        return len(b)
    places: dict[str, int] = {}
    for i, sign in enumerate(a):
        places[sign] = places.get(sign, 0) | 1 << i
    last, mask = 1 << len(a) - 1, (1 << len(a)) - 1
    up, down, distance = mask, 0, len(a)
    left = len(b)
    for sign in b:
        left -= 1
        equal = places.get(sign, 0)
        diagonal = ((((equal | down) & up) + up) ^ up) | equal | down
        rise, fall = down | ~(diagonal | up) & mask, up & diagonal
        distance += bool(rise & last) - bool(fall & last)
        if at_most is not None and distance - left > at_most:
            return at_most + 1
        rise, fall = (rise << 1 | 1) & mask, fall << 1 & mask
        up, down = fall | ~(diagonal | rise) & mask, rise & diagonal
    return distance
