"""What alignment data is: frozen records, no tensors and no I/O.

Each record is one unit of work: a prompt and what was said, shown, compared, ordered or judged of it. Symmetries are
methods on the record. Reading records from files is `truing.data.read`; turning them into tokens is `truing.data.chat`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn. Example: `Message(role="user", content="Is the kettle on?")`."""

    role: Role
    content: str


Messages = tuple[Message, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a record was read. Example: `Origin(file="pairs.jsonl", row=86)` prints as `pairs.jsonl:86`."""

    file: str
    """The path as the user gave it."""
    row: int
    """The 1-based line of JSONL and CSV (the line on which the record begins), the 1-based row of JSON arrays, Parquet, Arrow."""

    def __str__(self) -> str:
        return f"{self.file}:{self.row}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """Asks. Example: `Prompt(messages=(Message(role="user", content="Is the kettle on?"),))`."""

    messages: Messages
    origin: Origin | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    """Further columns of the row, by name, such as kind and topic: for grouping in reports, never shown to a model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """Shows: a conversation whose assistant turns are all worth imitating; its last message is an assistant turn.

    Example: `Demonstration(messages=(Message(role="user", content="2+2?"), Message(role="assistant", content="4")))`.
    """

    messages: Messages
    origin: Origin | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """Compares two responses to one prompt. Example: `Preference(prompt=p.messages, chosen="Yes, it is on.", rejected="Look.")`."""

    prompt: Messages
    """The conversation up to the response; its last message is not an assistant turn."""
    chosen: str
    rejected: str
    margin: float | None = None
    """How much better chosen is, in the annotator's units, where it was asked (Llama 2, arXiv 2307.09288, eq. 2)."""
    probability: float | None = None
    """That chosen is the better one, between 0 and 1, where a judge is not certain; None is as good as 1."""
    origin: Origin | None = None
    tags: Mapping[str, str] = field(default_factory=dict)

    def swapped(self) -> "Preference":
        """The opposite statement: the responses change places, the margin its sign, and the probability is that of the other."""
        return replace(
            self,
            chosen=self.rejected,
            rejected=self.chosen,
            margin=None if self.margin is None else -self.margin,
            probability=None if self.probability is None else 1 - self.probability,
        )

    def as_demonstration(self) -> Demonstration:
        """The chosen response as something to imitate."""
        return Demonstration(
            messages=(*self.prompt, Message(role="assistant", content=self.chosen)), origin=self.origin, tags=self.tags
        )

    def as_feedback(self) -> "tuple[Feedback, Feedback]":
        """Two judgements: chosen desirable, rejected not; the other way round where rejected is more probably the better one."""
        likely = self.probability is None or self.probability >= 0.5
        return (
            Feedback(prompt=self.prompt, response=self.chosen, desirable=likely, origin=self.origin, tags=self.tags),
            Feedback(prompt=self.prompt, response=self.rejected, desirable=not likely, origin=self.origin, tags=self.tags),
        )

    def as_ranking(self) -> "Ranking":
        """A ranking of two."""
        return Ranking(prompt=self.prompt, responses=(self.chosen, self.rejected), origin=self.origin, tags=self.tags)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """Orders k responses to one prompt, best first. Example: `Ranking(prompt=p.messages, responses=("good", "fair", "poor"))`."""

    prompt: Messages
    responses: tuple[str, ...]
    origin: Origin | None = None
    tags: Mapping[str, str] = field(default_factory=dict)

    def pairs(self) -> tuple[Preference, ...]:
        """All k(k-1)/2 comparisons that the order implies (InstructGPT, arXiv 2203.02155, section 3.5)."""
        return tuple(
            Preference(prompt=self.prompt, chosen=better, rejected=worse, origin=self.origin, tags=self.tags)
            for i, better in enumerate(self.responses)
            for worse in self.responses[i + 1 :]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """Approves of one response, or not. Example: `Feedback(prompt=p.messages, response="Yes.", desirable=True)`."""

    prompt: Messages
    response: str
    desirable: bool
    origin: Origin | None = None
    tags: Mapping[str, str] = field(default_factory=dict)

    def swapped(self) -> "Feedback":
        """The opposite judgement."""
        return replace(self, desirable=not self.desirable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Judges each step of one response. Example: `Steps(prompt=p.messages, steps=("2+2=4", "so 5"), labels=(True, False))`."""

    prompt: Messages
    steps: tuple[str, ...]
    """What the response is made of, in its order; none of them holds the separator."""
    labels: tuple[bool, ...]
    """Whether each step is right."""
    separator: str = "\n"
    """What stands between two steps of the response."""
    origin: Origin | None = None
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def response(self) -> str:
        """The steps as one text."""
        return self.separator.join(self.steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What a sampler said. Example: `Completion(tokens=(40, 2), stop="end")`."""

    tokens: tuple[int, ...]
    """With the end token, where it was reached."""
    stop: Literal["end", "length"]
    """Whether the model ended its turn or the limit did."""
    log_probs: tuple[float, ...] = field(default=(), compare=False)
    """log pi of each token under the distribution that it was drawn from; empty where the likeliest were taken. Not compared: they
    say how a completion came about, not what it says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One answer of a policy to one prompt, as rewards see it; k answers are k rollouts.

    Example: `Rollout(prompt=p, trunk=(1, 17), completion=c, response="4")`.
    """

    prompt: Prompt
    trunk: tuple[int, ...]
    """The tokens that the completion goes on from."""
    completion: Completion
    response: str
    """The completion as text, without its end token; empty where the policy said nothing but that."""
    version: int = 0
    """How many updates the policy had taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    """A value with its named parts. Example: `Reward(value=0.7, parts={"right": 1.0, "length": -0.3})`."""

    value: float
    """The weighted sum of the parts; NaN where there is a problem, so that it cannot be used unseen."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """By name, before their weights; without those that failed."""
    notes: Mapping[str, float] = field(default_factory=dict)
    """What else is known of the parts, such as an ensemble's `good_disagreement`: written down and averaged, not summed."""
    problem: str = ""
    """What went wrong, with the part's name; empty where nothing did."""


Record = Prompt | Demonstration | Preference | Ranking | Feedback | Steps
