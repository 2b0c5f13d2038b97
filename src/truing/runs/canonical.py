"""Canonical JSON: the same value is the same bytes everywhere, so that files can be compared and values be named by a hash."""

import hashlib
import json
import math
from collections.abc import Mapping


def to_json(value: object, *, indent: int | None = None) -> bytes:
    """Canonical JSON: sorted keys, floats by repr. Keys must be strings: JSON would turn 1 into "1" without a word."""
    _assert_string_keys(value)
    separators = (",", ":") if indent is None else (",", ": ")
    return json.dumps(value, sort_keys=True, indent=indent, separators=separators).encode() + (b"" if indent is None else b"\n")


def to_json_line(row: Mapping[str, object]) -> bytes:
    """One line of a log. NaN and infinities, which JSON lacks, are the strings "nan", "inf" and "-inf"."""
    return to_json(_finite(row)) + b"\n"


def _finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return repr(float(value))
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _assert_string_keys(value: object) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            assert isinstance(key, str), f"a key that is no string: {key!r}"
            _assert_string_keys(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _assert_string_keys(item)


def digest(value: object) -> str:
    """SHA-256 of a value in JSON types."""
    return hashlib.sha256(to_json(value)).hexdigest()
