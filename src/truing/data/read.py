"""Read data files into records: strict, with file, line and reason for every row that cannot be used.

`iterate` streams, `read` gathers. Which columns mean what is `truing.data.formats`; how files become rows is `truing.data.rows`.
Leaves out several files at once, shuffling and sharding (`truing.data.source`), and any judgement of quality beyond the row.
"""

import difflib
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal, TypeVar

import orjson

from truing.data.formats import Format, check_mapping, find, renamed, unknown
from truing.data.problems import SHOWN, BadRow, BadValueError, DataError
from truing.data.rows import EXTENSIONS, MAX_LINE_BYTES, Position, RawRow, bad, rows
from truing.data.turns import Row
from truing.records import Demonstration, Origin, Preference, Prompt, Ranking, Record

R = TypeVar("R", bound=Record)

PEEK = 100
"""Rows that are looked at before the format of the whole file is settled: the most frequent one."""

HUB = re.compile(r"[\w.-]+/[\w.-]+(:\w+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a file held. Example: `read("pairs.jsonl").records[0]`."""

    file: str
    """The path as the user gave it."""
    format: str
    """A name of `truing.data.formats.FORMATS`."""
    sha256: str
    """Of the file's bytes; of the rows as JSON lines for a hub data set."""
    records: tuple[Record, ...]
    bad_rows: tuple[BadRow, ...]
    rows_in: int
    """Rows of the file; blank lines are none."""
    rows_used: int
    """Rows that became records: as many as records, but half when preferences were asked for as feedback."""

    def __post_init__(self) -> None:
        assert self.rows_in == self.rows_used + len(self.bad_rows), "every row is used or named"

    @property
    def reasons(self) -> dict[str, int]:
        """How many rows were left out for each reason, most frequent first."""
        return dict(Counter(row.reason for row in self.bad_rows).most_common())


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A file whose format is settled, about to be read."""

    file: str
    format: Format
    rows: Iterator[tuple[Record, Row] | BadRow]
    """One item a row: its record, and its cells under our names."""
    sha256: Callable[[], str]
    """Asked once the items are through."""
    position: Callable[[], tuple[int, int]]
    """How much of how much has been read: bytes of a text file, rows of a table or an array."""

    @property
    def items(self) -> Iterator[Record | BadRow]:
        """The records alone; what is taken here is taken from `rows`."""
        return (item if isinstance(item, BadRow) else item[0] for item in self.rows)


def read(
    path: str | os.PathLike[str],
    *,
    mapping: Mapping[str, str] | None = None,
    on_bad_row: Literal["stop", "skip"] = "stop",
    kind: type[Record] | None = None,
    max_line_bytes: int = MAX_LINE_BYTES,
) -> Reading:
    """All records of a file, or of a hub data set `org/name` or `org/name:split`.

    `mapping` names the file's columns under ours, as in `{"prompt": "question", "completion": "answer"}`. With "stop" the first
    look at all rows ends in an error that lists the bad ones; with "skip" they are in `Reading.bad_rows`. `kind` asks for
    records of one kind, converted where that needs no decision (`as_kind`).
    """
    found = opened(path, mapping=mapping or {}, max_line_bytes=max_line_bytes)
    records: list[Record] = []
    bad_rows: list[BadRow] = []
    for item in found.items:
        if isinstance(item, BadRow):
            bad_rows.append(item)
        else:
            records.append(item)
    used = len(records)
    if bad_rows and on_bad_row == "stop":
        raise DataError(too_many_bad_rows(found.file, bad_rows, len(bad_rows), used + len(bad_rows)))
    return Reading(
        file=found.file,
        format=found.format.name,
        sha256=found.sha256(),
        records=tuple(records) if kind is None else tuple(as_kind(records, kind)),
        bad_rows=tuple(bad_rows),
        rows_in=used + len(bad_rows),
        rows_used=used,
    )


def iterate(
    path: str | os.PathLike[str],
    *,
    mapping: Mapping[str, str] | None = None,
    kind: type[Record] | None = None,
    max_line_bytes: int = MAX_LINE_BYTES,
) -> Iterator[Record | BadRow]:
    """The records and bad rows of a file one after the other, in bounded memory for JSONL, CSV, TSV, Parquet and Arrow files.

    A file without a usable row raises at its end; one that cannot be read at all raises at the call.
    """
    items = opened(path, mapping=mapping or {}, max_line_bytes=max_line_bytes).items
    if kind is None:
        return items
    return chain.from_iterable((item,) if isinstance(item, BadRow) else as_kind((item,), kind) for item in items)


def bad_row_line(row: BadRow) -> bytes:
    """A bad row as a line of JSON with file, row, reason and the row's beginning."""
    line = {"file": row.origin.file, "row": row.origin.row, "reason": row.reason, "text": row.text}
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


def as_kind(records: Iterable[Record], kind: type[R]) -> tuple[R, ...]:
    """Records as records of one kind, where that takes no decision.

    A preference shows its chosen response, ranks its two, and judges both; everything asks its prompt. The pairs of a ranking
    are a method's decision (`Ranking.pairs`), so they are not made here.
    """
    converted: list[R] = []
    for record in records:
        if isinstance(record, kind):
            converted.append(record)
            continue
        found = [item for item in _conversions(record) if isinstance(item, kind)]
        if not found:
            where = record.origin.file if record.origin else "the data"
            hint = "; Ranking.pairs() makes pairs of rankings" if isinstance(record, Ranking) and kind is Preference else ""
            raise DataError(
                f"{where} holds {type(record).__name__} records, and {kind.__name__} records are needed{hint}; "
                "name another file, or a method that learns from such records (`truing recipes` lists them)"
            )
        converted.extend(found)
    return tuple(converted)


def _conversions(record: Record) -> tuple[Record, ...]:
    """What a record also says, without a decision. A prompt keeps the good answer, where there is one, as the tag `shown`."""
    if isinstance(record, Prompt):
        return ()
    asked = record.messages[:-1] if isinstance(record, Demonstration) else record.prompt
    good = _good_answer(record)
    prompt = Prompt(messages=asked, origin=record.origin, tags=record.tags if good is None else {**record.tags, "shown": good})
    if isinstance(record, Preference):
        return prompt, record.as_demonstration(), record.as_ranking(), *record.as_feedback()
    return (prompt,)


def _good_answer(record: Record) -> str | None:
    match record:
        case Demonstration():
            return record.messages[-1].content
        case Preference():
            return record.chosen
        case Ranking():
            return record.responses[0]
        case _:
            return None


def length_bias_filter(pairs: Sequence[Preference], factor: float = 2.0) -> tuple[tuple[Preference, ...], tuple[Preference, ...]]:
    """Parts pairs into kept and dropped: dropped ones have a chosen response of more than `factor` times the rejected one's words.

    Two is the customary factor. Words are what white space parts, so scripts without spaces pass unfiltered.
    """
    if not factor > 0:
        raise ValueError(f"factor is {factor}; it must be above 0")
    kept: list[Preference] = []
    dropped: list[Preference] = []
    for pair in pairs:
        (dropped if is_too_long(pair, factor) else kept).append(pair)
    return tuple(kept), tuple(dropped)


def is_too_long(pair: Preference, factor: float) -> bool:
    """Whether the chosen response has more than `factor` times the rejected one's words."""
    return len(pair.chosen.split()) > factor * len(pair.rejected.split())


def opened(path: str | os.PathLike[str], *, mapping: Mapping[str, str], max_line_bytes: int = MAX_LINE_BYTES) -> Opened:
    """Finds the file or hub data set and settles its format; its rows are read as `items` is gone through."""
    file, place, position = os.fspath(path), Path(path), Position()
    sha256: Callable[[], str]
    if place.is_file():
        source = rows(place, file, max_line_bytes, position)
        sha256 = partial(file_sha256, place)
    elif not place.exists() and HUB.fullmatch(file) and not place.parent.exists() and place.suffix not in EXTENSIONS:
        digest = hashlib.sha256()
        source = _hub_rows(file, digest.update)
        sha256 = digest.hexdigest
    else:
        raise DataError(_missing(place, file))
    format, source = _settle(source, mapping, file)
    found = _convert(source, format, mapping, file)
    return Opened(file=file, format=format, rows=found, sha256=sha256, position=position.read)


def _missing(place: Path, file: str) -> str:
    """Why a path is no data file, with the nearest names in its folder."""
    folder = place if place.is_dir() else place.parent
    if place.exists() and not place.is_dir():
        return f"{file}: not a regular file"
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file()) if folder.is_dir() else []
    if place.is_dir():
        readable = [name for name in names if Path(name.removesuffix(".gz")).suffix in EXTENSIONS]
        return f"{file}: a folder; name one file in it" + (": " + ", ".join(readable[:SHOWN]) if readable else "")
    if not folder.is_dir():
        return f"{file}: no such file; the folder {folder} does not exist either"
    near = difflib.get_close_matches(place.name, names, n=3, cutoff=0.4)
    return f"{file}: no such file" + ("; did you mean " + " or ".join(str(folder / name) for name in near) + "?" if near else "")


