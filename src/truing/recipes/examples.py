"""From the data settings to trees: read, filter, split, encode, in one pass and in bounded memory, with every row accounted for.

The trees lie in a store (`truing.data.store`): in a cache that several runs share (`data.cache`), under the hash of all that they
depend on, where what is there and whole is not made again; without one in a temporary file, gone with the process.
"""

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import truing
from truing.data.chat import CHUNK, ChatTokenizer, Encoding, EncodingReport
from truing.data.read import bad_row_line, file_sha256
from truing.data.store import StoredTrees, TreeWriter
from truing.data.tree import Tree
from truing.parallel.world import World
from truing.recipes.selection import PACKAGED, SIDES, Account, Selection, Side
from truing.recipes.settings import Data
from truing.records import Feedback, Preference, Record
from truing.runs.canonical import to_json
from truing.runs.durable import (
    STAGING,
    adopt_folder,
    inspect_folder,
    make_folder,
    read_entry,
    remove,
    storage_errors,
    verify_folder,
)
from truing.runs.lock import RunLock
from truing.runs.sinks import Tick

ACCOUNT, BAD_ROWS, STORES = "account.json", "bad_rows.jsonl", "examples"
VERSION = 2
"""Of the way in which records become trees and trees become files: another one misses every store."""
PATIENCE = 1.0
"""Seconds after which progress is shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """One side of the split: the trees of those records that have one (`tree.key` is the record's index among `records`)."""

    trees: StoredTrees
    report: EncodingReport
    reread: Callable[[], Iterator[Record]] = field(repr=False)

    @property
    def records(self) -> tuple[Record, ...]:
        """The records, read again from the file: they are not kept."""
        return tuple(self.reread())

    @property
    def desirable(self) -> int | None:
        """How many trees hold an answer that was approved of; None where answers are not judged one by one."""
        return self.trees.desirable


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """What a recipe trains and measures on. Example: `print("\\n".join(examples(data, chat, Preference).lines()))`."""

    reading: Account
    train: Split
    held_out: Split

    def lines(self) -> list[str]:
        """The account of all rows, for people."""
        reading, train, held = self.reading, self.train, self.held_out
        lines = [
            f"{reading.file}: {reading.format}, {reading.rows_in} rows = {reading.rows_used} used + {reading.bad_rows} skipped"
        ]
        lines += [f"  skipped {count}: {reason}" for reason, count in reading.reasons.items()]
        if reading.too_long_chosen:
            lines.append(
                f"  {reading.too_long_chosen} pairs dropped: the chosen answer is too many times as long as the rejected one"
            )
        for name, split in (("train", train), ("held out", held)):
            lines += [f"  {name}: {line}" for line in str(split.report).splitlines()]
        return lines


def examples(
    data: Data,
    chat: ChatTokenizer,
    kinds: Sequence[type[Record]],
    *,
    run: Path | None = None,
    progress: Tick | None = None,
    world: World | None = None,
) -> Examples:
    """Read and encode, unless a store has it; records are taken as the first of `kinds` that the file can give.

    Broken rows go to `bad_rows.jsonl` in the run's folder. What goes to a cache is made by rank 0 for all ranks. Raises ValueError
    when nothing is left on the training side.
    """
    world = world or World()
    if world.rank and data.cache:
        final: Path = world.gather([])[0]
        return _opened(final, data, kinds)
    with _home(data.cache) as home:
        final = _store(data, chat, kinds, home, progress)
        found = _opened(final, data, kinds)
        if found.reading.bad_rows and run and not world.rank:
            make_folder(run)
            with storage_errors(run):
                shutil.copyfile(final / BAD_ROWS, run / BAD_ROWS)
    if not found.train.trees:
        raise ValueError("\n".join([f"{data.path}: no row is left to train on", *found.lines()]))
    if data.cache:
        world.gather([final])
    return found


@contextmanager
def _home(cache: Path | None) -> Iterator[Path]:
    """The folder of stores, which nobody else writes at the same time."""
    with ExitStack() as stack:
        if cache:
            make_folder(cache)
            stack.callback(RunLock.acquire(cache).release)
            yield cache
        else:
            # the open files outlive their names
            yield Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="truing-")))


