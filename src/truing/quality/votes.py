"""Votes: what one annotator said of one item, read from rows that name their annotator. What votes say of people is
`truing.quality.annotators`."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from truing.data.formats import FORMATS
from truing.data.problems import BadRow, BadValueError
from truing.data.rows import RawRow, rows
from truing.data.votes import CHOICES, said
from truing.quality.sample import Sample
from truing.records import Origin

CHOSEN = FORMATS["votes"]
"""Rows in which a person chose between two answers."""

MILLISECONDS = 1e11
"""Seconds from 1970 to the year 5138: what is above counts milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """One judgement. Example: `Vote(item=7, annotator="ann", choice=1)`."""

    item: int
    annotator: str
    choice: int
    """1 for the item's first answer, -1 for its second, 0 for a tie; which is first is the same for all votes on an item."""
    first_shown: bool | None = None
    """Whether the answer that was chosen was shown first."""
    pace: float = math.nan
    """Words of both answers over the seconds taken."""
    time: float = math.nan
    """Seconds since whenever."""
    session: str = ""
    group: str = ""


def vote_of(sample: Sample) -> Vote | None:
    """The vote that a row is; None for rows that name no annotator or compare nothing."""
    annotator = sample.tags.get("annotator")
    if annotator is None or sample.pair is None:
        return None
    better, worse = sample.answer_keys[0], sample.answer_keys[-1]
    seconds, shown = _number(sample.tags.get("seconds")), sample.tags.get("shown_first")
    words = sum(len(answer.split()) for answer in sample.pair)
    return Vote(
        item=hash((sample.key, min(better, worse), max(better, worse))) & (1 << 64) - 1,
        annotator=annotator,
        choice=1 if better < worse else -1,
        first_shown=None if shown not in ("chosen", "rejected") else shown == "chosen",
        pace=words / seconds if seconds > 0 else math.nan,
        time=_time(sample.tags.get("time")),
        session=sample.tags.get("session", ""),
        group=sample.tags.get("group", ""),
    )


def further_votes(file: str) -> Iterator[Vote]:
    """The votes of a file that are no preferences: those in columns annotator1, annotator2, ... of 0 (tie), 1 or 2, one item a row,
    and ties in rows of first, second and choice. Nothing where there are no such columns."""
    if not Path(file).is_file():
        return
    for number, row in enumerate(rows(Path(file), file)):
        if isinstance(row, BadRow):
            continue
        if CHOSEN.needs <= row.cells.keys():
            yield from _tie(row, file)
            continue
        columns = [name for name in row.cells if name.startswith("annotator") and name[9:].isdigit()]
        if len(columns) < 2:
            return
        for name in columns:
            vote = row.cells[name]
            if isinstance(vote, int) and vote in (0, 1, 2):
                yield Vote(item=number, annotator=name, choice=(0, 1, -1)[vote])


def _tie(row: RawRow, file: str) -> Iterator[Vote]:
    if CHOICES.get(said(row.cells["choice"])) not in ("tie", "both bad"):
        return
    try:
        # as if the first had been chosen, which gives the item and all else but the choice
        chosen = CHOSEN.record({**row.cells, "choice": "first"}, Origin(file=file, row=row.number))
    except BadValueError:
        return
    vote = vote_of(Sample.of(chosen))
    if vote is not None:
        yield replace(vote, choice=0, first_shown=None)


def _number(text: str | None) -> float:
    try:
        return float(text) if text is not None else math.nan
    except ValueError:
        return math.nan


def _time(text: str | None) -> float:
    """Seconds: a number (of seconds, or of milliseconds where it could not be a date otherwise), or a date with time."""
    number = _number(text)
    if text is None or math.isfinite(number):
        return number / 1000 if number > MILLISECONDS else number
    try:
        when = datetime.fromisoformat(text.strip())
    except ValueError:
        return math.nan
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