def file_sha256(place: Path) -> str:
    """Of the bytes of a file."""
    with place.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _hub_rows(name: str, update: Callable[[bytes], None]) -> Iterator[RawRow | BadRow]:
    """The rows of a hub data set, streamed by `datasets`, which is an extra; its scripts are never run."""
    try:
        import datasets
    except ImportError:
        raise DataError(f"{name}: no such file; to read it from the hub, pip install 'truing[hub]'") from None
    identifier, _, split = name.partition(":")
    try:
        for number, cells in enumerate(datasets.load_dataset(identifier, split=split or "train", streaming=True), start=1):
            update(json.dumps(cells, default=str).encode() + b"\n")
            yield RawRow(number=number, cells=cells)
    except (OSError, ValueError) as error:
        raise DataError(f"{name}: no such file, and not read from the hub: {str(error)[:300]}") from error


def _settle(source: Iterator[RawRow | BadRow], mapping: Mapping[str, str], file: str) -> tuple[Format, Iterator[RawRow | BadRow]]:
    """The format of the first rows, and all rows again. One file has one format: a row of another is a bad row."""
    seen: list[RawRow | BadRow] = []
    columns: list[frozenset[str]] = []
    theirs: set[str] = set()
    for item in source:
        seen.append(item)
        if isinstance(item, RawRow):
            theirs.update(item.cells)
            columns.append(frozenset(renamed(item.cells, mapping)))
        if columns and len(seen) >= PEEK:
            break
    if not seen:
        raise DataError(f"{file}: the file holds no rows")
    if not columns:
        broken = [item for item in seen if isinstance(item, BadRow)]
        raise DataError(too_many_bad_rows(file, broken, len(broken), len(broken)))
    try:
        check_mapping(mapping, theirs)
    except DataError as error:
        raise DataError(f"{file}: {error}") from None
    found = Counter(format for format in map(find, columns) if format is not None)
    if not found:
        raise DataError(f"{file}: {unknown(Counter(columns).most_common(1)[0][0])}")
    return found.most_common(1)[0][0], chain(seen, source)


