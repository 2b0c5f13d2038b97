"""The two stages of labelling, kept chunk by chunk: answers written, answers ordered. What is kept is never asked for again.

A chunk is a line that is on the disk as a whole or not at all, and what is drawn for it depends on its number alone, so a run that
was killed at any moment and started again ends in the same labels. Replies of endpoints are kept one by one besides.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from truing.data.problems import BadValueError
from truing.data.strict_json import parse_row
from truing.judges.judgement import Decided, Judgement
from truing.judges.ordering import Answer, Answered, Ordered, Pairing
from truing.rollouts.writer import Said, Writer
from truing.runs.canonical import to_json_line
from truing.runs.durable import AppendLog

Row = Mapping[str, object]
T = TypeVar("T")
PAID = ("read", "said", "cost")
"""Tokens that servers read and said, and what they cost, on each line that servers had a part in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A prompt of the file, once, with the answers that the file holds."""

    answered: Answered
    preferred: tuple[tuple[str, str], ...] = ()
    """Pairs of answers of which the file prefers the first: what a judge is measured on."""


class KeptLines:
    """Lines of a file by what they are of, in the order in which they are made. Example: `KeptLines(path).get(0, chunk=0)`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._log = AppendLog(path)
        self._rows: list[dict[str, object]] = []
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            try:
                self._rows.append(parse_row(line))
            except BadValueError as error:
                raise ValueError(f"{path}:{number}: is damaged ({error}); cut the file off before this line") from None

    @property
    def count(self) -> int:
        """Lines that are there."""
        return len(self._rows)

    def get(self, number: int, make: Callable[[], Row], **of: object) -> dict[str, object]:
        """The line of this number; where it is not there yet it is made, with the time, and returned once it is on the disk."""
        if number < len(self._rows):
            row = self._rows[number]
            if any(row.get(name) != value for name, value in of.items()):
                raise ValueError(f"{self.path}:{number + 1}: is not of {of}; take another run folder")
            return row
        assert number == len(self._rows), "lines are made in their order"
        line = to_json_line({**of, "at": now(), **make()})
        self._log.append(line)
        self._log.sync()
        self._rows.append(parse_row(line))
        return self._rows[-1]

    def close(self) -> None:
        """Closes the file."""
        self._log.close()


def now() -> str:
    """The time in UTC, to the second, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def chunks(items: Sequence[Asked], size: int) -> Iterator[tuple[int, Sequence[Asked]]]:
    """Pieces of the prompts with their numbers."""
    for number, start in enumerate(range(0, len(items), size)):
        yield number, items[start : start + size]


def written(writer: Writer, chunk: Sequence[Asked], *, samples: int, seed: int) -> Row:
    """The line of a chunk's answers by one writer."""
    said = writer([one.answered.prompt for one in chunk], samples=samples, seed=seed)
    return {"answers": [[[one.text, one.stop, one.problem] for one in group] for group in said]}


def paid(asker: object, work: Callable[[], T]) -> tuple[T, Row]:
    """What the work came to, and what servers were paid for it, replies included that were kept before a kill."""
    client = getattr(asker, "client", None)
    if client is None:
        return work(), {}
    before = (client.spent.read + client.spent.kept_read, client.spent.said + client.spent.kept_said, client.spent.cost_in_all)
    found = work()
    after = (client.spent.read + client.spent.kept_read, client.spent.said + client.spent.kept_said, client.spent.cost_in_all)
    return found, {name: new - old for name, old, new in zip(PAID, before, after, strict=True)}


def read_written(row: Row) -> list[list[Said]]:
    """The answers of such a line."""
    groups = row["answers"]
    assert isinstance(groups, list)
    return [[Said(text=text, stop=stop, problem=problem) for text, stop, problem in group] for group in groups]


def answer_of(said: Said, writer: str, identity: str, model: str) -> Answer:
    """What a writer said, as an answer to be ordered."""
    return Answer(text=said.text, finished=said.stop == "end", writer=writer, identity=identity, model=model)


def as_line(found: Sequence[Ordered]) -> Row:
    """The line of a chunk's orders."""
    return {
        "by": found[0].by if found else "",
        "identity": found[0].identity if found else "",
        "orders": [
            {
                "scores": list(one.scores),
                "problems": list(one.problems),
                "pairings": [_pairing(pairing) for pairing in one.pairings],
            }
            for one in found
        ],
    }


def _pairing(one: Pairing) -> list[object]:
    said = one.judgement
    return [one.first, one.second, list(said.orders), said.problem, list(said.reasons), said.mass, _decided(said.decided)]


def _decided(one: Decided | None) -> Row | None:
    if one is None:
        return None
    parts = {name: [list(said.orders), said.problem, list(said.reasons), said.mass] for name, said in one.parts.items()}
    conflicts = [list(two) for two in one.conflicts]
    return {"probability": one.probability, "by": list(one.by), "parts": parts, "sure": list(one.sure), "conflicts": conflicts}


def of_line(row: Row, answered: Sequence[Answered]) -> list[Ordered]:
    """The orders of such a line."""
    orders = row["orders"]
    assert isinstance(orders, list)
    return [
        Ordered(
            answered=item,
            scores=tuple(map(float, order["scores"])),
            by=str(row["by"]),
            identity=str(row["identity"]),
            pairings=tuple(_read_pairing(*one) for one in order["pairings"]),
            problems=tuple(order["problems"]),
        )
        for item, order in zip(answered, orders, strict=True)
    ]


def _read_pairing(first: int, second: int, *said: Any) -> Pairing:
    *of_all, decided = said
    return Pairing(first=first, second=second, judgement=replace(_read_judgement(*of_all), decided=_read_decided(decided)))


def _read_judgement(said: Sequence[float | str], problem: str, reasons: Sequence[str], mass: float | str) -> Judgement:
    there, back = map(float, said)
    return Judgement(orders=(there, back), problem=problem, reasons=(reasons[0], reasons[1]), mass=float(mass))


def _read_decided(row: Mapping[str, Any] | None) -> Decided | None:
    """Parts by name: on the disk keys have no order of their own."""
    if row is None:
        return None
    return Decided(
        probability=float(row["probability"]),
        by=tuple(row["by"]),
        parts={name: _read_judgement(*one) for name, one in sorted(row["parts"].items())},
        sure=tuple(row["sure"]),
        conflicts=tuple((first, second) for first, second in row["conflicts"]),
    )
