"""What people write where they choose between two answers. What becomes of it is `truing.data.formats`."""

from collections.abc import Mapping
from typing import Literal

from truing.data.problems import BadValueError

Choice = Literal["first", "second", "tie", "both bad"]
CHOICES: Mapping[str, Choice] = {
    **dict.fromkeys(("first", "a", "1"), "first"),
    **dict.fromkeys(("second", "b", "2"), "second"),
    **dict.fromkeys(("tie", "same", "equal", "both good", "both_good", "0"), "tie"),
    **dict.fromkeys(("both bad", "both_bad", "neither"), "both bad"),
}
"""Capitals aside."""


def written(cell: object) -> str:
    """What stands in a cell; 0 is an answer, and a table's 1.0 is the 1 that was written."""
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    return "" if cell is None else str(cell).strip()


def said(cell: object) -> str:
    """What stands in a cell of choices, in lower case."""
    return written(cell).lower()


def chosen_side(cell: object) -> Literal["first", "second"]:
    """The side that was chosen; raises `BadValueError` for a tie, for a choice that is none, and where nobody has chosen yet."""
    choice = CHOICES.get(said(cell))
    if choice is None:
        unknown = f'"choice" is {said(cell)[:40]!r}; it must be first, second, tie or both bad'
        raise BadValueError(unknown if said(cell) else "nobody has chosen yet")
    if choice == "tie":
        raise BadValueError("tie")
    if choice == "both bad":
        raise BadValueError("tie (both bad)")
    return choice
