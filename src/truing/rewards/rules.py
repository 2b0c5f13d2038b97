"""Rules that score one rollout by its text or length, and a function out of a file of the user's.

A rule is a frozen dataclass with `score(rollout)`; it runs in a process of its own (`truing.rewards.outside`), because a regular
expression or a function can hang. No torch here.
"""

import importlib.util
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Protocol, runtime_checkable

from pydantic import Field

from truing.records import Rollout
from truing.rewards.remote import RemoteScore

NUMBER = re.compile(
    r"""(?:(?<![\w.)\]}])[-+\u2212])?  # a sign, but neither the minus of 7-4 nor the hyphen of COVID-19
        (?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<!\d)\.\d+)  # commas between thousands alone: 1,2 is two numbers
        (?:[eE][-+]?\d+)?""",
    re.VERBOSE,
)
"""What counts as a number in a text."""


@runtime_checkable
class Rule(Protocol):
    """Scores one rollout; whatever it raises is counted as this rollout's problem."""

    @property
    def weight(self) -> float:
        """What the value is multiplied by in the sum."""
        ...

    def score(self, rollout: Rollout) -> float:
        """The value before its weight."""
        ...


@dataclass(frozen=True, kw_only=True)
class RegularExpression:
    """How often a pattern is found in the response, up to `most` times."""

    pattern: str
    """A regular expression of Python; `(?i)` in front ignores case, `(?s)` lets a dot stand for line ends."""
    most: Annotated[int, Field(gt=0)] = 1
    """Matches beyond so many count for nothing; 1 says whether there is one."""
    weight: float = 1.0
    """What the value is multiplied by in the sum."""

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"pattern {self.pattern!r} is no regular expression: {error}") from None

    def score(self, rollout: Rollout) -> float:
        return float(min(self.most, sum(1 for _ in re.finditer(self.pattern, rollout.response))))


@dataclass(frozen=True, kw_only=True)
class LengthWindow:
    """1 where the response is between `least` and `most` long, else falling to 0 over `slope` units outside."""

    least: Annotated[int, Field(ge=0)] = 0
    """Shortest length that is right."""
    most: Annotated[int, Field(ge=0)] | None = None
    """Longest length that is right; null is any."""
    unit: Literal["tokens", "words", "characters"] = "tokens"
    """What is counted; the end token counts as one."""
    slope: Annotated[float, Field(gt=0)] = 1.0
    """Units outside after which the value is 0; 1 is a hard edge."""
    weight: float = 1.0
    """What the value is multiplied by in the sum."""

    def score(self, rollout: Rollout) -> float:
        length = length_of(rollout, self.unit)
        outside = max(self.least - length, length - self.most if self.most is not None else 0, 0)
        return max(0.0, 1.0 - outside / self.slope)


@dataclass(frozen=True, kw_only=True)
class Length:
    """How long the response is; with a negative weight, a price for every token."""

    unit: Literal["tokens", "words", "characters"] = "tokens"
    """What is counted; the end token counts as one."""
    weight: float = -0.01
    """What the value is multiplied by in the sum."""

    def score(self, rollout: Rollout) -> float:
        return float(length_of(rollout, self.unit))


@dataclass(frozen=True, kw_only=True)
class Format:
    """1 where the response has the form: one JSON value, or the named tags, each once, in order and nothing outside of them."""

    form: Literal["json", "tags"] = "tags"
    """Which form."""
    tags: tuple[str, ...] = ("think", "answer")
    """For tags: their names, as in <think>...</think><answer>...</answer>."""
    weight: float = 1.0
    """What the value is multiplied by in the sum."""

    def score(self, rollout: Rollout) -> float:
        text = rollout.response.strip()
        if self.form == "json":
            try:
                json.loads(text)
            except (ValueError, RecursionError):
                return 0.0
            return 1.0
        names = [re.escape(name) for name in self.tags]
        whole = r"\s*".join(f"<{name}>.*?</{name}>" for name in names)
        once = all(text.count(f"<{name}>") == 1 == text.count(f"</{name}>") for name in self.tags)
        return float(once and re.fullmatch(whole, text, re.DOTALL) is not None)


