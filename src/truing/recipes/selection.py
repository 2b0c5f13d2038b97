"""Which records of a file are trained on and which are held out: read one after the other, with every row accounted for."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from truing.data.problems import SHOWN, BadRow, DataError
from truing.data.read import as_kind, is_too_long, opened, too_many_bad_rows
from truing.randomness import counted_seed
from truing.recipes.settings import Data
from truing.records import Demonstration, Feedback, Messages, Preference, Prompt, Ranking, Record, Steps

PACKAGED = {
    "everyday": Path(__file__).parent / "everyday" / "preferences.csv",
    "harmful_requests": Path(__file__).parent / "requests" / "harmful.csv",
    "look_alike_requests": Path(__file__).parent / "requests" / "look_alikes.csv",
}
"""Data sets that come with the package, by the name that `data.path` knows them under."""

Side = Literal["train", "held_out"]
SIDES: tuple[Side, ...] = ("train", "held_out")


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What became of a file's rows."""

    file: str
    """The path as the user gave it."""
    format: str
    """A name of `truing.data.formats.FORMATS`."""
    sha256: str
    """Of the file's bytes; of the rows as JSON lines for a hub data set."""
    rows_in: int
    """Rows of the file; blank lines are none."""
    rows_used: int
    """Rows that became records."""
    reasons: Mapping[str, int]
    """How many rows were left out for each reason, most frequent first."""
    too_long_chosen: int
    """Pairs dropped by the length-bias filter."""

    @property
    def bad_rows(self) -> int:
        return self.rows_in - self.rows_used


@dataclass(kw_only=True)
class Selection:
    """The records of both sides, in the order of the file; once they are through, `account` says what became of all rows."""

    data: Data
    kinds: Sequence[type[Record]]
    """Records are taken as the first of these that the file can give."""
    on_bad_row: Callable[[BadRow], None] = lambda row: None
    """Told each row that is left out."""
    progress: Callable[[int, int], None] | None = None
    """Told how much of how much has been read, in bytes or rows of the file."""
    account: Account | None = None
    _used: int = 0
    _dropped: int = 0
    _reasons: Counter[str] = field(default_factory=Counter)
    _first: list[BadRow] = field(default_factory=list)
    _any_held_out: bool = False
    _columns: dict[str, set[str]] = field(default_factory=dict)
    """While nothing is held out, the values of the column that decides it, and the names of the others."""

    def __iter__(self) -> Iterator[tuple[Side, Record]]:
        data, trained = self.data, 0
        file = opened(PACKAGED.get(data.path, data.path), mapping=data.mapping)
        for item in file.items:
            if isinstance(item, BadRow):
                self._note(item)
                continue
            self._used += 1
            if self.progress and self._used % 256 == 0:
                self.progress(*file.position())
            if self._reasons and data.on_bad_row == "stop":
                continue  # refused below; what is left is to find the other bad rows
            for record in (item,) if isinstance(item, tuple(self.kinds)) else as_kind((item,), self.kinds[0]):
                side = self._side(record)
                if side == "train":
                    trained += 1
                if side and (side == "held_out" or data.rows is None or trained <= data.rows):
                    yield side, record
        bad = self._reasons.total()
        if bad and data.on_bad_row == "stop":
            raise DataError(too_many_bad_rows(file.file, self._first, bad, self._used + bad))
        if data.held_out_by and not self._any_held_out:
            raise ValueError(self._nothing_held_out(data.held_out_by))
        self.account = Account(
            file=file.file,
            format=file.format.name,
            sha256=file.sha256(),
            rows_in=self._used + bad,
            rows_used=self._used,
            reasons=dict(self._reasons.most_common()),
            too_long_chosen=self._dropped,
        )

    def _note(self, row: BadRow) -> None:
        self._reasons[row.reason] += 1
        if len(self._first) < SHOWN:
            self._first.append(row)
        self.on_bad_row(row)

    def _side(self, record: Record) -> Side | None:
        """Where a record belongs; nowhere when the length filter drops it."""
        data = self.data
        if data.length_factor is not None:
            if not isinstance(record, Preference):
                other = type(record).__name__
                raise ValueError(
                    f"{data.path}: data.length_factor compares the two answers of pairs, not {other} records; leave it out"
                )
            if is_too_long(record, data.length_factor):
                self._dropped += 1
                return None
        held_out = _is_held_out(record, data)
        if data.held_out_by and not self._any_held_out:
            for column, value in record.tags.items():
                values = self._columns.setdefault(column, set())
                if column == data.held_out_by:
                    values.add(value)
        self._any_held_out = self._any_held_out or held_out
        return "held_out" if held_out else "train"

    def _nothing_held_out(self, column: str) -> str:
        data, values = self.data, sorted(self._columns.get(column, ()))
        if not values:
            return f"{data.path}: no column {column}; data.held_out_by can be {' or '.join(sorted(self._columns)) or 'null only'}"
        chosen = f"none of {', '.join(data.held_out)}" if data.held_out else "nothing"
        more = f" and {len(values) - 10} more" if len(values) > 10 else ""
        return f"{data.path}: data.held_out names {chosen} of column {column}, which holds {', '.join(values[:10])}{more}"


def _is_held_out(record: Record, data: Data) -> bool:
    if data.held_out_by:
        return record.tags.get(data.held_out_by) in data.held_out
    # by a hash of the prompt, so that a prompt with many rows is never on both sides and more rows move nobody
    digest = hashlib.sha256(repr([(m.role, m.content) for m in asked(record)]).encode()).digest()
    place = counted_seed(0, "held out", int.from_bytes(digest[:8])) / 2**63
    return place < data.held_out_share


def asked(record: Record) -> Messages:
    """The conversation that a record's response answers."""
    match record:
        case Prompt():
            return record.messages
        case Demonstration():
            return record.messages[:-1]
        case Preference() | Ranking() | Feedback() | Steps():
            return record.prompt
