"""A record as the checks look at it: what was asked, what was answered, and which answers people preferred. No judgement here."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, assert_never

from truing.records import Demonstration, Feedback, Messages, Origin, Preference, Prompt, Ranking, Record, Steps

Side = Literal["chosen", "rejected", "between"]
"""What people said of an answer; one that was only shown counts as chosen."""
NOWHERE = Origin(file="", row=0)


@dataclass(slots=True)
class Sample:
    """One record, taken apart once for all checks. Example: `Sample.of(preference).answers == (chosen, rejected)`.

    Not frozen: a million of them pass by, and frozen ones take three times as long to make.
    """

    origin: Origin
    messages: Messages
    """The conversation up to the answers."""
    prompt: str
    """The same as one text, turns parted by line breaks."""
    answers: tuple[str, ...]
    """Best first, where they are ordered."""
    sides: tuple[Side, ...]
    key: int
    """64-bit hash of the prompt, but for case and white space."""
    answer_keys: tuple[int, ...]
    tags: Mapping[str, str]
    kind: type[Record]

    @classmethod
    def of(cls, record: Record) -> "Sample":
        """Takes a record apart."""
        answers: tuple[str, ...]
        sides: tuple[Side, ...]
        match record:
            case Preference():
                messages, answers, sides = record.prompt, (record.chosen, record.rejected), ("chosen", "rejected")
            case Demonstration():
                messages, answers, sides = record.messages[:-1], (record.messages[-1].content,), ("chosen",)
            case Feedback():
                messages, answers = record.prompt, (record.response,)
                sides = ("chosen",) if record.desirable else ("rejected",)
            case Steps():
                messages, answers = record.prompt, (record.response,)
                sides = ("chosen",) if all(record.labels) else ("rejected",)
            case Ranking():
                messages, answers = record.prompt, record.responses
                sides = ("chosen", *_between(len(answers) - 2), "rejected")
            case Prompt():
                messages, answers, sides = record.messages, (), ()
            case _:
                assert_never(record)
        prompt = messages[0].content if len(messages) == 1 else "\n".join(turn.content for turn in messages)
        return cls(
            origin=record.origin or NOWHERE,
            messages=messages,
            prompt=prompt,
            answers=answers,
            sides=sides,
            key=text_key(prompt),
            answer_keys=tuple(map(text_key, answers)),
            tags=record.tags,
            kind=type(record),
        )

    @property
    def pair(self) -> tuple[str, str] | None:
        """The best and the worst answer, where two were compared."""
        return (self.answers[0], self.answers[-1]) if len(self.answers) > 1 else None


def _between(count: int) -> tuple[Side, ...]:
    side: Side = "between"
    return (side,) * count


def text_key(text: str) -> int:
    """A 64-bit hash of a text, the same for texts that differ only in case and white space."""
    return int.from_bytes(hashlib.blake2b(" ".join(text.casefold().split()).encode(), digest_size=8).digest())
