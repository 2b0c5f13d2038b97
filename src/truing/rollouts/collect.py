"""Answers of the live policy to prompts: k to each, as rollouts, the same on any number of ranks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from truing.models.policy import Policy
from truing.records import Prompt, Rollout
from truing.rollouts.sampler import Decoding, sample

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A prompt that is about to be asked."""

    number: int
    """Its place in the round, over all ranks: what is drawn for it depends on the seed and on this."""
    prompt: Prompt
    trunk: tuple[int, ...]


def collect(
    policy: Policy,
    questions: Sequence[Question],
    decoding: Decoding,
    *,
    samples: int,
    stop_ids: frozenset[int],
    decode: Decode,
    seed: int,
    version: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[list[Rollout]]:
    """`samples` rollouts of each question, in the order of the questions."""
    asked = [question for question in questions for _ in range(samples)]
    said = sample(
        policy,
        [question.trunk for question in asked],
        decoding,
        stop_ids=stop_ids,
        seed=seed,
        places=[question.number * samples + i for question in questions for i in range(samples)],
        progress=progress,
    )
    rollouts = [
        Rollout(
            prompt=question.prompt,
            trunk=question.trunk,
            completion=completion,
            response=decode(completion.tokens),
            version=version,
        )
        for question, completion in zip(asked, said, strict=True)
    ]
    return [rollouts[start : start + samples] for start in range(0, len(rollouts), samples)]
