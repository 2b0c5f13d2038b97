"""Formats: recognise what people have by its columns, and convert a row to a record.

The table FORMATS is read from top to bottom; the first whose columns are there names the file. Leaves out files
(`truing.data.read`), tokens and templates (`truing.data.chat`). Nothing is guessed from the content of a text except HH
transcripts, which carry markers.

Readings that are ours: Alpaca's `instruction` and `input` are joined by one newline; PandaLM's three annotators vote, and
a tie is a bad row with the reason "tie", as it is in the votes of people; a list under Alpaca's `output` is a ranking, best first.
"""

import difflib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from truing.data.problems import BadValueError, DataError
from truing.data.tags import tags
from truing.data.turns import (
    Row,
    as_text,
    asks,
    conversation,
    ends_with_answer,
    message,
    messages,
    optional_text,
    part,
    prompt,
    text,
    transcripts,
    type_name,
    value,
)
from truing.data.votes import chosen_side
from truing.records import Demonstration, Feedback, Message, Messages, Origin, Preference, Prompt, Ranking, Record, Steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One way in which files hold records. Example: `FORMATS["preference"]` needs the columns prompt, chosen and rejected."""

    name: str
    needs: frozenset[str]
    """Columns without which a row is not of this format."""
    takes: frozenset[str] = frozenset()
    """Columns that are read, or knowingly left, where they are there; others become tags."""
    leaves: frozenset[str] = frozenset()
    """Those of them that are left: they repeat, or contradict, what other columns say."""
    not_with: frozenset[str] = frozenset()
    """Columns whose presence says that something else was meant, such as `chosen` without `rejected` beside a lone prompt."""
    convert: Callable[[Row], Record]
    """A row to a record; raises `BadValueError` with the reason."""

    def record(self, row: Row, origin: Origin | None = None) -> Record:
        """The record of a row, with where it was read and its further columns as tags."""
        found = self.convert(row)
        return replace(found, origin=origin, tags={**found.tags, **tags(row, self.needs | self.takes)})


def label(cell: object) -> bool:
    """A judgement: a boolean, 0 or 1, or the text true, false, 0 or 1 in any case."""
    if isinstance(cell, bool):
        return cell
    if isinstance(cell, (int, float)) and cell in (0, 1):
        return bool(cell)
    judged = {"true": True, "1": True, "false": False, "0": False}.get(cell.strip().lower()) if isinstance(cell, str) else None
    if judged is None:
        shown = f"{cell!r}"[:40] if isinstance(cell, (str, int, float)) else type_name(cell)
        raise BadValueError(f'"label" is {shown}; it must be true or false')
    return judged


def _number(row: Row, column: str) -> float | None:
    """The number in a column; an empty cell holds none."""
    cell = row.get(column)
    if cell is None or cell == "":
        return None
    try:
        found = float(cell) if isinstance(cell, (int, float, str)) and not isinstance(cell, bool) else math.nan
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise BadValueError(f'"{column}" is not a finite number')
    return found


def _preference(asked: Messages, chosen: str, rejected: str, row: Row | None = None) -> Preference:
    """A preference, once its two responses say something and differ; `row` may hold its margin and its probability."""
    for name, response in (("chosen", chosen), ("rejected", rejected)):
        as_text(response, f'"{name}"')
    if chosen.strip() == rejected.strip():
        raise BadValueError("chosen and rejected are equal")
    probability = _number(row or {}, "probability")
    if probability is not None and not 0 <= probability <= 1:
        raise BadValueError(f'"probability" is {probability:g}; it must be between 0 and 1')
    margin = _number(row or {}, "margin")
    return Preference(prompt=asks(asked), chosen=chosen, rejected=rejected, margin=margin, probability=probability)


def _sides(asked: Messages, row: Row, better: str = "chosen", worse: str = "rejected") -> Preference:
    """A preference whose sides are both text, or both turns."""
    good, bad = value(row, better), value(row, worse)
    for column, cell in ((better, good), (worse, bad)):
        if not isinstance(cell, (str, list, dict)):
            raise BadValueError(f'"{column}" is {type_name(cell)}, not text')
    if isinstance(good, str) != isinstance(bad, str):
        raise BadValueError(f'"{better}" is {type_name(good)} and "{worse}" is {type_name(bad)}')
    if isinstance(good, str):
        return _preference(asked, text(row, better), text(row, worse), row)
    left, right = (conversation(asked, messages(cell, column), column) for cell, column in ((good, better), (bad, worse)))
    return _preference(*part(left, right), row)


def _from_preference(row: Row) -> Preference:
    return _sides(prompt(value(row, "prompt"), "prompt"), row)


def _from_conversation_pair(row: Row) -> Preference:
    chosen, rejected = value(row, "chosen"), value(row, "rejected")
    if isinstance(chosen, str) and isinstance(rejected, str):
        return _preference(*transcripts(chosen, rejected), row)
    return _preference(*part(messages(chosen, "chosen"), messages(rejected, "rejected")), row)


def _from_good_bad(row: Row) -> Preference:
    asked = prompt(value(row, "prompt"), "prompt")
    return _preference(asked, text(row, "good_answer"), text(row, "bad_answer"), row)


def _alpaca_prompt(row: Row) -> Messages:
    """System, history and the instruction with its input under it."""
    turns: list[Message] = []
    if system := optional_text(row, "system"):
        turns.append(Message(role="system", content=system))
    history = row.get("history") or []
    if not isinstance(history, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in history):
        raise BadValueError('"history" is not a list of [asked, answered]')
    for asked, answered in history:
        turns.append(Message(role="user", content=as_text(asked, 'a turn of "history"')))
        turns.append(Message(role="assistant", content=as_text(answered, 'a turn of "history"')))
    instruction, further = text(row, "instruction"), optional_text(row, "input")
    turns.append(Message(role="user", content=f"{instruction}\n{further}" if further else instruction))
    return tuple(turns)


def _from_alpaca(row: Row) -> Demonstration | Ranking:
    asked, output = _alpaca_prompt(row), value(row, "output")
    if isinstance(output, list):
        return _ranking(asked, output, "output")
    return Demonstration(messages=(*asked, Message(role="assistant", content=text(row, "output"))))


def _ranking(asked: Messages, responses: object, column: str) -> Ranking:
    """A ranking of at least two different responses, best first."""
    if not isinstance(responses, list):
        raise BadValueError(f'"{column}" is {type_name(responses)}, not a list of responses')
    if len(responses) < 2:
        raise BadValueError(f'"{column}" ranks fewer than two responses')
    said = tuple(as_text(response, f'response {i} of "{column}"') for i, response in enumerate(responses, start=1))
    if len({response.strip() for response in said}) < len(said):
        raise BadValueError(f'"{column}" holds the same response twice')
    return Ranking(prompt=asks(asked), responses=said)


def _from_ranking(row: Row) -> Ranking:
    return _ranking(prompt(value(row, "prompt"), "prompt"), value(row, "responses"), "responses")


def _from_steps(row: Row) -> Steps:
    steps, labels = value(row, "completions"), value(row, "labels")
    if not isinstance(steps, list) or not isinstance(labels, list) or not steps:
        raise BadValueError('"completions" and "labels" are not lists of steps and of what they are')
    if len(steps) != len(labels):
        raise BadValueError(f'"completions" has {len(steps)} steps and "labels" has {len(labels)}')
    separator = "\n" if row.get("separator") is None else row["separator"]
    if not isinstance(separator, str) or not separator:
        raise BadValueError('"separator" is not text')
    said = tuple(as_text(step, f'step {i} of "completions"') for i, step in enumerate(steps, start=1))
    for number, step in enumerate(said, start=1):
        if separator in step:
            raise BadValueError(f'step {number} of "completions" holds the separator {separator!r}')
    asked = asks(prompt(value(row, "prompt"), "prompt"))
    return Steps(prompt=asked, steps=said, labels=tuple(map(label, labels)), separator=separator)


def _turns(row: Row, column: str) -> Messages:
    """The conversation of a column, after the text of a `system` column where there is one."""
    system = optional_text(row, "system")
    turns = messages(value(row, column), column)
    if system and turns[0].role != "system":
        return (Message(role="system", content=system), *turns)
    return turns


def _demonstration(turns: Messages) -> Demonstration:
    ends_with_answer(turns)
    return Demonstration(messages=turns)


def _feedback(turns: Messages, row: Row) -> Feedback:
    asked, response = ends_with_answer(turns)
    return Feedback(prompt=asked, response=response, desirable=label(value(row, "label")))


def _completed(row: Row, column: str) -> Messages:
    """Prompt and completion, each text or turns, as one conversation."""
    asked, answer = prompt(value(row, "prompt"), "prompt"), value(row, column)
    if isinstance(answer, str):
        return (*asked, Message(role="assistant", content=text(row, column)))
    return conversation(asked, messages(answer, column), column)


def _from_openai(row: Row) -> Preference:
    given = value(row, "input")
    asked = given.get("messages") if isinstance(given, dict) else None
    if asked is None:
        raise BadValueError('"input" has no "messages"')
    return _sides(asks(messages(asked, "input.messages")), row, "preferred_output", "non_preferred_output")


def _from_sharegpt_preference(row: Row) -> Preference:
    sides = [message(value(row, column), f'"{column}"') for column in ("chosen", "rejected")]
    asked = asks(_turns(row, "conversations"))
    return _preference(*part((*asked, sides[0]), (*asked, sides[1])), row)


def _from_pandalm(row: Row) -> Preference:
    votes = [value(row, f"annotator{i}") for i in (1, 2, 3)]
    if not all(type(vote) is int and vote in (0, 1, 2) for vote in votes):
        raise BadValueError("an annotator's vote is not 0, 1 or 2")
    winner, count = Counter(votes).most_common(1)[0]
    if count == 1:
        raise BadValueError("the annotators have no majority")
    if winner == 0:
        raise BadValueError("tie")
    asked, first, second = _alpaca_prompt(row), text(row, "response1"), text(row, "response2")
    return _preference(asked, first, second) if winner == 1 else _preference(asked, second, first)


def _format(
    name: str,
    needs: str,
    convert: Callable[[Row], Record],
    *,
    takes: str = "",
    leaves: str = "",
    not_with: str = "chosen rejected",
) -> tuple[str, Format]:
    """One line of the table."""
    wanted = frozenset(needs.split())
    return name, Format(
        name=name,
        needs=wanted,
        takes=frozenset(f"{takes} {leaves}".split()),
        leaves=frozenset(leaves.split()),
        not_with=frozenset(not_with.split()) - wanted,
        convert=convert,
    )


def _from_vote(row: Row) -> Preference:
    """What a person chose of two answers, and which of the two stood first."""
    side = chosen_side(row.get("choice"))
    asked = prompt(value(row, "conversation"), "conversation")
    good, bad = (text(row, name) for name in (("first", "second") if side == "first" else ("second", "first")))
    return replace(_preference(asks(asked), good, bad), tags={"shown_first": "chosen" if side == "first" else "rejected"})


ELSE = (
    "chosen rejected completion completions response responses messages conversations output good_answer bad_answer "
    "response1 response2"
)

FORMATS: dict[str, Format] = dict(
    (
        _format("openai_preference", "input preferred_output non_preferred_output", _from_openai),
        _format(
            "pandalm",
            "instruction response1 response2 annotator1 annotator2 annotator3",
            _from_pandalm,
            takes="input system history",
        ),
        _format(
            "sharegpt_preference", "conversations chosen rejected", _from_sharegpt_preference, takes="system margin probability"
        ),
        _format(
            "alpaca_preference",
            "instruction chosen rejected",
            lambda row: _sides(_alpaca_prompt(row), row),
            takes="input system history margin probability",
            leaves="output",
        ),
        _format("preference", "prompt chosen rejected", _from_preference, takes="margin probability", leaves="messages"),
        _format("conversation_pair", "chosen rejected", _from_conversation_pair, takes="margin probability"),
        _format("votes", "conversation first second choice", _from_vote),
        _format("good_bad", "prompt good_answer bad_answer", _from_good_bad, takes="margin probability"),
        _format("ranking", "prompt responses", _from_ranking),
        _format("steps", "prompt completions labels", _from_steps, takes="separator"),
        _format(
            "messages_feedback",
            "messages label",
            lambda row: _feedback(_turns(row, "messages"), row),
            takes="system",
            leaves="prompt",
        ),
        _format(
            "sharegpt_feedback", "conversations label", lambda row: _feedback(_turns(row, "conversations"), row), takes="system"
        ),
        _format("feedback", "prompt completion label", lambda row: _feedback(_completed(row, "completion"), row)),
        _format("response_feedback", "prompt response label", lambda row: _feedback(_completed(row, "response"), row)),
        _format("messages", "messages", lambda row: _demonstration(_turns(row, "messages")), takes="system", leaves="prompt"),
        _format("sharegpt", "conversations", lambda row: _demonstration(_turns(row, "conversations")), takes="system"),
        _format("alpaca", "instruction output", _from_alpaca, takes="input system history"),
        _format("demonstration", "prompt completion", lambda row: _demonstration(_completed(row, "completion"))),
        _format("response", "prompt response", lambda row: _demonstration(_completed(row, "response"))),
        _format("prompt", "prompt", lambda row: Prompt(messages=prompt(value(row, "prompt"), "prompt")), not_with=ELSE),
    )
)
"""What files may hold. Order matters: the more telling columns come first."""

COLUMNS = frozenset(column for known in FORMATS.values() for column in known.needs | known.takes)
"""Every column name that some format reads: what a mapping may name."""


@lru_cache(maxsize=256)
def find(columns: frozenset[str]) -> Format | None:
    """The format of these columns, if there is one."""
    return next((known for known in FORMATS.values() if known.needs <= columns and not known.not_with & columns), None)


def recognise(columns: Iterable[str]) -> Format:
    """The format of these columns; a `DataError` that names the nearest format otherwise."""
    there = frozenset(columns)
    found = find(there)
    if found is None:
        raise DataError(unknown(there))
    return found


def unknown(columns: frozenset[str]) -> str:
    """Why columns are of no format, and the remedy."""
    listed = ", ".join(f'"{column}"' for column in sorted(columns)[:20]) or "none"
    nearest = max(FORMATS.values(), key=lambda known: (len(known.needs & columns) / len(known.needs), len(known.needs & columns)))
    if "prompt" in columns and columns & {"chosen", "rejected"}:
        nearest = FORMATS["preference"]
    lacking = ", ".join(f'"{column}"' for column in sorted(nearest.needs - columns))
    near = (
        f'; nearest is "{nearest.name}", which lacks {lacking}'
        if lacking and 2 * len(nearest.needs & columns) >= len(nearest.needs)
        else ""
    )
    return f"columns {listed} are of no known format{near}. Name yours with a mapping, for example prompt=<your column>"


def renamed(row: Row, mapping: Mapping[str, str]) -> Row:
    """The row with the user's columns under our names; a column of the file that already has such a name gives way."""
    if not mapping:
        return row
    hidden = set(mapping.values()) | set(mapping)
    kept = {column: cell for column, cell in row.items() if column not in hidden}
    return kept | {ours: row[theirs] for ours, theirs in mapping.items() if theirs in row}


def check_mapping(mapping: Mapping[str, str], columns: Iterable[str]) -> None:
    """Raises for a name that no format reads, and for a column that the file does not have, with the nearest one."""
    there = sorted(columns)
    for ours, theirs in mapping.items():
        for name, names, what in ((ours, sorted(COLUMNS), "no format reads the column"), (theirs, there, "the file has no column")):
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
                hint = f'did you mean "{near[0]}"?' if near else "it has " + ", ".join(f'"{n}"' for n in names[:20])
                raise DataError(f'mapping {ours}={theirs}: {what} "{name}"; {hint}')
