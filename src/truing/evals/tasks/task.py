"""What a task is: questions with the answers to choose from, or prompts to answer; a judgement of each; figures over all.

A task knows its data, its wording and its measure. It never sees a model: likelihoods are `likelihood`, answers `generation`, and
the way from a model to a result, chunk by chunk, is `evaluate`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from truing.evals.tasks.files import Files
from truing.statistics import Estimate

Row = dict[str, Any]
"""One judged item in plain JSON types. Always there: `key`, and `score` in [0, 1] where the item has one (else None)."""

Style = Literal["plain", "chat"]
"""`plain`: the text as it stands, as published harnesses have it; `chat`: as a user's message in the model's own template."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """One question and the answers whose likelihoods are compared.

    Example: `Choices(key="anatomy/3", shots="...", text="... B. ulna\\nAnswer:", answers=(" A", " B"), row={"gold": 1})`.
    """

    key: str
    """Names the item in results and errors; no two items of a task share one."""
    shots: str
    """What neighbouring questions begin with, such as worked examples; it is computed once for all of them."""
    text: str
    """The question itself, up to where the answer begins."""
    answers: tuple[str, ...]
    """What may follow, each with the space before it."""
    row: Mapping[str, Any]
    """What judging needs beside the likelihoods."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One prompt to be answered. Example: `Asked(key="gsm8k/0", turns=("Question: ...\\nAnswer:",), row={"gold": "18"})`."""

    key: str
    """Names the item in results and errors; no two items of a task share one."""
    turns: tuple[str, ...]
    """What is said to the model, turn by turn; after each, its answer so far stands in the conversation."""
    row: Mapping[str, Any]
    """What judging needs beside the answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What the model said to one prompt. Example: `Said(turns=("It is 18.",), finished=True)`."""

    turns: tuple[str, ...]
    """One answer a turn."""
    finished: bool
    """Whether the last one ended by itself rather than at the limit of tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a task measures of a model; the first figure is the headline."""

    figures: Mapping[str, Estimate]
    notes: tuple[str, ...] = ()
    """What a reader must know of these figures, such as an undefined one that is left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a task has its prompts answered. Example: `Sampling(max_tokens=256, until=("Question:",))`."""

    max_tokens: int
    """Longest answer of a turn, in tokens."""
    until: tuple[str, ...] = ()
    """Texts at which an answer in plain style ends; they do not belong to it."""
    samples: int = 1
    """Answers a prompt."""
    temperature: float = 0.0
    """0 takes the likeliest token."""
    style: Style = "chat"
    """The style in which the task is usually asked."""


@runtime_checkable
class ChoiceTask(Protocol):
    """Questions with answers to choose from, by likelihood."""

    def questions(self, files: Files) -> list[Choices]:
        """All questions, neighbours sharing their shots. Raises `DataError` naming file and row of what cannot be used."""
        ...

    def judge(self, question: Choices, log_probs: Sequence[float]) -> Row:
        """What these log-likelihoods, one an answer, say of this question."""
        ...

    def figures(self, rows: Sequence[Row], seed: int) -> Figures:
        """The measures over all judged questions; `seed` is that of the bootstrap."""
        ...


@runtime_checkable
class AnswerTask(Protocol):
    """Prompts to be answered in words."""

    def sampling(self) -> Sampling:
        """How answers are drawn."""
        ...

    def prompts(self, files: Files) -> list[Asked]:
        """All prompts. Raises `DataError` naming file and row of what cannot be used."""
        ...

    def judge(self, asked: Asked, said: Sequence[Said]) -> Row:
        """What these answers are worth."""
        ...

    def figures(self, rows: Sequence[Row], seed: int) -> Figures:
        """The measures over all judged prompts; `seed` is that of the bootstrap."""
        ...


Task = ChoiceTask | AnswerTask


def credit(log_probs: Sequence[float], gold: int) -> float:
    """1 where the gold answer alone is the likeliest, 0 where another is likelier; t answers that share the top get 1/t each.

    A tie must not go to whatever stands first: in several published sets that is always the right answer.
    """
    best = max(log_probs)
    return (log_probs[gold] == best) / sum(value == best for value in log_probs)


def finite(question: Choices, log_probs: Sequence[float]) -> Sequence[float]:
    """The log-likelihoods, once there is one finite number for each answer. Raises ValueError naming the item and the answer."""
    if len(log_probs) != len(question.answers):
        raise ValueError(f"{question.key}: {len(log_probs)} log-likelihoods for {len(question.answers)} answers")
    for answer, value in zip(question.answers, log_probs, strict=True):
        if not math.isfinite(value):
            raise ValueError(
                f"{question.key}: the log-likelihood of the answer {answer.strip()!r} is {value}: the model's numbers overflow "
                "or its training has diverged; try dtype=fp32, or take an earlier checkpoint"
            )
    return log_probs


@dataclass(frozen=True, slots=True)
class Unique:
    """Refuses the second item of one name. Example: `Unique("bbq")`, then called with each key."""

    task: str
    seen: set[str] = field(default_factory=set)

    def __call__(self, key: str, place: str) -> str:
        if key in self.seen:
            raise ValueError(f"{place}: {self.task} has the item {key} twice; take one of them out")
        self.seen.add(key)
        return key
