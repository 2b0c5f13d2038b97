"""Rows that are no records: what the readers refused, by kind of reason."""

from collections import Counter

from truing.data.problems import BadRow
from truing.quality.finding import Finding, Flagged, rate_finding

KINDS = {
    "identical": ("are equal", "same response twice"),
    "empty": ("is empty", "is null", "fewer than two responses"),
    "broken_turns": ("role", "part before the last turn", "turn ", "transcript"),
    "ties": (" tie ", "no majority"),
}
"""Finding -> what its reasons say; the first that fits. All else is `broken_rows`."""
SAID = {
    "identical": ("rows whose answers are the same", "they teach nothing: the loss of such a pair has no gradient worth having"),
    "empty": ("rows with an empty prompt or answer", "there is nothing to learn from, and a mean over no tokens is 0/0"),
    "broken_turns": ("rows whose turns are broken", "a wrong split trains the model on the other side's words"),
    "ties": ("rows without a winner", "pair losses need one; a tie can be kept as two demonstrations or dropped"),
    "broken_rows": ("rows that cannot be read", "each is data that is paid for and not used"),
}


class Unreadable:
    """Counts bad rows by kind. It sees them instead of samples, and is told of every usable row."""

    def __init__(self) -> None:
        self.rows = 0
        self.kinds = {name: Flagged() for name in SAID}
        self.reasons: dict[str, Counter[str]] = {name: Counter() for name in SAID}

    def used(self) -> None:
        """One more row that is a record."""
        self.rows += 1

    def see(self, row: BadRow) -> None:
        """One more row that is none."""
        self.rows += 1
        name = next((name for name, words in KINDS.items() if any(word in f" {row.reason} " for word in words)), "broken_rows")
        self.kinds[name].add(row.origin, f"{row.reason}: {row.text}")
        self.reasons[name][row.reason[:80]] += 1

    def findings(self) -> list[Finding]:
        """One finding a kind."""
        return [
            rate_finding(
                name,
                flagged,
                self.rows,
                said=SAID[name][0],
                why=SAID[name][1],
                mend="truing data filter FILE to=OUT (leaves them out), or data.on_bad_row=skip in training",
                act=0.01,
                details=tuple(f"{count}: {reason}" for reason, count in self.reasons[name].most_common(3)),
            )
            for name, flagged in self.kinds.items()
        ]
