"""Further columns of a row as text: for grouping in reports, for rules and judges, never shown to a model."""

import math
from datetime import date, time

import orjson

from truing.data.turns import Row, is_blank

TAG_LENGTH = 4096
"""Characters up to which a further column is a tag; `truing data` keeps further columns as they stand, whatever their length."""


def tags(row: Row, used: frozenset[str]) -> dict[str, str]:
    """Further columns as text: numbers, booleans and times, lists and objects as JSON."""
    kept: dict[str, str] = {}
    for column, cell in row.items():
        if column in used or not column:
            continue
        said = as_tag(cell)
        if said and len(said) <= TAG_LENGTH and not is_blank(said):
            kept[column] = said
    return kept


def as_tag(cell: object) -> str | None:
    """A cell as text; None for what has no text here, such as bytes, and for numbers that are none."""
    match cell:
        case str():
            return cell
        case bool():
            return "true" if cell else "false"
        case int():
            return str(cell)
        case float():
            return str(cell) if math.isfinite(cell) else None
        case date() | time():
            return cell.isoformat()
        case list() | dict() if cell:
            try:
                return orjson.dumps(cell).decode()
            except TypeError:
                return None
        case _:
            return None
