"""Files to rows: JSONL, JSON, CSV, TSV (each also gzipped), Parquet and Arrow, one row after the other, each with its number.

A row that is broken comes out as a `BadRow`; a file that is broken as a `DataError`. Knows nothing of formats. JSONL, CSV and
Parquet stream; a JSON array is held whole, and so is an Arrow stream file. A Parquet file with a damaged page is named where
polars says so; on some it asks for more memory than there is and ends the process, which nothing here can catch.
"""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import orjson
import polars

from truing.data.problems import EXCERPT, BadRow, BadValueError, DataError
from truing.data.strict_json import as_row, not_utf8, parse_row, parse_rows, refuse_duplicates, why_broken
from truing.records import Origin

FileType = Literal["jsonl", "json", "csv", "tsv", "parquet", "arrow", "arrow_stream"]

EXTENSIONS: dict[str, FileType] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
HEAD = 1 << 16
MAX_LINE_BYTES = 16 << 20
MAX_JSON_BYTES = 1 << 30
BATCH_ROWS = 1024
DATA_ARRAY = re.compile(rb'\{\s*"data"\s*:\s*\[')
JSONL_NAME = re.compile(r"\.(jsonl|ndjson)(\.gz)?$", re.IGNORECASE)
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True, kw_only=True)
class RawRow:
    """One row as it stands in the file. Example: `RawRow(number=3, cells={"prompt": "Hi"})`."""

    number: int
    """As `Origin.row` counts."""
    cells: Mapping[str, object]


class Position:
    """How far reading has come. Example: `Position().read()` is `(0, 1)`: nothing of something."""

    def __init__(self) -> None:
        self.done: Callable[[], int] = lambda: 0
        self.total = 1

    def read(self) -> tuple[int, int]:
        """How much of how much, in bytes or in rows."""
        return self.done(), max(1, self.total)


def rows(
    path: Path, file: str, max_line_bytes: int = MAX_LINE_BYTES, position: Position | None = None
) -> Iterator[RawRow | BadRow]:
    """The rows of a file; `file` is its name in messages. `position` follows."""
    kind, zipped = file_type(path, file)
    position = position or Position()
    if kind in ("parquet", "arrow", "arrow_stream"):
        yield from _table(path, file, kind, position)
        return
    with ExitStack() as stack:
        raw = stack.enter_context(path.open("rb"))
        stream = stack.enter_context(gzip.open(raw, "rb")) if zipped else raw
        position.done, position.total = raw.tell, path.stat().st_size
        if kind == "json":
            yield from _json(stream, file, position)
        elif kind == "jsonl":
            yield from _jsonl(_Lines(stream, file, max_line_bytes), file)
        else:
            yield from _csv(_Lines(stream, file, max_line_bytes), file, "\t" if kind == "tsv" else ",")


def file_type(path: Path, file: str) -> tuple[FileType, bool]:
    """What a file is, by its extension and then its content, and whether it is gzipped."""
    try:
        with path.open("rb") as stream:
            head = stream.read(HEAD)
    except OSError as error:
        raise DataError(f"{file}: cannot be opened: {error.strerror}") from None
    zipped = head.startswith(b"\x1f\x8b")
    if zipped:
        try:
            with gzip.open(path, "rb") as stream:
                head = stream.read(HEAD)
        except (EOFError, OSError, zlib.error) as error:
            raise DataError(f"{file}: the gzip stream is damaged ({error}); fetch or write the file again") from None
    if not head:
        raise DataError(f"{file}: the file is empty")
    binary = _binary(head, file)
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    named = EXTENSIONS.get(suffixes[-1]) if suffixes else None
    if binary:
        if zipped:
            raise DataError(f"{file}: gzip around {binary} is not read; unpack it with gunzip")
        return binary, False
    if named in ("parquet", "arrow"):
        raise DataError(f"{file}: named as {named} but without its signature; the file is damaged or of another type")
    if b"\r" in head and b"\n" not in head:
        raise DataError(f"{file}: lines end in CR alone; save the file with LF or CRLF line ends")
    return named if named in ("csv", "tsv") else _json_or_jsonl(head, file), zipped


def _binary(head: bytes, file: str) -> FileType | None:
    """The binary type that the first bytes tell; an error for those that are not read."""
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith(b"ARROW1"):
        return "arrow"
    if head.startswith(b"\xff\xff\xff\xff"):
        return "arrow_stream"
    if head.startswith(b"PK\x03\x04"):
        raise DataError(f"{file}: a zip archive (or an Excel file); unpack it, or save the sheet as CSV")
    if head.startswith(b"\x1f\x8b"):
        raise DataError(f"{file}: gzipped twice; unpack it once")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or head[:200].count(0) * 4 > len(head[:200]):
        raise DataError(f"{file}: UTF-16 or binary, not UTF-8; save it as UTF-8")
    return None


