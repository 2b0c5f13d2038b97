"""Principles as data: a YAML file of them, read strictly; which of them apply to a request.

Left out: what is asked of a model by them (`truing.constitution.revise`, `truing.constitution.prefer`), and what is done where
they disagree (`truing.constitution.conflicts`).
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from truing.config import load
from truing.records import Messages
from truing.settings_text import ConfigError, read_file

DEFAULT = Path(__file__).parent / "default.yaml"
"""The constitution that comes with the package."""


@dataclass(frozen=True, kw_only=True)
class Scope:
    """When a principle applies. Example: `Scope(when="the request is about health", words=("dose", "fever"))`."""

    when: str = "always"
    """In words, for people and for the model that judges."""
    words: tuple[str, ...] = ()
    """It applies where the last turn of the user holds one of these words or phrases, in any case; without any, always."""


@dataclass(frozen=True, kw_only=True)
class Principle:
    """One principle. Its text says what a good answer does, so that it serves critique, revision and comparison alike."""

    id: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")]
    """Its name in reports: small letters, digits, hyphens."""
    text: Annotated[str, Field(min_length=10)]
    """What a good answer does, as a full sentence."""
    source: Annotated[str, Field(min_length=1)]
    """Where it comes from."""
    priority: Annotated[int, Field(ge=1)]
    """Which principle decides where they disagree: 1 before 2; those of one priority weigh alike."""
    aim: Literal["helpful", "harmless", "honest"]
    """What it is for."""
    scope: Scope = field(default_factory=Scope)
    """When it applies."""
    guidance: str = ""
    """How edge cases are to be seen."""

    def applies(self, prompt: Messages) -> bool:
        """Whether the conversation is within its scope."""
        asked = next((message.content for message in reversed(prompt) if message.role == "user"), "")
        return not self.scope.words or any(_words(word) in _words(asked) for word in self.scope.words)


@dataclass(frozen=True, kw_only=True)
class Constitution:
    """A list of principles, in their order in the file. Example: `read_constitution(DEFAULT).applying(prompt)`."""

    name: str
    """What it is called in reports."""
    principles: tuple[Principle, ...]
    """At least one, no two of one id."""

    def applying(self, prompt: Messages) -> tuple[Principle, ...]:
        """Those whose scope the conversation is in; none is possible."""
        return tuple(principle for principle in self.principles if principle.applies(prompt))


def read_constitution(path: Path = DEFAULT) -> Constitution:
    """Reads a file strictly. Raises ValueError with file and line for whatever is missing, unknown, misspelt or there twice."""
    found = load(Constitution, file=path).value
    problems: list[str] = []
    lines: dict[tuple[str | int, ...], str] = {}
    read_file(path, lines, problems)
    if not found.principles:
        raise ConfigError([f"{lines[('principles',)]}: there is no principle; write at least one"])
    count = Counter(principle.id for principle in found.principles)
    for number, principle in enumerate(found.principles):
        place = ("principles", number)
        if count[principle.id] > 1:
            problems.append(
                f"{lines[(*place, 'id')]}: the id {principle.id} is there {count[principle.id]} times; each needs its own"
            )
        for at, word in enumerate(principle.scope.words):
            if not re.search(r"\w", word):
                problems.append(f"{lines[(*place, 'scope', 'words', at)]}: {word!r} holds no word; leave it out")
    if problems:
        raise ConfigError(problems)
    return found


def _words(text: str) -> str:
    """The words of a text with a space around each, so that one is found in another as whole words only."""
    return " ".join(["", *re.findall(r"\w+", text.casefold()), ""])
