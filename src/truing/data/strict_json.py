r"""JSON read strictly: what orjson refuses, and also a key that stands twice and nesting beyond reason, each with its reason.

orjson keeps the last of two equal keys without a word. Every key ends in a quote and a colon, so text with as many of those as
there are parsed keys has no duplicate; other text goes the slow way through `json`. Only a key that ends in a backslash,
written `\\":`, escapes the count, so text with that goes the slow way too. Lines and files are `truing.data.rows`.
"""

import json
import re

import orjson

from truing.data.problems import BadValueError
from truing.data.turns import type_name

MAX_DEPTH = 64
KEY = re.compile(rb'(?<!\\)"\s*:')
NOT_A_NUMBER = re.compile(r".?(NaN|Infinity)\b", re.DOTALL)
TOO_DEEP = f"nested deeper than {MAX_DEPTH} levels"


def parse_row(data: bytes) -> dict[str, object]:
    """The object of one JSONL line."""
    try:
        cells = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise BadValueError(why_broken(data, error)) from None
    keys, row = as_row(cells)
    if _suspicious(data, keys):
        refuse_duplicates(_loads_marked(data))
    return row


def parse_rows(data: bytes) -> tuple[list[object], list[object] | None]:
    """The items of an array, or of an array under "data"; and, where a key may stand twice, the items with such keys marked.

    Raises `orjson.JSONDecodeError` for broken JSON and `BadValueError` for anything else than an array.
    """
    parsed = orjson.loads(data)
    items = parsed.get("data") if isinstance(parsed, dict) else parsed
    if not isinstance(items, list):
        raise BadValueError('neither an array of rows nor an object with such an array under "data"')
    if not _suspicious(data, _measure(parsed)[0]):
        return items, None
    marked = _loads_marked(data)
    twins = marked["data"] if isinstance(marked, dict) else marked
    assert isinstance(twins, list)
    return items, twins


def why_broken(data: bytes, error: orjson.JSONDecodeError) -> str:
    """What is wrong with text that is not JSON, in the words of a data file."""
    try:
        data.decode()
    except UnicodeDecodeError as wrong:
        return not_utf8(data, wrong)
    if b"\0" in data:
        return "broken JSON: NUL byte"
    if "surrogate" in error.msg:
        return f"broken JSON: lone surrogate at column {error.colno}"
    if "depth" in error.msg or "recursion" in error.msg.lower():
        return TOO_DEEP
    if "infinity" in error.msg or NOT_A_NUMBER.match(data.decode()[max(0, error.pos - 1) :][:12]):
        return f"broken JSON: NaN, Infinity or a number too large at column {error.colno}"
    return f"broken JSON: {error.msg.split(': line ')[0]} at column {error.colno}"


def not_utf8(data: bytes, wrong: UnicodeDecodeError) -> str:
    """Which byte is not UTF-8."""
    return f"not UTF-8: byte 0x{data[wrong.start]:02x} at position {wrong.start + 1}"


def as_row(parsed: object) -> tuple[int, dict[str, object]]:
    """The item itself, once it is an object that is not nested too deep, and how many keys it holds."""
    if not isinstance(parsed, dict):
        raise BadValueError(f"{type_name(parsed)}, not an object")
    keys, levels = _measure(parsed)
    if levels > MAX_DEPTH:
        raise BadValueError(TOO_DEEP)
    return keys, parsed


def refuse_duplicates(parsed: object) -> None:
    """Raises for an object inside in which a key stands twice."""
    stack = [parsed]
    while stack:
        item = stack.pop()
        if isinstance(item, _Duplicated):
            raise BadValueError(f'the key "{item.key}" stands twice in one object')
        if isinstance(item, dict):
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)


def _measure(parsed: object) -> tuple[int, int]:
    """Keys of all objects inside, and levels of nesting."""
    keys, levels, layer = 0, 0, [parsed]
    while layer:
        below: list[object] = []
        for item in layer:
            if isinstance(item, dict):
                keys += len(item)
                below.extend(child for child in item.values() if isinstance(child, (dict, list)))
            elif isinstance(item, list):
                below.extend(child for child in item if isinstance(child, (dict, list)))
        layer, levels = below, levels + 1
    return keys, levels


def _suspicious(data: bytes, keys: int) -> bool:
    """Whether a key may stand twice in text that was parsed to so many keys."""
    return keys != len(KEY.findall(data)) or b'\\\\"' in data


class _Duplicated(dict[str, object]):
    """An object in which a key stands twice."""

    key: str


def _marked(pairs: list[tuple[str, object]]) -> dict[str, object]:
    plain = dict(pairs)
    if len(plain) == len(pairs):
        return plain
    names = [name for name, _ in pairs]
    marked = _Duplicated(plain)
    marked.key = next(name for name in names if names.count(name) > 1)
    return marked


def _loads_marked(data: bytes) -> object:
    """Parsed by `json`, whose recursion and long integers fail where orjson's do not."""
    try:
        parsed: object = json.loads(data, object_pairs_hook=_marked)
    except (RecursionError, ValueError):
        raise BadValueError("nested too deep, or a number too long") from None
    return parsed
