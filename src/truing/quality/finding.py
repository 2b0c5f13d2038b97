"""What a check found: a number with its interval, where it was seen, why it matters and what mends it. No checks here."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from truing.charts import Bars
from truing.quality.sample import Sample
from truing.records import Origin
from truing.statistics import Estimate, wilson

Level = Literal["fine", "watch", "act", "unknown"]
"""Nothing to do; look at the examples; mend it before training; too few rows to say."""
SHOWN = 5
EXCERPT = 240


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One place where something was seen. Example: `Example(origin=Origin(file="a.jsonl", row=3), text="Sorry, I can't.")`."""

    origin: Origin
    text: str
    """What is to be seen there, shortened."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check says of a data set. Example: `Finding(name="duplicates", level="act", said="rows that ...", ...)`."""

    name: str
    level: Level
    said: str
    """What the number is, as a noun: `rows that repeat an earlier one`."""
    value: Estimate | float
    """A rate with its interval, or a plain number such as an AUC."""
    why: str
    mend: str
    """The command or setting that mends it; empty when there is nothing to mend."""
    rows: Sequence[int] = ()
    """Rows of the file that it is about, as `Origin.row` counts; what `truing data filter drop=NAME` removes."""
    by_row: bool = False
    """Whether it is about single rows of the file, were there any; else about the whole set, and no row can be dropped for it."""
    examples: tuple[Example, ...] = ()
    details: tuple[str, ...] = ()
    """Further lines, such as a table of features."""
    chart: Bars | None = None


class Check(Protocol):
    """Looks at each sample once, in order, and says at the end what it found. It keeps numbers, not samples."""

    def see(self, sample: Sample) -> None:
        """The next sample."""
        ...

    def findings(self) -> list[Finding]:
        """What was found; asked once."""
        ...


@dataclass(slots=True)
class Flagged:
    """Rows of one kind as they pass: their numbers, and the first few with what is to be seen."""

    rows: array = field(default_factory=lambda: array("Q"))
    examples: list[Example] = field(default_factory=list)

    def add(self, origin: Origin, text: str) -> None:
        """One more row; a row that has several such places counts once."""
        if self.rows and self.rows[-1] == origin.row:
            return
        self.rows.append(origin.row)
        if len(self.examples) < SHOWN:
            self.examples.append(Example(origin=origin, text=excerpt(text)))

    def __len__(self) -> int:
        return len(self.rows)


def excerpt(text: str, length: int = EXCERPT) -> str:
    """One line of a text, its middle left out when it is long: what is wrong is often at the end."""
    line = " ".join(text[: 4 * length].split()) if len(text) <= 4 * length else ""
    if not line:
        line = " ".join((text[: 2 * length] + " … " + text[-2 * length :]).split())
    return line if len(line) <= length else f"{line[: length // 2]} … {line[-length // 2 :]}"


def level(share: Estimate, *, watch: float, act: float) -> Level:
    """By the lower end of the interval, so that a few rows that may be chance raise nothing."""
    if share.value == 0:
        return "fine"
    return "act" if share.low > act else "watch" if share.low > watch else "fine"


def rate_finding(
    name: str,
    flagged: Flagged,
    of: int,
    *,
    said: str,
    why: str,
    mend: str,
    watch: float = 0.0,
    act: float = 0.01,
    details: tuple[str, ...] = (),
    chart: Bars | None = None,
) -> Finding:
    """The finding of a check that flags rows out of so many. `watch` and `act` are limits for the lower end of the interval."""
    share = wilson(len(flagged), of) if of else 0.0
    return Finding(
        name=name,
        level=level(share, watch=watch, act=act) if isinstance(share, Estimate) else "unknown",
        said=said,
        value=share,
        why=why,
        mend=mend if len(flagged) else "",
        rows=flagged.rows,
        by_row=True,
        examples=tuple(flagged.examples),
        details=details,
        chart=chart,
    )