def _json_or_jsonl(head: bytes, file: str) -> FileType:
    """Whether text is one JSON value or one per line; the names .json and .jsonl are often exchanged."""
    start = head.removeprefix(BOM).lstrip()
    if not start:
        raise DataError(f"{file}: the file is empty")
    by_name: FileType = "json" if file.lower().removesuffix(".gz").endswith(".json") else "jsonl"
    if DATA_ARRAY.match(start):
        return "json"
    first, newline, rest = start.partition(b"\n")
    try:
        orjson.loads(first)
    except orjson.JSONDecodeError:
        # The first line is broken, or longer than the head, or opens a JSON value that goes on below.
        if len(head) == HEAD and not newline:
            return "json" if start.startswith(b"[") else by_name
        if start.startswith(b"["):
            return "json"
        if start.startswith(b"{"):
            return by_name if first.rstrip().endswith((b"{", b"[", b",")) else "jsonl"
        if by_name == "jsonl" and JSONL_NAME.search(file):
            return "jsonl"
        raise DataError(f"{file}: neither JSON, JSONL, CSV, TSV, Parquet nor Arrow; name it with its extension") from None
    return "json" if start.startswith(b"[") and not rest.strip() else "jsonl"


class _Lines:
    """Physical lines with their numbers, never longer than a limit; a line that is too long comes out as None."""

    def __init__(self, stream: io.BufferedIOBase, file: str, limit: int) -> None:
        self.stream = stream
        self.file = file
        self.limit = limit
        self.number = 0
        self.open_quote = False
        """Whether the line that was too long held an odd number of quotes."""

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> bytes | None:
        line = self._read()
        if not line:
            raise StopIteration
        self.number += 1
        if self.number == 1:
            line = line.removeprefix(BOM)
        if len(line) <= self.limit:
            return line
        quotes = line.count(b'"')
        while line and not line.endswith(b"\n"):
            line = self._read()
            quotes += line.count(b'"')
        self.open_quote = quotes % 2 == 1
        return None

    def _read(self) -> bytes:
        try:
            return self.stream.readline(self.limit + 1)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            where = f"{self.file}:{self.number + 1}"
            raise DataError(f"{where}: the gzip stream is damaged from here on ({error}); fetch or write the file again") from None

    def too_long(self) -> str:
        return f"line longer than {self.limit} bytes"


def bad(file: str, number: int, reason: str, text: bytes | str | Mapping[str, object]) -> BadRow:
    """A bad row with its beginning as text."""
    if isinstance(text, bytes):
        text = text[: 4 * EXCERPT].decode(errors="replace")
    elif not isinstance(text, str):
        text = json.dumps(text, ensure_ascii=False, default=str)
    return BadRow(origin=Origin(file=file, row=number), reason=reason, text=text[:EXCERPT])


def _jsonl(lines: _Lines, file: str) -> Iterator[RawRow | BadRow]:
    for line in lines:
        if line is None:
            yield bad(file, lines.number, lines.too_long(), "")
            continue
        if not line.strip():
            continue
        try:
            cells = parse_row(line)
        except BadValueError as error:
            yield bad(file, lines.number, str(error), line)
        else:
            yield RawRow(number=lines.number, cells=cells)


def _json(stream: io.BufferedIOBase, file: str, position: Position) -> Iterator[RawRow | BadRow]:
    try:
        data = stream.read(MAX_JSON_BYTES + 1).removeprefix(BOM)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{file}: the gzip stream is damaged ({error}); fetch or write the file again") from None
    if len(data) > MAX_JSON_BYTES:
        raise DataError(f"{file}: more than {MAX_JSON_BYTES >> 30} GiB of JSON; write it as JSONL, which streams")
    try:
        items, twins = parse_rows(data)
    except orjson.JSONDecodeError as error:
        # The whole file is one value, so one broken place costs all of it.
        raise DataError(f"{file}:{error.lineno}: {why_broken(data, error)}; as JSONL only that row would be lost") from None
    except BadValueError as error:
        raise DataError(f"{file}: {error}") from None
    number, position.total = 0, len(items)
    position.done = lambda: number
    for number, item in enumerate(items, start=1):
        try:
            _, cells = as_row(item)
            if twins is not None:
                refuse_duplicates(twins[number - 1])
        except BadValueError as error:
            yield bad(file, number, str(error), item if isinstance(item, dict) else repr(item))
        else:
            yield RawRow(number=number, cells=cells)


