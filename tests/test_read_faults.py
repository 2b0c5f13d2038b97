"""Every fault in every kind of file is named with file, line and reason; nothing is lost without a word."""

import codecs
import gzip
import hashlib
import io
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_files import FAULTY, FLAT, LABELS, LOOSE, NESTED, ROWS, TEXT, TURNS, Row, line_of, written
from truing.data.problems import DataError
from truing.data.read import Reading, iterate, read


def assert_one_bad_row(path: Path, line: int, reason: str, **options: int) -> None:
    """Skipping loses that row alone; stopping names it."""
    reading = read(path, on_bad_row="skip", **options)
    assert [(row.origin.row, row.origin.file) for row in reading.bad_rows] == [(line, str(path))]
    assert reason in reading.bad_rows[0].reason
    assert len(reading.bad_rows[0].text) <= 200
    assert (reading.rows_in, len(reading.records)) == (5, 4)
    with pytest.raises(DataError) as stopped:
        read(path, **options)
    assert f"{path}:{line}: {reading.bad_rows[0].reason}" in str(stopped.value)
    assert "1 of 5 rows" in str(stopped.value)


VALUE_FAULTS: list[tuple[str, list[Row], tuple[str, ...], Row, str]] = [
    ("empty chosen", ROWS, FLAT, {"chosen": ""}, '"chosen" is empty'),
    ("blank rejected", ROWS, FLAT, {"rejected": " \n\t"}, '"rejected" is empty'),
    ("zero-width response", ROWS, FLAT, {"chosen": "\u200b\ufeff"}, '"chosen" is empty'),
    ("empty prompt", ROWS, FLAT, {"prompt": " "}, '"prompt" is empty'),
    ("null chosen", ROWS, NESTED, {"chosen": None}, '"chosen" is null'),
    ("equal sides", ROWS, FLAT, {"chosen": "Same", "rejected": "Same "}, "chosen and rejected are equal"),
    ("NUL in text", ROWS, NESTED, {"chosen": "Yes\0"}, '"chosen" holds a NUL character'),
    ("number for text", ROWS, LOOSE, {"chosen": 7}, '"chosen" is a number, not text'),
    ("turns against text", ROWS, LOOSE, {"chosen": [{"role": "assistant"}]}, '"chosen" is a list and "rejected" is text'),
    ("label 2", LABELS, FLAT, {"label": 2}, '"label" is'),
    ("unknown role", TURNS, NESTED, {"messages": [{"role": "narrator", "content": "Hi"}]}, "unknown role 'narrator'"),
    ("no answer", TURNS, NESTED, {"messages": [{"role": "user", "content": "Hi"}]}, "broken role order: the conversation ends"),
    ("two systems", TURNS, NESTED, {"messages": [{"role": "system", "content": "Be"}] * 2}, "broken role order: 2 system turns"),
    ("no turns", TURNS, NESTED, {"messages": []}, '"messages" is empty'),
    ("null content", TURNS, NESTED, {"messages": [{"role": "user", "content": None}]}, 'message 1 of "messages" has no "content"'),
]


@pytest.mark.parametrize(
    ("rows", "extension", "change", "reason"),
    [
        pytest.param(rows, extension, change, reason, id=f"{name}-{extension}")
        for name, rows, extensions, change, reason in VALUE_FAULTS
        for extension in extensions
    ],
)
def test_a_fault_in_one_value_costs_one_named_row(
    tmp_path: Path, rows: list[Row], extension: str, change: Row, reason: str
) -> None:
    changed = [{**row, **change} if i == FAULTY else row for i, row in enumerate(rows, start=1)]
    assert_one_bad_row(written(tmp_path / f"data.{extension}", changed), line_of(FAULTY, extension), reason)


