"""What `truing data ACTION FILES key=value` does: convert, merge, filter, dedupe, split, sample, show."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from typing import TypeVar

from truing.config import load
from truing.data.problems import BadRow
from truing.data.read import iterate
from truing.quality.curation import Account, Draw, Filter, Output, Split, convert, filtered, sampled, split
from truing.quality.sample import Sample
from truing.recipes.showing import Show, as_tokens
from truing.runs.sinks import Sink, printable

T = TypeVar("T")
REPEATS = ("duplicates", "near_duplicates")


def data(action: str, words: Sequence[str], sinks: Sequence[Sink], *, tokens: bool) -> None:
    """One action; words without `=` are files, the others settings."""
    files, settings = [word for word in words if "=" not in word], [word for word in words if "=" in word]

    def progress(rows: int) -> None:
        for sink in sinks:
            sink.message(f"{files[0]}: {rows} rows", "info")

    def dedupe() -> Account:
        wanted = _read(Filter, settings)
        return filtered(_one(files), replace(wanted, drop=REPEATS[: 1 if wanted.near is None else 2]), progress)

    actions: dict[str, Callable[[], Account | None]] = {
        "convert": lambda: convert([_one(files)], _read(Output, settings)),
        "merge": lambda: convert(_some(files), _read(Output, settings)),
        "filter": lambda: filtered(_one(files), _read(Filter, settings), progress),
        "dedupe": dedupe,
        "split": lambda: split(_one(files), _read(Split, settings)),
        "sample": lambda: sampled(_one(files), _read(Draw, settings)),
        "show": lambda: show(_one(files), _read(Show, settings), tokens=tokens),
    }
    if action not in actions:
        raise ValueError(f"data {action}: choose one of {', '.join(actions)}")
    account = actions[action]()
    if account is not None:
        sys.stdout.write(f"{account}\n")


def _read(settings: type[T], overrides: Sequence[str]) -> T:
    return load(settings, overrides=overrides).value


def _one(files: Sequence[str]) -> str:
    if len(files) != 1:
        raise ValueError(f"name one file, not {len(files)}; settings are written key=value, such as to=OUT.jsonl")
    return files[0]


def _some(files: Sequence[str]) -> Sequence[str]:
    if len(files) < 2:
        raise ValueError("name two files or more to merge; settings are written key=value, such as to=OUT.jsonl")
    return files


def show(file: str, wanted: Show, *, tokens: bool) -> None:
    """A few rows as they are read: turns, answers, what was preferred; or as the tokens that training sees."""
    items = (
        item
        for item in iterate(file, mapping=wanted.mapping)
        if wanted.row is None or item.origin is None or item.origin.row == wanted.row
    )
    chosen = list(islice(items, 1 if wanted.row is not None else wanted.rows))
    if not chosen:
        raise ValueError(f"{file}: has no row {wanted.row}; rows count as in the file's line numbers")
    if tokens:
        sys.stdout.write(as_tokens(chosen, wanted))
        return
    for item in chosen:
        if isinstance(item, BadRow):
            sys.stdout.write(printable(f"{item}\n  {item.text}\n\n"))
            continue
        sample = Sample.of(item)
        lines = [f"{sample.origin}: {type(item).__name__}", *(f"  {turn.role}: {turn.content}" for turn in sample.messages)]
        lines += [f"  -> {side}: {answer}" for side, answer in zip(sample.sides, sample.answers, strict=True)]
        lines += [f"  ({name} = {value})" for name, value in sample.tags.items()]
        sys.stdout.write(printable("\n".join(lines)) + "\n\n")
