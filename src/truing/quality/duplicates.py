"""Rows that repeat an earlier one, exactly (but for case and white space) or nearly.

Each part in its place: prompt, chosen and rejected (of a ranking, the best answer and the others in their order) must all be alike.
The opposite of a preference is a contradiction, and votes of different annotators (rows with a column `annotator`) are votes.
"""

from array import array

import numpy as np

from truing.quality.finding import SHOWN, Example, Finding, Flagged, rate_finding
from truing.quality.sample import Sample
from truing.quality.sketch import Parts, Sketches
from truing.records import Origin


class Duplicates:
    """Exact repeats by a hash of all texts of a row, near ones by sketches whose every part shares at least `limit`."""

    def __init__(self, limit: float | None = 0.85) -> None:
        self.limit = limit
        self.file = ""
        self.rows, self.keys = array("Q"), array("Q")
        self.sketches = Sketches()
        self.people: dict[str | None, int] = {}

    def see(self, sample: Sample) -> None:
        """Hashes and sketches a row."""
        self.file = sample.origin.file
        self.rows.append(sample.origin.row)
        person = self.people.setdefault(sample.tags.get("annotator"), len(self.people))
        self.keys.append(hash((sample.key, *sample.answer_keys, sample.sides[:1] == ("rejected",), person)) & (1 << 64) - 1)
        if self.limit is not None:
            self.sketches.add(_parts(sample), person)

    def findings(self) -> list[Finding]:
        """Exact repeats and near ones; a row is of one kind only."""
        count = len(self.rows)
        keys = np.asarray(self.keys, dtype=np.uint64)
        _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        originals = first[inverse]
        exact, near = Flagged(), Flagged()
        for place in np.flatnonzero(originals != np.arange(count)).tolist():
            self._add(exact, place, int(originals[place]))
        why = "repeats weigh more than they should, and land on both sides of a split, where they look like generalisation"
        found = [
            rate_finding(
                "duplicates",
                exact,
                count,
                said="rows that repeat an earlier one",
                why=why,
                mend="truing data dedupe FILE to=OUT near=null",
            )
        ]
        if self.limit is None:
            return found
        repeated = set(exact.rows)
        for place, before in sorted(self.sketches.repeats(self.limit).items()):
            if self.rows[place] not in repeated:
                self._add(near, place, before)
        return [
            *found,
            rate_finding(
                "near_duplicates",
                near,
                count,
                said=f"rows whose every part shares about {self.limit:.0%} or more with the same part of an earlier row",
                why=why,
                mend="truing data dedupe FILE to=OUT",
                act=0.02,
            ),
        ]

    def _add(self, flagged: Flagged, place: int, before: int) -> None:
        origin = Origin(file=self.file, row=self.rows[place])
        flagged.rows.append(origin.row)
        if len(flagged.examples) < SHOWN:
            flagged.examples.append(Example(origin=origin, text=f"repeats row {self.rows[before]}"))


def _parts(sample: Sample) -> Parts:
    """The prompt and the answers, each told from the same text in another place; a judgement's place is what it says."""
    if not sample.answers:
        return ((sample.prompt,),)
    if len(sample.answers) == 1:
        return (sample.prompt,), sample.answers if sample.sides == ("chosen",) else ("", *sample.answers)
    return (sample.prompt,), sample.answers[:1], sample.answers[1:]
