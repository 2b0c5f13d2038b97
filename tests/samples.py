"""Made-up texts and records for the tests of looking at data and mending it."""

import random
from collections.abc import Callable

from truing.quality.finding import Check, Finding
from truing.quality.sample import Sample
from truing.records import Feedback, Message, Messages, Origin, Preference

Truing = Callable[..., tuple[int, str, str]]
"""A command line to its exit status, output and errors."""
# fmt: off
WORDS = [
    "kettle", "garden", "river", "engine", "poem", "winter", "ladder", "candle", "market", "violin", "harbour", "pepper",
    "blanket", "stone", "orchard", "lantern", "bridge", "copper", "saddle", "thunder", "meadow", "pocket", "barrel", "feather",
    "anchor", "basket", "dragon", "mirror", "cotton", "shadow", "tunnel", "window", "spider", "hammer", "valley",
]
# fmt: on


def asked(text: str) -> Messages:
    return (Message(role="user", content=text),)


def pair(row: int, prompt: str, chosen: str, rejected: str) -> Sample:
    origin = Origin(file="p.jsonl", row=row)
    return Sample.of(Preference(prompt=asked(prompt), chosen=chosen, rejected=rejected, origin=origin))


def judged(row: int, prompt: str, response: str, desirable: bool) -> Sample:
    origin = Origin(file="p.jsonl", row=row)
    return Sample.of(Feedback(prompt=asked(prompt), response=response, desirable=desirable, origin=origin))


def found(check: Check, samples: list[Sample]) -> dict[str, Finding]:
    for sample in samples:
        check.see(sample)
    return {finding.name: finding for finding in check.findings()}


def prose(seed: int, words: int = 30) -> str:
    """A made-up sentence that ends, and shares no run of words with that of another seed."""
    draw = random.Random(seed)
    return "The " + " and the ".join(draw.choice(WORDS) for _ in range(words // 3)) + "."


def clean(count: int, seed: int = 0) -> list[Sample]:
    return [
        pair(i, f"Tell me of {prose(seed + 3 * i, 12)}", prose(seed + 3 * i + 1), prose(seed + 3 * i + 2))
        for i in range(1, count + 1)
    ]
