"""What people write where they choose between two answers. What becomes of it is `truing.data.formats`."""

from collections.abc import Mapping
from typing import Literal

from truing.data.problems import BadValueError

CHOICES: Mapping[str, Literal["first", "second", "tie", "both bad"]] = {
    **dict.fromkeys(("first", "a", "1"), "first"),
    **dict.fromkeys(("second", "b", "2"), "second"),
    **dict.fromkeys(("tie", "same", "equal", "both good", "both_good", "0"), "tie"),
    **dict.fromkeys(("both bad", "both_bad", "neither"), "both bad"),
}
"""Capitals aside."""


def chosen_side(cell: object) -> Literal["first", "second"]:
    """The side that was chosen; raises `BadValueError` for a tie, for a choice that is none, and where nobody has chosen yet."""
    said = "" if cell is None else str(cell).strip().lower()
    if not said:
        raise BadValueError("nobody has chosen yet")
    choice = CHOICES.get(said)
    if choice is None:
        raise BadValueError(f'"choice" is {said[:40]!r}; it must be first, second, tie or both bad')
    if choice in ("tie", "both bad"):
        raise BadValueError("tie" if choice == "tie" else "tie (both bad)")
    return choice