def _store(data: Data, chat: ChatTokenizer, kinds: Sequence[type[Record]], home: Path, progress: Tick | None) -> Path:
    """The whole store of these settings, made where it is not there."""
    path = PACKAGED.get(data.path, Path(data.path))
    known = home / _key(data, chat, kinds, file_sha256(path)) if path.is_file() else None
    if known and verify_folder(known):
        return known
    for left_over in home.glob(f"{STAGING}*"):
        remove(left_over)
    scratch = home / f"{STAGING}making"
    make_folder(scratch)
    try:
        account = _encode(data, chat, kinds, scratch, progress)
        final = home / _key(data, chat, kinds, account.sha256)
        if verify_folder(final):
            remove(scratch)
        else:
            adopt_folder(scratch, final)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return final


def _key(data: Data, chat: ChatTokenizer, kinds: Sequence[type[Record]], sha256: str) -> str:
    """The hash of everything that decides what is in a store."""
    settings = asdict(replace(data, cache=None))
    parts = [VERSION, truing.__version__, settings, [kind.__name__ for kind in kinds], chat.fingerprint, sha256]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _encode(data: Data, chat: ChatTokenizer, kinds: Sequence[type[Record]], folder: Path, progress: Tick | None) -> Account:
    """One pass over the file: trees, bad rows and the account of both into a folder."""
    writer = TreeWriter(folder, SIDES)
    encodings = {side: Encoding(chat, max_tokens=data.max_tokens, truncate=data.truncate) for side in SIDES}
    waiting: dict[Side, list[Record]] = {side: [] for side in SIDES}

    def flush(side: Side) -> None:
        records, first = waiting[side], encodings[side].report().records
        for tree in encodings[side].trees(records):
            writer.append(side, _labelled(tree, records[tree.key - first]))
        records.clear()

    with (folder / BAD_ROWS).open("wb") as bad_rows:
        selection = Selection(
            data=data,
            kinds=kinds,
            on_bad_row=lambda row: _write(bad_rows.write, bad_row_line(row), folder),
            progress=_late(progress),
        )
        for side, record in selection:
            waiting[side].append(record)
            if len(waiting[side]) == CHUNK:
                flush(side)
    for side in SIDES:
        flush(side)
    writer.close()
    account = selection.account
    assert account is not None, "all rows have been read"
    reports: dict[str, object] = {side: _report_json(encodings[side].report()) for side in SIDES}
    reading = {**asdict(account), "reasons": list(account.reasons.items())}
    _write((folder / ACCOUNT).write_bytes, to_json({"reading": reading, **reports}), folder)
    return account


def _write(write: Callable[[bytes], object], data: bytes, folder: Path) -> None:
    with storage_errors(folder):
        write(data)


def _late(progress: Tick | None) -> Tick | None:
    """Progress that begins to be told when it has taken a moment."""
    began = time.monotonic()

    def tick(done: int, total: int) -> None:
        if progress and done and time.monotonic() - began > PATIENCE:
            progress(min(done, total), total)

    return tick if progress else None


def _labelled(tree: Tree, record: Record) -> Tree:
    """The tree with what its record says of the responses beside their text."""
    match record:
        case Preference():
            return replace(tree, margin=record.margin, probability=record.probability)
        case Feedback():
            return replace(tree, desirable=(record.desirable,))
        case _:
            return tree


def _opened(folder: Path, data: Data, kinds: Sequence[type[Record]]) -> Examples:
    manifest = inspect_folder(folder, contents=False)
    raw = json.loads(read_entry(folder, manifest[ACCOUNT]))

    def split(side: Side) -> Split:
        def reread() -> Iterator[Record]:
            return (record for of, record in Selection(data=data, kinds=kinds) if of == side)

        return Split(trees=StoredTrees.open(folder, manifest, side), report=_report(raw[side]), reread=reread)

    reading = Account(**{**raw["reading"], "reasons": dict(raw["reading"]["reasons"])})
    return Examples(reading=reading, train=split("train"), held_out=split("held_out"))


def _report_json(report: EncodingReport) -> dict[str, Any]:
    # as pairs, because the order is part of the account
    return {**asdict(report), "counts": list(report.counts.items()), "examples": list(report.examples.items())}


def _report(raw: dict[str, Any]) -> EncodingReport:
    named = {kind: tuple(names) for kind, names in raw["examples"]}
    counts = dict(raw["counts"])
    return EncodingReport(records=raw["records"], trees=raw["trees"], counts=counts, examples=named, cut_tokens=raw["cut_tokens"])