@dataclass(frozen=True, kw_only=True)
class ExactAnswer:
    """1 where the response is the expected text, but for case and white space around it."""

    column: str = "shown"
    """The column of the data that holds what is expected; `shown` is the answer of a demonstration, the chosen one of a pair."""
    after: str | None = None
    """What stands before the answer, such as "####": what follows its last occurrence is compared, on both sides."""
    weight: float = 1.0
    """What the value is multiplied by in the sum."""

    def score(self, rollout: Rollout) -> float:
        said, expected = (
            behind(text, self.after).strip().casefold() for text in (rollout.response, expected_of(rollout, self.column))
        )
        return float(said == expected)


@dataclass(frozen=True, kw_only=True)
class NumericAnswer:
    """1 where the last number of the response is the last number that is expected."""

    column: str = "shown"
    """The column of the data that holds what is expected; `shown` is the answer of a demonstration, the chosen one of a pair."""
    after: str | None = None
    """What stands before the answer, such as "####": numbers are looked for behind its last occurrence, on both sides."""
    tolerance: Annotated[float, Field(ge=0)] = 1e-6
    """Largest difference, relative to the expected number or to 1, whichever is larger."""
    weight: float = 1.0
    """What the value is multiplied by in the sum."""

    def score(self, rollout: Rollout) -> float:
        expected = last_number(behind(expected_of(rollout, self.column), self.after))
        if expected is None:
            raise ValueError(f"column {self.column} of {rollout.prompt.origin} holds no number")
        said = last_number(behind(rollout.response, self.after))
        return float(said is not None and abs(said - expected) <= self.tolerance * max(1.0, abs(expected)))


@dataclass(frozen=True, kw_only=True)
class PythonFunction:
    """A function out of a Python file: it is given the rollout (`rollout.response`, `rollout.prompt`) and returns a number."""

    file: Path
    """The file. It is executed with your rights, in a process of its own."""
    function: str = "reward"
    """The function's name in it."""
    weight: float = 1.0
    """What the value is multiplied by in the sum."""

    def score(self, rollout: Rollout) -> float:
        return float(self.loaded(rollout))

    @cached_property
    def loaded(self) -> Callable[[Rollout], float]:
        """The function itself. Raises ValueError naming the file when it is not to be had."""
        if not self.file.is_file():
            raise ValueError(f"{self.file}: no such file; name the Python file that holds {self.function}()")
        spec = importlib.util.spec_from_file_location("truing_user_reward", self.file)
        if spec is None or spec.loader is None:
            raise ValueError(f"{self.file}: not a Python file; its name must end in .py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found = getattr(module, self.function, None)
        if not callable(found):
            raise ValueError(f"{self.file}: has no function {self.function}; name it in reward.<part>.function")
        function: Callable[[Rollout], float] = found
        return function


RULES: dict[str, type] = {
    "regular_expression": RegularExpression,
    "length_window": LengthWindow,
    "length": Length,
    "format": Format,
    "exact_answer": ExactAnswer,
    "numeric_answer": NumericAnswer,
    "python": PythonFunction,
    "remote": RemoteScore,
}
"""Name in a config -> rule."""


def length_of(rollout: Rollout, unit: Literal["tokens", "words", "characters"]) -> int:
    """The response's length in a unit. Raises ValueError for tokens where there is text alone, which is no length of 0."""
    if unit == "tokens":
        if rollout.response and not rollout.completion.tokens:
            raise ValueError(f"the answer {rollout.response[:40]!r} came as text, without tokens to count; set unit=words")
        return len(rollout.completion.tokens)
    return len(rollout.response.split()) if unit == "words" else len(rollout.response)


def expected_of(rollout: Rollout, column: str) -> str:
    """What a column of the rollout's row says. Raises ValueError naming the row where it has no such column."""
    if column not in rollout.prompt.tags:
        there = ", ".join(rollout.prompt.tags) or "none"
        raise ValueError(f"{rollout.prompt.origin}: no column {column} (columns there: {there})")
    return rollout.prompt.tags[column]


def behind(text: str, marker: str | None) -> str:
    """What follows the marker's last occurrence; all of the text where there is none."""
    return text.rpartition(marker)[2] if marker else text


def last_number(text: str) -> float | None:
    """The last number of a text, thousands separated by commas or not; None where there is none.

    A sign belongs to a number unless a word, another number or a bracket stands right before it: "7-4" ends in 4, "= -4" in -4.
    """
    found = NUMBER.findall(text)
    return float(found[-1].replace(",", "").replace("\u2212", "-")) if found else None
