"""Work in chunks that are kept as they are done: a stopped one goes on, and what is whole in the log is not done again.

The chunk that an item belongs to is fixed by its place, so a continued work computes the very batches of an unbroken one.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from truing.runs.canonical import to_json_line
from truing.runs.durable import AppendLog
from truing.runs.read import read_rows
from truing.runs.sinks import Tick


def in_chunks(
    items: Sequence[Any],
    size: int,
    path: Path,
    compute: Callable[[Sequence[Any], int, Tick], Iterable[Any]],
    progress: Tick,
    done: Callable[[Any], bool] = lambda value: True,
) -> dict[str, Any]:
    """What was computed for each item, by its key. A chunk that is whole in the log, each value `done`, is not computed again.

    A value with a number that is not finite is not kept: a ValueError names its item, now and whenever it is computed again.
    """
    known = {str(row["key"]): row["value"] for row in read_rows(path)}
    known = {key: value for key, value in known.items() if done(value)}
    log = AppendLog(path)
    try:
        for number, start in enumerate(range(0, len(items), size)):
            chunk = items[start : start + size]
            if not all(item.key in known for item in chunk):

                def tick(done: int, of: int, start: int = start, here: int = len(chunk)) -> None:
                    # The last step is told once the chunk is kept, so that a stage never ends before its work has.
                    at = min(start + done * here // of, len(items) - 1)
                    if at:
                        progress(at, len(items))

                for item, value in zip(chunk, compute(chunk, number, tick), strict=True):
                    if (bad := _not_finite(value)) is not None:
                        raise ValueError(
                            f"{path}: item {item.key!r}: {bad} came out, and nothing of this item is kept; the model's numbers "
                            "overflow or its training has diverged: try dtype=fp32, or take an earlier checkpoint"
                        )
                    known[item.key] = value
                    log.append(to_json_line({"key": item.key, "value": value}))
                log.sync()
            progress(min(start + size, len(items)), len(items))
    finally:
        log.close()
    return known


def _not_finite(value: Any) -> float | None:
    """The first number in it that is not finite: a log has no such number, only a text that reads like one."""
    if isinstance(value, float):
        return None if math.isfinite(value) else value
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return next((bad for part in value if (bad := _not_finite(part)) is not None), None)
    return None
