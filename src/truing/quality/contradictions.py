"""Preferences that cannot all be true: A over B and B over A, rings such as A over B over C over A, answers both approved and not.

Answers are compared but for case and white space, within one prompt. Where several people voted, their disagreements are counted
here too: for training they are contradictions all the same.
"""

from array import array
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np

from truing.quality.finding import SHOWN, Example, Finding, Flagged, rate_finding
from truing.quality.sample import Sample
from truing.records import Feedback, Origin

Edge = tuple[int, int, int]
"""Better answer, worse answer, row."""


class Contradictions:
    """Keeps 32 bytes a comparison; prompts that occur once are never looked at."""

    def __init__(self) -> None:
        self.file, self.count, self.judged = "", 0, False
        self.prompts, self.better, self.worse, self.rows = (array("Q") for _ in range(4))

    def see(self, sample: Sample) -> None:
        """Neighbours in the order are enough: the rest follows from them."""
        self.file = sample.origin.file
        keys = sample.answer_keys
        if sample.kind is Feedback:
            self.judged = True
            self._add(sample.key, *((keys[0], 0) if sample.sides[0] == "chosen" else (0, keys[0])), sample.origin.row)
        for better, worse in pairwise(keys):
            self._add(sample.key, better, worse, sample.origin.row)
        self.count += len(keys) > 1 or sample.kind is Feedback

    def _add(self, prompt: int, better: int, worse: int, row: int) -> None:
        for column, value in zip((self.prompts, self.better, self.worse, self.rows), (prompt, better, worse, row), strict=True):
            column.append(value)

    def findings(self) -> list[Finding]:
        """Direct contradictions, and rings of three or more that hold none."""
        if not self.count:
            return []
        direct, rings = Flagged(), Flagged()
        against: dict[int, int] = {}
        ringed: dict[int, list[int]] = {}
        for edges in self._groups():
            opposed = _opposed(edges)
            against.update(opposed)
            rest = [edge for edge in edges if edge[2] not in opposed]
            if not self.judged and len(rest) > 2:
                ringed.update(_in_rings(rest))
        for row in sorted(against):
            self._flag(direct, row, f"says the opposite of row {against[row]}")
        for row in sorted(ringed):
            self._flag(rings, row, f"part of a ring over rows {', '.join(map(str, ringed[row][:6]))}")
        return [
            rate_finding(
                "contradictions",
                direct,
                self.count,
                said="rows that say the opposite of another row about the same prompt and answers",
                why="their gradients cancel; what is learnt there is which of the two came last",
                mend="truing data filter FILE to=OUT drop=[contradictions]",
            ),
            rate_finding(
                "cycles",
                rings,
                self.count,
                said="rows that form a ring of preferences (A over B over C over A)",
                why="no reward can order the answers so; a Bradley-Terry model makes them all equal",
                mend="truing data filter FILE to=OUT drop=[cycles]",
            ),
        ]

    def _flag(self, flagged: Flagged, row: int, text: str) -> None:
        flagged.rows.append(row)
        if len(flagged.examples) < SHOWN:
            flagged.examples.append(Example(origin=Origin(file=self.file, row=row), text=text))

    def _groups(self) -> Iterator[list[Edge]]:
        """The comparisons of each prompt that has more than one."""
        prompts = np.asarray(self.prompts, dtype=np.uint64)
        order = np.argsort(prompts, kind="stable")
        starts = np.flatnonzero(np.concatenate([[True], prompts[order[1:]] != prompts[order[:-1]]]))
        ends = np.append(starts[1:], len(order))
        for start, end in zip(starts[ends - starts > 1].tolist(), ends[ends - starts > 1].tolist(), strict=True):
            yield [(self.better[i], self.worse[i], self.rows[i]) for i in order[start:end].tolist()]


def _opposed(edges: Sequence[Edge]) -> dict[int, int]:
    """Row -> a row that says the opposite."""
    rows: dict[tuple[int, int], int] = {}
    for better, worse, row in edges:
        rows.setdefault((better, worse), row)
    return {row: rows[worse, better] for better, worse, row in edges if (worse, better) in rows and better != worse}


def _in_rings(edges: Sequence[Edge]) -> dict[int, list[int]]:
    """Row -> all rows of its ring: comparisons inside a strongly connected component."""
    onward: dict[int, list[int]] = defaultdict(list)
    for better, worse, _ in edges:
        onward[better].append(worse)
    component = strong_components(onward)
    members: dict[int, list[int]] = defaultdict(list)
    for better, worse, row in edges:
        if better != worse and component[better] == component[worse]:
            members[component[better]].append(row)
    return {row: rows for rows in members.values() for row in rows}


def strong_components(onward: Mapping[int, Sequence[int]]) -> dict[int, int]:
    """Node -> the number of its strongly connected component (Tarjan 1972), without recursion."""
    component: dict[int, int] = {}
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    path: list[int] = []
    for root in list(onward):
        if root in index:
            continue
        work = [(root, iter(onward[root]))]
        index[root] = low[root] = len(index)
        path.append(root)
        while work:
            node, rest = work[-1]
            for neighbour in rest:
                if neighbour not in index:
                    index[neighbour] = low[neighbour] = len(index)
                    path.append(neighbour)
                    work.append((neighbour, iter(onward.get(neighbour, ()))))
                    break
                if neighbour not in component:
                    low[node] = min(low[node], index[neighbour])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    number = len(component)
                    while True:
                        member = path.pop()
                        component[member] = number
                        if member == node:
                            break
    return component
