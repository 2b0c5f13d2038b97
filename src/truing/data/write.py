"""Records back to files: the other direction of `truing.data.formats` and `truing.data.rows`.

What is read of a file that was written here is the same record, tags and margin included. Further columns can be given as they
stood in the row that a record came from; types that hold one kind of cell a column (CSV, Parquet, Arrow) get those that do not fit
as text. Written whole or not at all (`truing.runs.durable`). JSONL streams; the other types are gathered first. What a format
cannot hold is an error with its row.
"""

import csv
import io
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, time
from pathlib import Path

import orjson
import polars

from truing.data.formats import COLUMNS, FORMATS
from truing.data.problems import DataError
from truing.data.rows import EXTENSIONS, FileType
from truing.data.tags import as_tag
from truing.data.turns import ASSISTANT, HUMAN
from truing.records import Demonstration, Feedback, Message, Messages, Preference, Prompt, Ranking, Record, Steps
from truing.runs.durable import staged

Row = dict[str, object]
SHAREGPT = {"system": "system", "user": "human", "assistant": "gpt", "tool": "tool"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    """How one format holds records of one kind."""

    kind: type[Record]
    row: Callable[..., Row]
    """A record of that kind to its columns; raises `DataError` where the format cannot hold it."""
    holds_judgement: bool = False
    """Whether margin and probability have a place in it."""


def _plain(turns: Iterable[Message]) -> list[Row]:
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def _sharegpt(turns: Iterable[Message]) -> list[Row]:
    return [{"from": SHAREGPT[turn.role], "value": turn.content} for turn in turns]


def _said(text: str) -> Message:
    return Message(role="assistant", content=text)


def _prompt(turns: Messages) -> object:
    """A text where it is one user turn that will be read as such, else turns."""
    alone = len(turns) == 1 and turns[0].role == "user"
    transcript = turns[0].content.lstrip().startswith("Human:") and turns[0].content.rstrip().endswith(ASSISTANT)
    return turns[0].content if alone and not transcript else _plain(turns)


def _alpaca(turns: Messages) -> Row:
    """Instruction, system and history; other orders of turns have no place in it."""
    system = turns[0].content if turns[0].role == "system" else ""
    rest = turns[1:] if system else turns
    if [turn.role for turn in rest] != ["user", "assistant"] * (len(rest) // 2) + ["user"]:
        raise DataError("alpaca holds turns of user and assistant by turns and no others; take another format")
    row: Row = {"instruction": rest[-1].content, "input": ""}
    if system:
        row["system"] = system
    if len(rest) > 1:
        row["history"] = [[asked.content, said.content] for asked, said in zip(rest[:-1:2], rest[1::2], strict=True)]
    return row


def _transcript(turns: Messages) -> str:
    if any(turn.role not in ("user", "assistant") for turn in turns) or turns[0].role != "user":
        raise DataError("transcripts hold turns of user and assistant only, the user's first; take another format")
    if any(mark in f"\n\n{turn.content}" for turn in turns for mark in (HUMAN, ASSISTANT)):
        raise DataError("a text holds the marker of a turn; take another format")
    return "".join(f"{HUMAN if turn.role == 'user' else ASSISTANT} {turn.content}" for turn in turns)


WRITERS: Mapping[str, Writer] = {
    "preference": Writer(
        kind=Preference,
        row=lambda r: {"prompt": _prompt(r.prompt), "chosen": r.chosen, "rejected": r.rejected},
        holds_judgement=True,
    ),
    "conversation_pair": Writer(
        kind=Preference,
        row=lambda r: {side: _plain((*r.prompt, _said(getattr(r, side)))) for side in ("chosen", "rejected")},
        holds_judgement=True,
    ),
    "transcripts": Writer(
        kind=Preference,
        row=lambda r: {side: _transcript((*r.prompt, _said(getattr(r, side)))) for side in ("chosen", "rejected")},
        holds_judgement=True,
    ),
    "sharegpt_preference": Writer(
        kind=Preference,
        row=lambda r: {
            "conversations": _sharegpt(r.prompt),
            **{side: _sharegpt([_said(getattr(r, side))])[0] for side in ("chosen", "rejected")},
        },
        holds_judgement=True,
    ),
    "openai_preference": Writer(
        kind=Preference,
        row=lambda r: {
            "input": {"messages": _plain(r.prompt)},
            "preferred_output": _plain([_said(r.chosen)]),
            "non_preferred_output": _plain([_said(r.rejected)]),
        },
    ),
    "alpaca_preference": Writer(
        kind=Preference,
        row=lambda r: {**_alpaca(r.prompt), "chosen": r.chosen, "rejected": r.rejected},
        holds_judgement=True,
    ),
    "good_bad": Writer(
        kind=Preference,
        row=lambda r: {"prompt": _prompt(r.prompt), "good_answer": r.chosen, "bad_answer": r.rejected},
        holds_judgement=True,
    ),
    "ranking": Writer(kind=Ranking, row=lambda r: {"prompt": _prompt(r.prompt), "responses": list(r.responses)}),
    "alpaca_ranking": Writer(kind=Ranking, row=lambda r: {**_alpaca(r.prompt), "output": list(r.responses)}),
    "messages": Writer(kind=Demonstration, row=lambda r: {"messages": _plain(r.messages)}),
    "sharegpt": Writer(kind=Demonstration, row=lambda r: {"conversations": _sharegpt(r.messages)}),
    "alpaca": Writer(kind=Demonstration, row=lambda r: {**_alpaca(r.messages[:-1]), "output": r.messages[-1].content}),
    "demonstration": Writer(
        kind=Demonstration, row=lambda r: {"prompt": _prompt(r.messages[:-1]), "completion": r.messages[-1].content}
    ),
    "response": Writer(kind=Demonstration, row=lambda r: {"prompt": _prompt(r.messages[:-1]), "response": r.messages[-1].content}),
    "messages_feedback": Writer(
        kind=Feedback, row=lambda r: {"messages": _plain((*r.prompt, _said(r.response))), "label": r.desirable}
    ),
    "sharegpt_feedback": Writer(
        kind=Feedback, row=lambda r: {"conversations": _sharegpt((*r.prompt, _said(r.response))), "label": r.desirable}
    ),
    "feedback": Writer(kind=Feedback, row=lambda r: {"prompt": _prompt(r.prompt), "completion": r.response, "label": r.desirable}),
    "response_feedback": Writer(
        kind=Feedback, row=lambda r: {"prompt": _prompt(r.prompt), "response": r.response, "label": r.desirable}
    ),
    "steps": Writer(
        kind=Steps,
        row=lambda r: {
            "prompt": _prompt(r.prompt),
            "completions": list(r.steps),
            "labels": list(r.labels),
            "separator": r.separator,
        },
    ),
    "prompt": Writer(kind=Prompt, row=lambda r: {"prompt": _prompt(r.messages)}),
}
"""Formats that can be written. Those of votes are not: a preference no longer has them, nor which answer stood first."""

USUAL: Mapping[type[Record], str] = {
    Preference: "preference",
    Ranking: "ranking",
    Demonstration: "messages",
    Feedback: "feedback",
    Prompt: "prompt",
    Steps: "steps",
}
"""The format of a kind of record where none is asked for."""


def row_of(record: Record, format: str, further: Mapping[str, object] | None = None) -> Row:
    """The columns of a record, and its tags or else these further columns.

    One that has the name of a format's column is written with an underscore after it; of further columns that this format knowingly
    leaves (`left_by`) the name stays.
    """
    writer = WRITERS[format]
    assert isinstance(record, writer.kind), f"{format} holds {writer.kind.__name__} records"
    where = f"{record.origin}: " if record.origin else ""
    try:
        row = writer.row(record)
    except DataError as error:
        raise DataError(f"{where}{error}") from None
    said = {"margin": record.margin, "probability": record.probability} if isinstance(record, Preference) else {}
    for name, number in said.items():
        if number is not None and not writer.holds_judgement:
            raise DataError(f"{where}{format} has no place for the {name}; take preference")
        row |= {} if number is None else {name: number}
    taken, beside = (COLUMNS, record.tags) if further is None else (COLUMNS - left_by(format), further)
    return row | {f"{name}_" if name in taken or name in row else name: value for name, value in beside.items()}


def left_by(format: str) -> frozenset[str]:
    """Columns that readers of a format leave where they are."""
    return FORMATS[format].leaves if format in FORMATS else frozenset()


def holds(cell: object) -> bool:
    """Whether a cell can be written: what JSON has, and dates and times, which become text in it."""
    match cell:
        case None | str() | bool() | float() | date() | time():
            return True
        case int():
            return -(1 << 63) <= cell < 1 << 64
        case list() | tuple():
            return all(map(holds, cell))
        case dict():
            return all(isinstance(key, str) and holds(inner) for key, inner in cell.items())
        case _:
            return False


def output_type(path: Path) -> FileType:
    """The file type of a name to be written; an error that lists the extensions otherwise."""
    suffixes = path.name.lower().removesuffix(".gz").rpartition(".")
    found = EXTENSIONS.get(f".{suffixes[2]}") if suffixes[1] else None
    if found is None or (found in ("parquet", "arrow") and path.name.lower().endswith(".gz")):
        raise DataError(f"{path}: name the output with one of {', '.join(EXTENSIONS)}; text types may end in .gz")
    return found


def check_format(format: str) -> str:
    """The format itself, once it can be written."""
    if format not in WRITERS:
        known = "; it holds people's votes and is only read" if format in FORMATS else ""
        raise DataError(f"format {format} cannot be written{known}. Choose one of {', '.join(WRITERS)}")
    return format


def write(path: Path, records: Iterable[Record], format: str) -> int:
    """Writes the records as one file that appears whole; returns how many. Replaces what is there: ask before."""
    output_type(path)
    with staged(path) as put:
        return put_rows(put, path, (row_of(record, format) for record in records))


def put_rows(put: Callable[[bytes], None], path: Path, rows: Iterable[Row]) -> int:
    """The rows as bytes of the file type that the path's name says; returns how many."""
    kind, count = output_type(path), 0

    def counted() -> Iterator[Row]:
        nonlocal count
        for row in rows:
            count += 1
            yield row

    pieces = _pieces(counted(), kind, path)
    if path.name.lower().endswith(".gz"):
        # no time stamp in the header: the same rows are the same bytes
        packer = zlib.compressobj(wbits=31)
        for piece in pieces:
            put(packer.compress(piece))
        put(packer.flush())
    else:
        for piece in pieces:
            put(piece)
    return count


def _pieces(rows: Iterator[Row], kind: FileType, path: Path) -> Iterator[bytes]:
    if kind == "jsonl":
        for row in rows:
            yield orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
    elif kind == "json":
        for number, row in enumerate(rows):
            yield (b",\n" if number else b"[\n") + orjson.dumps(row)
        yield b"\n]\n"
    elif kind in ("csv", "tsv"):
        yield _csv(list(rows), "\t" if kind == "tsv" else ",", path)
    else:
        stream = io.BytesIO()
        frame = polars.DataFrame(_columns(list(rows)))
        if kind == "parquet":
            frame.write_parquet(stream)
        else:
            frame.write_ipc(stream)
        yield stream.getvalue()


def _columns(rows: list[Row]) -> dict[str, polars.Series]:
    """The rows as columns of one type each; a further column of several types becomes text."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: _column(name, [row.get(name) for row in rows]) for name in names}


def _column(name: str, cells: list[object]) -> polars.Series:
    try:
        found = polars.Series(name, cells, strict=True)
        # objects of other keys than the first lose theirs without a word
        if "Struct({})" not in str(found.dtype) and (not found.dtype.is_nested() or found.to_list() == cells):
            return found
    except (TypeError, ValueError, OverflowError, polars.exceptions.PolarsError):
        pass
    if name in COLUMNS:
        raise DataError(
            f'"{name}" holds text in some rows and turns or lists in others; a table has one type a column: write .jsonl'
        )
    return polars.Series(name, [as_tag(cell) for cell in cells], dtype=polars.String)


def _csv(rows: list[Row], delimiter: str, path: Path) -> bytes:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        nested = next((name for name, cell in row.items() if isinstance(cell, list | dict) and name in COLUMNS), None)
        if nested is not None:
            raise DataError(f'{path}: a cell of CSV cannot hold the turns or lists of "{nested}"; write .jsonl, or another format')
        writer.writerow([as_tag(row.get(name)) or "" for name in columns])
    return text.getvalue().encode()
