"""From the data settings to trees: read, filter, split, encode, with every row accounted for."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from truing.data.chat import ChatTokenizer, EncodingReport, encode_all
from truing.data.read import Reading, as_kind, length_bias_filter, read, write_bad_rows
from truing.data.tree import Tree
from truing.randomness import counted_seed
from truing.recipes.settings import Data
from truing.records import Demonstration, Feedback, Messages, Preference, Prompt, Ranking, Record
from truing.runs.durable import make_folder, storage_errors

PACKAGED = {"everyday": Path(__file__).parent / "everyday" / "preferences.csv"}
"""Data sets that come with the package, by the name that `data.path` knows them under."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """One side of the split: records and the trees of those that have one (`tree.key` is the record's index)."""

    records: tuple[Record, ...]
    trees: list[Tree]
    report: EncodingReport

    @property
    def desirable(self) -> int | None:
        """How many trees hold an answer that was approved of; None where answers are not judged one by one."""
        judged = [tree.desirable for tree in self.trees if tree.desirable is not None]
        return sum(map(sum, judged)) if judged else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """What a recipe trains and measures on. Example: `print("\\n".join(examples(data, chat, Preference).lines()))`."""

    reading: Reading
    too_long_chosen: int
    """Pairs dropped by the length-bias filter."""
    train: Split
    held_out: Split

    def lines(self) -> list[str]:
        """The account of all rows, for people."""
        reading, train, held = self.reading, self.train, self.held_out
        lines = [
            f"{reading.file}: {reading.format}, {reading.rows_in} rows = {reading.rows_used} used + {len(reading.bad_rows)} skipped"
        ]
        lines += [f"  skipped {count}: {reason}" for reason, count in reading.reasons.items()]
        if self.too_long_chosen:
            lines.append(f"  {self.too_long_chosen} pairs dropped: the chosen answer is too many times as long as the rejected one")
        for name, split in (("train", train), ("held out", held)):
            lines += [f"  {name}: {line}" for line in str(split.report).splitlines()]
        return lines


def examples(data: Data, chat: ChatTokenizer, kinds: Sequence[type[Record]], *, run: Path | None = None) -> Examples:
    """Read and encode; records are taken as the first of `kinds` that the file can give.

    Broken rows go to `bad_rows.jsonl` in the run's folder. Raises ValueError when nothing is left on the training side.
    """
    reading = read(PACKAGED.get(data.path, data.path), mapping=data.mapping, on_bad_row=data.on_bad_row)
    if reading.bad_rows and run:
        make_folder(run)
        with storage_errors(run):
            write_bad_rows(run / "bad_rows.jsonl", reading.bad_rows)
    records = _as_first(reading.records, kinds)
    dropped = 0
    if data.length_factor is not None:
        pairs = [record for record in records if isinstance(record, Preference)]
        if len(pairs) < len(records):
            other = next(type(record).__name__ for record in records if not isinstance(record, Preference))
            raise ValueError(
                f"{data.path}: data.length_factor compares the two answers of pairs, not {other} records; leave it out"
            )
        kept, long = length_bias_filter(pairs, data.length_factor)
        records, dropped = tuple(kept), len(long)
    held = [_is_held_out(record, data) for record in records]
    if data.held_out_by and not any(held):
        raise ValueError(_nothing_held_out(records, data, data.held_out_by))
    train = [record for record, out in zip(records, held, strict=True) if not out][: data.rows]
    found = Examples(
        reading=reading,
        too_long_chosen=dropped,
        train=_encode(train, chat, data),
        held_out=_encode([record for record, out in zip(records, held, strict=True) if out], chat, data),
    )
    if not found.train.trees:
        raise ValueError("\n".join([f"{data.path}: no row is left to train on", *found.lines()]))
    return found


def _as_first(records: tuple[Record, ...], kinds: Sequence[type[Record]]) -> tuple[Record, ...]:
    held = {type(record) for record in records}
    if held <= set(kinds):
        return records
    return as_kind(records, kinds[0])


def _encode(records: Sequence[Record], chat: ChatTokenizer, data: Data) -> Split:
    trees, report = encode_all(records, chat, max_tokens=data.max_tokens, truncate=data.truncate)
    trees = [_labelled(tree, records[tree.key]) for tree in trees]
    return Split(records=tuple(records), trees=trees, report=report)


def _labelled(tree: Tree, record: Record) -> Tree:
    """The tree with what its record says of the responses beside their text."""
    match record:
        case Preference():
            return replace(tree, margin=record.margin)
        case Feedback():
            return replace(tree, desirable=(record.desirable,))
        case _:
            return tree


def _is_held_out(record: Record, data: Data) -> bool:
    if data.held_out_by:
        return record.tags.get(data.held_out_by) in data.held_out
    # by a hash of the prompt, so that a prompt with many rows is never on both sides and more rows move nobody
    digest = hashlib.sha256(repr([(m.role, m.content) for m in asked(record)]).encode()).digest()
    place = counted_seed(0, "held out", int.from_bytes(digest[:8])) / 2**63
    return place < data.held_out_share


def _nothing_held_out(records: Sequence[Record], data: Data, column: str) -> str:
    values = sorted({record.tags[column] for record in records if column in record.tags})
    if not values:
        columns = sorted({name for record in records for name in record.tags})
        return f"{data.path}: no column {column}; data.held_out_by can be {' or '.join(columns) or 'null only'}"
    chosen = f"none of {', '.join(data.held_out)}" if data.held_out else "nothing"
    more = f" and {len(values) - 10} more" if len(values) > 10 else ""
    return f"{data.path}: data.held_out names {chosen} of column {column}, which holds {', '.join(values[:10])}{more}"


def asked(record: Record) -> Messages:
    """The conversation that a record's response answers."""
    match record:
        case Prompt():
            return record.messages
        case Demonstration():
            return record.messages[:-1]
        case Preference() | Ranking() | Feedback():
            return record.prompt
