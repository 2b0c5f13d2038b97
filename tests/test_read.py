"""Reading files: the same records out of every type of file, formats, kinds, mappings, the hub, streaming."""

import codecs
import hashlib
import json
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import polars
import pytest

from data_files import FLAT, ROWS, Row, line_of, written
from truing.data.problems import BadRow, DataError
from truing.data.read import as_kind, bad_row_line, iterate, length_bias_filter, opened, read
from truing.records import Demonstration, Feedback, Message, Origin, Preference, Prompt, Ranking, Record

LINE = b'{"prompt": "Q", "chosen": "Yes", "rejected": "No"}'
PREFERENCES = tuple(
    Preference(prompt=(Message(role="user", content=f"Question {i}?"),), chosen=f"Yes {i}.", rejected=f"No {i}.")
    for i in range(1, 6)
)


def bare(records: tuple[Record, ...]) -> tuple[Preference, ...]:
    return tuple(Preference(prompt=r.prompt, chosen=r.chosen, rejected=r.rejected) for r in records if isinstance(r, Preference))


@pytest.mark.parametrize("extension", FLAT)
def test_all_kinds_of_files_hold_the_same_records(tmp_path: Path, extension: str) -> None:
    path = written(tmp_path / f"data.{extension}", ROWS)
    reading = read(path)
    assert bare(reading.records) == PREFERENCES
    assert reading.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [record.origin for record in reading.records] == [Origin(file=str(path), row=line_of(i, extension)) for i in range(1, 6)]


def test_files_are_known_by_content_where_the_name_says_nothing_or_misleads(tmp_path: Path) -> None:
    names = {
        "a.json": "jsonl",
        "a.jsonl": "json",
        "a": "jsonl",
        "b.txt": "json",
        "c.bin": "parquet",
        "d.jsonl": "jsonl.gz",
        "e": "arrow",
    }
    for name, extension in names.items():
        path = written(tmp_path / f"data.{extension}", ROWS).rename(tmp_path / name)
        assert bare(read(path).records) == PREFERENCES, (extension, name)
    stream = tmp_path / "f.arrow"
    polars.DataFrame(ROWS).write_ipc_stream(stream)
    assert bare(read(stream).records) == PREFERENCES
    wrapped = tmp_path / "g.json"
    for indent in (None, 2):
        wrapped.write_text(json.dumps({"version": 1, "data": ROWS} if indent else {"data": ROWS * 200}, indent=indent))
        assert len(read(wrapped).records) == (5 if indent else 1000)


@pytest.mark.parametrize("extension", ["jsonl", "json", "csv", "tsv"])
def test_byte_order_mark_and_crlf_and_a_missing_last_line_end_change_nothing(tmp_path: Path, extension: str) -> None:
    path = written(tmp_path / f"data.{extension}", ROWS)
    data = path.read_bytes().replace(b"\r\n", b"\n").strip()
    path.write_bytes(codecs.BOM_UTF8 + data.replace(b"\n", b"\r\n"))
    assert bare(read(path).records) == PREFERENCES


def test_blank_lines_are_no_rows_but_are_counted_as_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n\n" + LINE + b"\n \n\r\n" + LINE)
    assert [record.origin.row for record in read(path).records if record.origin] == [3, 6]


def test_csv_counts_lines_through_quoted_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'prompt,good_answer,bad_answer,kind\n"one\ntwo\n",Yes,No,a\n\nQ,"Y ""e"" s",No,b\nQ,Same,Same,c\n')
    reading = read(path, on_bad_row="skip")
    assert [record.origin.row for record in reading.records if record.origin] == [2, 6]
    assert [str(row) for row in reading.bad_rows] == [f"{path}:7: chosen and rejected are equal"]
    assert reading.records[0].tags == {"kind": "a"}