def _convert(
    source: Iterator[RawRow | BadRow], format: Format, mapping: Mapping[str, str], file: str
) -> Iterator[tuple[Record, Row] | BadRow]:
    """Rows to records of one kind, that of the first; an error at the end when no row was usable."""
    kind: type[Record] | None = None
    first: list[BadRow] = []
    count = 0
    for item in source:
        if isinstance(item, RawRow):
            try:
                row = renamed(item.cells, mapping)
                record = _record(row, format, Origin(file=file, row=item.number))
                if kind is not None and type(record) is not kind:
                    raise BadValueError(f"a {type(record).__name__} in a file of {kind.__name__} records")
            except BadValueError as error:
                item = bad(file, item.number, _in_their_words(str(error), mapping), item.cells)
            else:
                kind = type(record)
                yield record, row
                continue
        count += 1
        if len(first) < SHOWN:
            first.append(item)
        yield item
    if kind is None:
        raise DataError(too_many_bad_rows(file, first, count, count))


def _record(row: Row, format: Format, origin: Origin) -> Record:
    """The record of one row, which must be of the file's format."""
    columns = frozenset(row)
    own = find(columns)
    if own is not format:
        lacking = sorted(format.needs - columns)
        if lacking:
            raise BadValueError(f'missing column "{lacking[0]}"')
        extra = ", ".join(f'"{column}"' for column in sorted(columns - format.needs - format.takes)[:5])
        raise BadValueError(f"with {extra} it is not of the file's format {format.name}")
    return format.record(row, origin)


def _in_their_words(reason: str, mapping: Mapping[str, str]) -> str:
    """A reason with the file's own column names."""
    for ours, theirs in mapping.items():
        reason = reason.replace(f'"{ours}"', f'"{theirs}"')
    return reason


def too_many_bad_rows(file: str, first: Sequence[BadRow], bad_rows: int, rows_in: int) -> str:
    """The first bad rows, how many there are, and the remedy."""
    listed = "\n".join(f"  {row}" for row in first[:SHOWN])
    more = f"\n  and {bad_rows - SHOWN} more" if bad_rows > SHOWN else ""
    if bad_rows == rows_in:
        return f"{file}: none of its {rows_in} rows can be used\n{listed}{more}"
    remedy = f"Correct them, or leave them out: truing data filter {file} to=OUT, or in training on_bad_row=skip"
    return f"{file}: {bad_rows} of {rows_in} rows cannot be used\n{listed}{more}\n{remedy}"
