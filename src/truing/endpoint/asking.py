"""What is asked of a chat endpoint and what comes of it: settings, questions, replies, named failures, the account. No network."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from truing.records import Messages

Fault = Literal[
    "timed out",
    "cannot connect",
    "connection lost",
    "too many requests",
    "server error",
    "malformed reply",
    "refused",
    "redirected",
]
PASSING: frozenset[Fault] = frozenset(
    {"timed out", "cannot connect", "connection lost", "too many requests", "server error", "malformed reply"}
)
"""Faults that are worth another try."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A server and how it is asked. Example: `Endpoint(url="http://127.0.0.1:8000/v1", model="my-model")`."""

    url: str
    """Where the server's interface begins, up to and with /v1."""
    model: str
    """The model's name at the server."""
    key_variable: str | None = None
    """The environment variable that holds the key; null sends none. The key itself is never a setting."""
    seconds: Annotated[float, Field(gt=0)] = 120.0
    """Longest that one try may take."""
    retries: Annotated[int, Field(ge=0)] = 6
    """Further tries after a failure that may pass."""
    wait: Annotated[float, Field(ge=0)] = 1.0
    """Seconds before the second try; each further one waits twice as long, up to longest_wait."""
    longest_wait: Annotated[float, Field(gt=0)] = 120.0
    """A server that asks for more patience than this many seconds is not waited for."""
    concurrent: Annotated[int, Field(gt=0, le=256)] = 8
    """Requests under way at once."""
    structured: Literal["json_schema", "json_object", "none"] = "json_schema"
    """How the server is told the form of a reply that has one; it is checked all the same."""
    input_price: Annotated[float, Field(ge=0)] = 0.0
    """Price of a million tokens read, in a currency of your choice."""
    output_price: Annotated[float, Field(ge=0)] = 0.0
    """Price of a million tokens said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One question. Example: `Ask(messages=(Message(role="user", content="Is the kettle on?"),))`."""

    messages: Messages
    max_tokens: int = 256
    temperature: float = 0.0
    seed: int | None = None
    """Sent where given; a further try sends the next number, or it would be told the same again."""
    schema: Mapping[str, object] | None = None
    """The JSON schema that the reply is to follow."""
    place: int = 0
    """Tells questions apart that are otherwise the same, such as samples of one prompt; not sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the server said. Example: `Reply(text="Yes.", stop="end")`."""

    text: str
    stop: Literal["end", "length"]
    read: int = 0
    """Tokens of the question, as the server counts them."""
    said: int = 0
    """Tokens of the answer."""
    model: str = ""
    """What the server calls the model that answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """Why there is no reply. Example: `Failed(fault="timed out", text="after 120 s", tries=7)`."""

    fault: Fault
    text: str = ""
    tries: int = 1

    def __str__(self) -> str:
        return f"{self.fault}{': ' if self.text else ''}{self.text}{f' ({self.tries} tries)' if self.tries > 1 else ''}"


@dataclass(kw_only=True)
class Spent:
    """What asking took, this time."""

    endpoint: Endpoint
    asked: int = 0
    kept: int = 0
    """Questions that a kept reply answered."""
    requests: int = 0
    """Tries in all."""
    read: int = 0
    said: int = 0
    kept_read: int = 0
    """Tokens of questions whose reply was paid for before."""
    kept_said: int = 0
    uncounted: int = 0
    """Replies whose tokens the server did not count."""
    faults: Counter[str] = field(default_factory=Counter)
    """Tries that failed, by fault."""
    failed: int = 0
    """Questions without a reply in the end."""

    @property
    def cost(self) -> float:
        """By the prices of the endpoint, tries that came to nothing included as far as their tokens are known."""
        return self._price(self.read, self.said)

    @property
    def cost_in_all(self) -> float:
        """With what kept replies cost when they came."""
        return self._price(self.read + self.kept_read, self.said + self.kept_said)

    def _price(self, read: int, said: int) -> float:
        return (read * self.endpoint.input_price + said * self.endpoint.output_price) / 1e6

    def __str__(self) -> str:
        priced = self.endpoint.input_price or self.endpoint.output_price
        parts = [
            f"{self.asked} asked ({self.kept} kept from before, {self.failed} failed), {self.requests} requests",
            f"{self.read} tokens read and {self.said} said" + (f", {self.uncounted} replies uncounted" if self.uncounted else ""),
            *([f"cost {self.cost:.4f}"] if priced else []),
            *([", ".join(f"{count} {name}" for name, count in self.faults.most_common())] if self.faults else []),
        ]
        return "; ".join(parts)