def test_a_long_csv_field_is_read(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", [{"prompt": "Q", "chosen": "y" * 300_000, "rejected": "No"}])
    assert len(read(path).records) == 1


def test_text_with_quotes_and_colons_is_no_duplicate_key(tmp_path: Path) -> None:
    text = '{"a": 1, "a": 2} and "a": \\": : \\'
    path = written(tmp_path / "a.jsonl", [{"prompt": text, "chosen": ': "x":', "rejected": text}])
    record = read(path).records[0]
    assert isinstance(record, Preference)
    assert (record.prompt[0].content, record.chosen) == (text, ': "x":')


def test_the_format_is_that_of_most_rows_so_a_broken_first_row_does_not_decide(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [{"prompt": "Q"}, *ROWS])
    reading = read(path, on_bad_row="skip")
    assert [str(row) for row in reading.bad_rows] == [f'{path}:1: missing column "chosen"']


def test_one_file_holds_one_kind(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [{"instruction": "Q", "output": "A"}, {"instruction": "Q", "output": ["A", "B"]}])
    reading = read(path, on_bad_row="skip")
    assert [str(row) for row in reading.bad_rows] == [f"{path}:2: a Ranking in a file of Demonstration records"]


def test_an_error_lists_ten_rows_and_counts_the_rest(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [*ROWS, *[{"prompt": "Q", "chosen": "", "rejected": "No"}] * 12])
    with pytest.raises(DataError) as stopped:
        read(path)
    text = str(stopped.value)
    assert text.startswith(f"{path}: 12 of 17 rows cannot be used\n  {path}:6: ")
    assert text.count('"chosen" is empty') == 10
    remedy = f"Correct them, or leave them out: truing data filter {path} to=OUT, or in training on_bad_row=skip"
    assert text.endswith(f"and 2 more\n{remedy}")


def test_reasons_speak_of_the_file_s_own_columns(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [{"question": "Q", "answer": "A"}, {"question": "Q", "answer": ""}, {"question": "Q"}])
    reading = read(path, mapping={"prompt": "question", "completion": "answer"}, on_bad_row="skip")
    assert list(reading.reasons) == ['"answer" is empty', 'missing column "answer"']
    with pytest.raises(DataError, match=r'a\.jsonl: mapping prompt=qestion.*did you mean "question"'):
        read(path, mapping={"prompt": "qestion"})


def test_missing_files_and_folders_name_what_is_near(tmp_path: Path) -> None:
    path = written(tmp_path / "pairs.jsonl", ROWS)
    with pytest.raises(DataError, match=f"did you mean {path}"):
        read(tmp_path / "pears.jsonl")
    with pytest.raises(DataError, match=r"a folder; name one file in it: pairs\.jsonl"):
        read(tmp_path)
    with pytest.raises(DataError, match="does not exist either"):
        read(tmp_path / "no" / "pairs.jsonl")


def hub(monkeypatch: pytest.MonkeyPatch, rows: list[Row] | Exception) -> list[tuple[str, str, bool]]:
    """A stand-in for the `datasets` package; what it was asked comes back."""
    asked: list[tuple[str, str, bool]] = []

    def load_dataset(name: str, *, split: str, streaming: bool) -> Iterator[Row]:
        asked.append((name, split, streaming))
        if isinstance(rows, Exception):
            raise rows
        return iter(rows)

    module = types.ModuleType("datasets")
    monkeypatch.setattr(module, "load_dataset", load_dataset, raising=False)
    monkeypatch.setitem(sys.modules, "datasets", module)
    return asked


def test_a_hub_name_streams_through_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = hub(monkeypatch, ROWS)
    reading = read("org/pairs")
    assert bare(reading.records) == PREFERENCES
    assert str(reading.records[1].origin) == "org/pairs:2"
    assert read("org/pairs:test_prefs").sha256 == reading.sha256
    assert asked == [("org/pairs", "train", True), ("org/pairs", "test_prefs", True)]


def test_a_hub_that_does_not_answer_and_a_missing_extra_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, ConnectionError("offline"))
    with pytest.raises(DataError, match="org/pairs: no such file, and not read from the hub: offline"):
        read("org/pairs")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'truing\[hub\]'"):
        read("org/pairs")