GOOD_LINE = b'{"prompt": "Q", "chosen": "Yes", "rejected": "No"}'
LINE_FAULTS: list[tuple[str, bytes, str]] = [
    ("bad byte", b'{"prompt": "Q\xff", "chosen": "Yes", "rejected": "No"}', "not UTF-8: byte 0xff at position 14"),
    ("overlong", b'{"prompt": "Q\xc0\x80", "chosen": "Yes", "rejected": "No"}', "not UTF-8: byte 0xc0"),
    ("encoded surrogate", b'{"prompt": "Q\xed\xa0\x80", "chosen": "Yes", "rejected": "No"}', "not UTF-8: byte 0xed"),
    ("escaped surrogate", b'{"prompt": "Q\\ud800", "chosen": "Yes", "rejected": "No"}', "lone surrogate"),
    ("NUL byte", b'{"prompt": "Q\0", "chosen": "Yes", "rejected": "No"}', "NUL byte"),
    ("NaN", b'{"prompt": "Q", "chosen": "Yes", "rejected": "No", "score": NaN}', "NaN, Infinity"),
    ("-Infinity", b'{"prompt": "Q", "chosen": "Yes", "rejected": "No", "score": -Infinity}', "NaN, Infinity"),
    ("1e999", b'{"prompt": "Q", "chosen": "Yes", "rejected": "No", "score": 1e999}', "a number too large"),
    ("cut off", GOOD_LINE[:-9], "broken JSON"),
    ("two on a line", GOOD_LINE + GOOD_LINE, "broken JSON"),
    ("too deep for the parser", b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested deeper than 64 levels"),
]
ROW_FAULTS: list[tuple[str, bytes, str]] = [
    ("a list", b'["Q", "Yes", "No"]', "a list, not an object"),
    ("a number", b"7", "a number, not an object"),
    ("null", b"null", "null, not an object"),
    ("key twice", b'{"prompt": "Q", "chosen": "Yes", "rejected": "No", "chosen" : "No"}', 'the key "chosen" stands twice'),
    ("inner key twice", b'{"prompt": "Q", "chosen": "Yes", "rejected": "No", "x": [{"a": 1, "a": 2}]}', 'the key "a" stands twice'),
    ("key twice, masked", b'{"prompt": "Q", "chosen": "Yes", "rejected": "No", "\\\\": 1, "\\\\": 2}', "stands twice"),
    ("too deep", b'{"prompt": ' + b"[" * 80 + b"]" * 80 + b', "chosen": "Yes", "rejected": "No"}', "nested deeper than 64 levels"),
    ("missing column", b'{"prompt": "Q", "chosen": "Yes"}', 'missing column "rejected"'),
    (
        "other format",
        b'{"prompt": "Q", "chosen": "Yes", "rejected": "No", "conversations": []}',
        'with "conversations" it is not of',
    ),
]


@pytest.mark.parametrize("extension", ["jsonl", "jsonl.gz"])
@pytest.mark.parametrize(("line", "reason"), [pytest.param(*fault[1:], id=fault[0]) for fault in LINE_FAULTS + ROW_FAULTS])
def test_a_broken_line_of_jsonl_costs_that_line(tmp_path: Path, extension: str, line: bytes, reason: str) -> None:
    path = tmp_path / f"data.{extension}"
    data = b"\n".join([GOOD_LINE, GOOD_LINE, line, GOOD_LINE, GOOD_LINE])
    path.write_bytes(gzip.compress(data) if extension.endswith("gz") else data)
    assert_one_bad_row(path, 3, reason)


@pytest.mark.parametrize(("item", "reason"), [pytest.param(*fault[1:], id=fault[0]) for fault in ROW_FAULTS])
def test_a_wrong_item_of_a_json_array_costs_that_item(tmp_path: Path, item: bytes, reason: str) -> None:
    path = tmp_path / "data.json"
    path.write_bytes(b"[" + b",\n".join([GOOD_LINE, GOOD_LINE, item, GOOD_LINE, GOOD_LINE]) + b"]")
    assert_one_bad_row(path, 3, reason)


@pytest.mark.parametrize(("item", "reason"), [pytest.param(*fault[1:], id=fault[0]) for fault in LINE_FAULTS])
def test_a_broken_json_array_is_refused_whole_with_its_line(tmp_path: Path, item: bytes, reason: str) -> None:
    path = tmp_path / "data.json"
    path.write_bytes(b"[" + b",\n".join([GOOD_LINE, GOOD_LINE, item, GOOD_LINE]) + b"]")
    with pytest.raises(DataError, match=r"data\.json:(1|3|4): ") as refused:
        read(path, on_bad_row="skip")
    assert reason.split(" at ")[0] in str(refused.value)


CSV_FAULTS: list[tuple[str, bytes, str]] = [
    ("bad byte", b"Q\xff,Yes,No", "not UTF-8: byte 0xff at position 2"),
    ("bad byte in a quoted field", b'"Q\xff\n,x,",Yes,No', "not UTF-8"),
    ("NUL byte", b"Q\0,Yes,No", "NUL byte"),
    ("too few fields", b"Q,Yes", "2 fields where the header has 3"),
    ("too many fields", b"Q,Yes,No,", "4 fields where the header has 3"),
    ("quote inside quotes", b'"say "hi" now",Yes,No', "broken CSV"),
    ("stray quote, closed on a later line", b'"Q"x "more\nlines",Yes,No', "(lines 4 to 5 went with it)"),
]


@pytest.mark.parametrize("extension", ["csv", "csv.gz", "tsv"])
@pytest.mark.parametrize(("line", "reason"), [pytest.param(*fault[1:], id=fault[0]) for fault in CSV_FAULTS])
def test_a_broken_line_of_csv_costs_that_row(tmp_path: Path, extension: str, line: bytes, reason: str) -> None:
    path = tmp_path / f"data.{extension}"
    data = b"\r\n".join([b"prompt,chosen,rejected", b"Q,Yes,No", b"Q,Yes,No", line, b"Q,Yes,No", b"Q,Yes,No"])
    if extension == "tsv":
        data = data.replace(b",", b"\t")
    path.write_bytes(gzip.compress(data) if extension.endswith("gz") else data)
    assert_one_bad_row(path, 4, reason)


def test_a_quote_never_closed_says_what_went_with_it(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes(b'prompt,chosen,rejected\nQ,Yes,No\n"Q,Yes,No\nQ,Yes,No\nQ,Yes,No\n')
    reading = read(path, on_bad_row="skip")
    assert [str(row) for row in reading.bad_rows] == [
        f"{path}:3: broken CSV: unexpected end of data (a quote is not closed; lines 3 to 5, the end, went with it)"
    ]
    assert len(reading.records) == 1


@pytest.mark.parametrize("extension", ["jsonl", "csv"])
def test_an_absurdly_long_line_is_refused_without_being_held(tmp_path: Path, extension: str) -> None:
    rows = [{**row, "chosen": "y" * 5000} if i == FAULTY else row for i, row in enumerate(ROWS, start=1)]
    path = written(tmp_path / f"data.{extension}", rows)
    assert_one_bad_row(path, line_of(FAULTY, extension), "line longer than 1000 bytes", max_line_bytes=1000)
    assert read(path).rows_in == 5


def test_a_long_line_that_opens_a_quote_ends_the_csv(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes(b'prompt,chosen,rejected\nQ,Yes,No\nQ,"' + b"y" * 2000 + b'\n,",No\n')
    with pytest.raises(DataError, match=r"data\.csv:3: line longer than 1000 bytes inside a quoted field"):
        read(path, on_bad_row="skip", max_line_bytes=1000)


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.jsonl", GOOD_LINE)
    return buffer.getvalue()


JSONL = b"\n".join([GOOD_LINE] * 2000)
FILE_FAULTS: list[tuple[str, str, bytes, str]] = [
    ("empty", "a.jsonl", b"", "the file is empty"),
    ("empty gz", "a.jsonl.gz", gzip.compress(b""), "the file is empty"),
    ("byte order mark alone", "a.jsonl", codecs.BOM_UTF8, "the file is empty"),
    ("blank lines", "a.jsonl", b"\n \r\n\n", "the file is empty"),
    ("no items", "a.json", b"[]", "the file holds no rows"),
    ("header alone", "a.csv", b"prompt,chosen,rejected\n", "the file holds no rows"),
    ("UTF-16 with mark", "a.jsonl", GOOD_LINE.decode().encode("utf-16"), "UTF-16 or binary"),
    ("UTF-16 without mark", "a.csv", "prompt,chosen\nä,b\n".encode("utf-16-le"), "UTF-16 or binary"),
    ("zip", "a.zip", zipped(), "a zip archive"),
    ("spreadsheet", "a.csv", zipped(), "a zip archive"),
    ("CR line ends", "a.jsonl", JSONL.replace(b"\n", b"\r"), "CR alone"),
    ("CR line ends", "a.csv", b"prompt,chosen,rejected\rQ,Yes,No\r", "CR alone"),
    ("gz cut off", "a.jsonl.gz", gzip.compress(JSONL, mtime=0)[:-40], "the gzip stream is damaged"),
    ("gz of garbage", "a.jsonl.gz", b"\x1f\x8b" + b"x" * 40, "the gzip stream is damaged"),
    ("gz twice", "a.jsonl.gz", gzip.compress(gzip.compress(JSONL)), "gzipped twice"),
    ("parquet in gz", "a.parquet.gz", gzip.compress(b"PAR1xxxx"), "gzip around parquet"),
    ("parquet of garbage", "a.parquet", b"PAR1" + b"x" * 40 + b"PAR1", "cannot be read as parquet after row 0"),
    ("parquet by name only", "a.parquet", GOOD_LINE, "without its signature"),
    ("arrow of garbage", "a.arrow", b"ARROW1\0\0garbage", "cannot be read as arrow"),
    ("arrow stream of garbage", "a.arrow", b"\xff\xff\xff\xff" + b"x" * 40, "cannot be read as arrow_stream"),
    ("plain text", "a.txt", b"Dear diary,\n", "neither JSON, JSONL, CSV"),
    ("semicolons", "a.csv", b"prompt;chosen;rejected\nQ;Yes;No\n", "parted by ';'"),
    ("column twice", "a.csv", b"prompt,chosen,chosen\nQ,Yes,No\n", 'a.csv:1: the header names "chosen" twice'),
    ("header not UTF-8", "a.csv", b"prompt\xff,chosen\nQ,Yes\n", "the header cannot be read: not UTF-8"),
    ("missing column", "a.csv", b"prompt,chosen\nQ,Yes\n", 'which lacks "rejected"'),
    ("object without rows", "a.json", b'{\n"rows": []\n}', 'such an array under "data"'),
    ("unknown columns", "a.jsonl", b'{"question": "Q"}\n', 'columns "question" are of no known format'),
    ("no good row", "a.jsonl", b'{"prompt": ""}\n{"prompt": " "}\n', "none of its 2 rows can be used"),
    ("no parsed row", "a.jsonl", b"x\ny\n", "none of its 2 rows can be used"),
    ("texts without prompt", "a.jsonl", b'{"chosen": "The sky is blue", "rejected": "The sky"}\n', 'add a "prompt" column'),
]


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize(("name", "data", "reason"), [pytest.param(*fault[1:], id=fault[0]) for fault in FILE_FAULTS])
def test_a_file_that_cannot_be_used_says_why(tmp_path: Path, name: str, data: bytes, reason: str, skip: bool) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError) as refused:
        read(path, on_bad_row="skip" if skip else "stop")
    assert reason in str(refused.value)
    assert str(path) in str(refused.value)


def test_a_gzip_stream_damaged_late_gives_the_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    rows = b"".join(b'{"prompt": "%s"}\n' % hashlib.sha256(b"%d" % i).hexdigest().encode() for i in range(3000))
    path.write_bytes(gzip.compress(rows)[:-5000])
    items = iterate(path)
    with pytest.raises(DataError, match=r"a\.jsonl\.gz:2\d\d\d: the gzip stream is damaged from here on"):
        list(items)


EMPTY_LINE = b'{"prompt": "", "chosen": "a", "rejected": "b"}'
LINES = st.sampled_from([GOOD_LINE, EMPTY_LINE, *(fault[1] for fault in LINE_FAULTS[:10] + ROW_FAULTS)])


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(st.one_of(LINES, st.binary(max_size=30).map(lambda data: data.replace(b"\n", b"").replace(b"\r", b""))), max_size=8)
)
def test_every_row_that_goes_in_is_used_or_named(tmp_path: Path, lines: list[bytes]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join([*[GOOD_LINE] * 8, *lines, GOOD_LINE]))  # most rows settle the format
    reading: Reading = read(path, on_bad_row="skip")
    rows = 9 + sum(1 for line in lines if line.strip())
    assert reading.rows_in == len(reading.records) + len(reading.bad_rows) == rows
    named = [item.origin.row for item in (*reading.records, *reading.bad_rows) if item.origin]
    assert len(set(named)) == rows
    assert sum(reading.reasons.values()) == len(reading.bad_rows)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.sampled_from(TEXT), st.lists(st.tuples(st.integers(0, 100_000), st.integers(0, 255)), min_size=1, max_size=4))
def test_flipped_bytes_give_records_or_a_named_error(tmp_path: Path, extension: str, flips: list[tuple[int, int]]) -> None:
    """Not of Parquet and Arrow: on some damaged pages polars ends the process itself, out of memory, before Python can speak."""
    path = written(tmp_path / f"flipped.{extension}", ROWS)
    data = bytearray(path.read_bytes())
    for place, byte in flips:
        data[place % len(data)] = byte
    path.write_bytes(data)
    try:
        reading = read(path, on_bad_row="skip")
    except DataError as error:
        assert str(path) in str(error)  # noqa: PT017
    else:
        assert reading.rows_in == len(reading.records) + len(reading.bad_rows)