class _Texts:
    """Lines decoded for `csv`. A fault inside a quoted field must not throw the rows after it out of step: it is noted, and the
    record read to its end."""

    def __init__(self, lines: _Lines) -> None:
        self.lines = lines
        self.read: list[str] = []
        self.fault = ""

    def begin(self) -> int:
        """Forgets the last record and gives the line of the next."""
        self.read.clear()
        self.fault = ""
        return self.lines.number + 1

    def __iter__(self) -> "_Texts":
        return self

    def __next__(self) -> str:
        line = next(self.lines)
        if line is None:
            if self.read or self.lines.open_quote:
                where = f"{self.lines.file}:{self.lines.number}"
                raise DataError(f"{where}: {self.lines.too_long()} inside a quoted field; what follows cannot be told apart")
            raise BadValueError(self.lines.too_long())
        try:
            text = line.decode()
        except UnicodeDecodeError as wrong:
            text, self.fault = line.decode(errors="replace"), not_utf8(line, wrong)
        if "\0" in text:
            self.fault = "NUL byte"
        self.read.append(text)
        return text

    def resume(self) -> str:
        """After broken quoting, reads on until quotes are even, where the next record begins; says which lines went."""
        first = self.lines.number - len(self.read) + 1
        quotes = sum(text.count('"') for text in self.read)
        while quotes % 2:
            text = next(self, None)
            if text is None:
                return f" (a quote is not closed; lines {first} to {self.lines.number}, the end, went with it)"
            quotes += text.count('"')
            del self.read[5:]
        return f" (lines {first} to {self.lines.number} went with it)" if self.lines.number > first else ""


def _csv(lines: _Lines, file: str, delimiter: str) -> Iterator[RawRow | BadRow]:
    csv.field_size_limit(max(csv.field_size_limit(), lines.limit))
    texts = _Texts(lines)
    reader = csv.reader(texts, delimiter=delimiter, strict=True)
    try:
        header = [name.strip() for name in next(reader)]
    except (csv.Error, BadValueError) as error:
        raise DataError(f"{file}:1: the header cannot be read: {error}") from None
    if texts.fault:
        raise DataError(f"{file}:1: the header cannot be read: {texts.fault}")
    _check_header(header, file, delimiter)
    while True:
        begin = texts.begin()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield bad(file, begin, f"broken CSV: {error}{texts.resume()}", "".join(texts.read[:5]))
            continue
        except BadValueError as error:
            yield bad(file, begin, str(error), "")
            continue
        if not fields:
            continue
        reason: str = texts.fault
        if not reason and len(fields) != len(header):
            reason = f"{len(fields)} fields where the header has {len(header)}"
        if reason:
            yield bad(file, begin, reason, "".join(texts.read[:5]))
        else:
            yield RawRow(number=begin, cells=dict(zip(header, fields, strict=True)))


def _check_header(header: list[str], file: str, delimiter: str) -> None:
    """Raises for a header with a name twice, or of another delimiter."""
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f'{file}:1: the header names "{twice[0]}" twice')
    if len(header) == 1:
        other = next((sign for sign in ";\t,|" if sign != delimiter and sign in header[0]), None)
        if other:
            raise DataError(
                f"{file}:1: fields are parted by {other!r}, not {delimiter!r}; save it as CSV with commas, or name it .tsv"
            )


def _table(path: Path, file: str, kind: FileType, position: Position) -> Iterator[RawRow | BadRow]:
    number = 0
    position.done = lambda: number
    try:
        if kind == "arrow_stream":
            whole = polars.read_ipc_stream(path)
            position.total, batches = len(whole), whole.iter_slices(BATCH_ROWS)
        else:
            lazy = polars.scan_parquet(path) if kind == "parquet" else polars.scan_ipc(path)
            position.total = int(lazy.select(polars.len()).collect().item())
            batches = iter(lazy.collect_batches(chunk_size=BATCH_ROWS))
        for batch in batches:
            for cells in batch.iter_rows(named=True):
                number += 1
                yield RawRow(number=number, cells=cells)
    except (polars.exceptions.PolarsError, polars.exceptions.PanicException, OSError) as error:
        said = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise DataError(f"{file}: cannot be read as {kind} after row {number}: {said}") from None