def test_a_kind_is_converted_where_no_decision_is_needed(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", ROWS[:2])
    demonstration, ranking, prompt = (read(path, kind=kind).records[0] for kind in (Demonstration, Ranking, Prompt))
    assert isinstance(demonstration, Demonstration)
    assert demonstration.messages[-1] == Message(role="assistant", content="Yes 1.")
    assert isinstance(ranking, Ranking)
    assert ranking.responses == ("Yes 1.", "No 1.")
    assert isinstance(prompt, Prompt)
    assert prompt.messages == (Message(role="user", content="Question 1?"),)
    feedback = read(path, kind=Feedback)
    assert (len(feedback.records), feedback.rows_used, feedback.rows_in) == (4, 2, 2)
    assert [record.desirable for record in feedback.records if isinstance(record, Feedback)] == [True, False, True, False]
    assert [type(item) for item in iterate(path, kind=Feedback)] == [Feedback] * 4


def test_a_kind_that_the_file_does_not_hold_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [{"prompt": "Q", "responses": ["a", "b", "c"]}])
    with pytest.raises(DataError, match=r"a\.jsonl holds Ranking records, and Preference records are needed; Ranking\.pairs"):
        read(path, kind=Preference)
    with pytest.raises(DataError, match="the data holds Prompt records, and Demonstration records are needed"):
        as_kind((Prompt(messages=(Message(role="user", content="Q"),)),), Demonstration)


def test_a_bad_row_is_a_line_of_json() -> None:
    line = bad_row_line(BadRow(origin=Origin(file="a.csv", row=3), reason="tie", text="é"))
    assert line.endswith(b"}\n")
    assert json.loads(line) == {"file": "a.csv", "row": 3, "reason": "tie", "text": "é"}


@pytest.mark.parametrize("extension", ["jsonl", "jsonl.gz", "csv", "json", "parquet", "arrow"])
def test_how_far_reading_has_come_grows_to_the_end(extension: str, tmp_path: Path) -> None:
    path = written(
        tmp_path / f"data.{extension}", [{"prompt": f"q{i}", "chosen": f"yes {i}", "rejected": "no"} for i in range(500)]
    )
    file = opened(path, mapping={})
    seen = []
    for _ in file.items:
        seen.append(file.position())
    assert len({total for _, total in seen[200:]}) == 1
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1]


def test_the_length_filter_drops_a_chosen_answer_of_more_than_twice_the_words() -> None:
    twice = Preference(prompt=PREFERENCES[0].prompt, chosen="a b c d", rejected="e f")
    more = Preference(prompt=PREFERENCES[0].prompt, chosen="a b c d e", rejected="e f")
    assert length_bias_filter((twice, more, more.swapped())) == ((twice, more.swapped()), (more,))
    assert length_bias_filter((twice, more), factor=2.5) == ((twice, more), ())
    with pytest.raises(ValueError, match="above 0"):
        length_bias_filter((twice,), factor=0.0)


STREAM = """
import sys, tracemalloc
from truing.data.read import iterate
from truing.records import Preference
tracemalloc.start()
for path in sys.argv[1:]:
    tracemalloc.reset_peak()
    print(sum(isinstance(item, Preference) for item in iterate(path)), tracemalloc.get_traced_memory()[1])
"""


def test_two_hundred_thousand_rows_stream_without_being_held(tmp_path: Path) -> None:
    """In a process of its own: the type checks of a test run would make it minutes."""
    paths = [tmp_path / "many.jsonl"]
    with paths[0].open("wb") as stream:
        for i in range(200_000):
            stream.write(b'{"prompt": "Question %d?", "chosen": "Yes.", "rejected": "No."}\n' % i)
    rows = [{**ROWS[0], "note": str(i)} for i in range(20_000)]
    paths += [written(tmp_path / f"many.{extension}", rows) for extension in ("csv", "parquet", "arrow")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    command = [sys.executable, "-c", STREAM, *map(str, paths)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300)
    counts, peaks = zip(*(map(int, line.split()) for line in done.stdout.splitlines()), strict=True)
    assert counts == (200_000, 20_000, 20_000, 20_000)
    assert max(peaks) < 2_000_000
