"""What can be wrong with data: a value, a row, a file. No reading here; the wording is the caller's."""

from dataclasses import dataclass

from truing.records import Origin

EXCERPT = 200
"""Characters of a bad row that are kept to recognise it by."""

SHOWN = 10
"""Bad rows that an error lists before it only counts."""


class DataError(ValueError):
    """A file that cannot be used as asked. Its text names the file, the rows and the remedy."""


class BadValueError(ValueError):
    """Why one row cannot be used. Readers turn it into a `BadRow`; it does not leave them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRow:
    """A row that was not used. Example: `BadRow(origin=Origin(file="a.jsonl", row=3), reason="tie", text="{...}")`."""

    origin: Origin
    reason: str
    text: str
    """The row's beginning, at most 200 characters, with what is not text replaced."""

    def __str__(self) -> str:
        return f"{self.origin}: {self.reason}"
