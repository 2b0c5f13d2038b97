"""Prompts that this data shares with held-out data, exactly (but for case and white space) or nearly."""

from array import array
from collections.abc import Iterable

from truing.quality.finding import SHOWN, Example, Finding, Flagged, rate_finding
from truing.quality.sample import Sample
from truing.quality.sketch import Sketches
from truing.records import Origin

FEWEST_CHARACTERS = 40
"""Shorter prompts are compared exactly only: their sketches say little."""


class Leakage:
    """Held-out prompts first, then each sample against them."""

    def __init__(self, held_out: Iterable[Sample], limit: float | None = 0.85) -> None:
        self.limit = limit
        self.origins: list[Origin] = []
        self.prompts: dict[int, int] = {}
        self.sketches = Sketches()
        for sample in held_out:
            self.prompts.setdefault(sample.key, len(self.origins))
            self.origins.append(sample.origin)
            if limit is not None:
                self.sketches.add(((sample.prompt,),))
        self.count, self.file = 0, ""
        self.rows, self.long = array("Q"), array("b")
        self.exact = Flagged()

    def see(self, sample: Sample) -> None:
        """One sample of the data itself."""
        self.count += 1
        self.file = sample.origin.file
        there = self.prompts.get(sample.key)
        if there is not None:
            self.exact.add(sample.origin, f"also {self.origins[there]}: {sample.prompt}")
        self.rows.append(sample.origin.row)
        self.long.append(there is None and len(sample.prompt) >= FEWEST_CHARACTERS)
        if self.limit is not None:
            self.sketches.add(((sample.prompt,),))

    def findings(self) -> list[Finding]:
        """Exact and near repeats of held-out prompts."""
        why = "what was trained on is remembered, and held-out figures then measure memory"
        exact = rate_finding(
            "leaked_prompts",
            self.exact,
            self.count,
            said="rows whose prompt is in the held-out data too",
            why=why,
            mend="truing data filter FILE to=OUT held_out=[HELD] drop=[leaked_prompts]",
        )
        if self.limit is None:
            return [exact]
        near = Flagged()
        first = len(self.origins)
        for place, before in sorted(self.sketches.repeats(self.limit, first=first).items()):
            if self.long[place - first]:
                near.rows.append(self.rows[place - first])
                if len(near.examples) < SHOWN:
                    origin = Origin(file=self.file, row=self.rows[place - first])
                    near.examples.append(Example(origin=origin, text=f"nearly {self.origins[before]}"))
        return [
            exact,
            rate_finding(
                "near_leaked_prompts",
                near,
                self.count,
                said=f"rows whose prompt shares about {self.limit:.0%} or more with a held-out one",
                why=why,
                mend="truing data filter FILE to=OUT held_out=[HELD] drop=[near_leaked_prompts]",
            ),
        ]
