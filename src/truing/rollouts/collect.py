"""Answers of the live policy to prompts: k to each, as rollouts, the same on any number of ranks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from truing.models.policy import Policy
from truing.records import Completion, Prompt, Rollout
from truing.rollouts.sampler import Decoding, sample

Decode = Callable[[Sequence[int]], str]
Tokens = tuple[int, ...]


Progress = Callable[[int, int], None]
"""Takes how many are done, and of how many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a sampler is asked for. What is drawn for a prompt hangs on the seed and its place, so that ranks may share them."""

    prompts: Sequence[Tokens]
    places: Sequence[int]
    """A place of its own for each prompt."""
    decoding: Decoding
    stop_ids: frozenset[int]
    """An end token is part of its completion."""
    seed: int


@runtime_checkable
class Sampler(Protocol):
    """Says what a policy says: tokens, how likely each was, and how the answer ended; here or in another program."""

    def bring(self, version: int) -> None:
        """Speak from now on as the policy does now, which has taken `version` updates. Every rank calls it before a round."""
        ...

    def __call__(self, request: Request, progress: Progress | None = None) -> list[Completion]:
        """One completion a prompt, in their order, drawn from the whole distribution.

        Log-probabilities are those of the distribution drawn from, temperature included.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSampler:
    """The policy itself, in this process: there is nothing to bring. Example: `LocalSampler(policy=policy)`."""

    policy: Policy

    def bring(self, version: int) -> None:
        """Nothing: its weights are the policy's."""

    def __call__(self, request: Request, progress: Progress | None = None) -> list[Completion]:
        """As `truing.rollouts.sampler.sample`."""
        return sample(
            self.policy,
            request.prompts,
            request.decoding,
            stop_ids=request.stop_ids,
            seed=request.seed,
            places=request.places,
            progress=progress,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A prompt that is about to be asked."""

    number: int
    """Its place in the round, over all ranks: what is drawn for it depends on the seed and on this."""
    prompt: Prompt
    trunk: tuple[int, ...]


def collect(
    sampler: Sampler,
    questions: Sequence[Question],
    decoding: Decoding,
    *,
    samples: int,
    stop_ids: frozenset[int],
    decode: Decode,
    seed: int,
    version: int = 0,
    progress: Progress | None = None,
) -> list[list[Rollout]]:
    """`samples` rollouts of each question, in the order of the questions."""
    asked = [question for question in questions for _ in range(samples)]
    request = Request(
        prompts=[question.trunk for question in asked],
        places=[question.number * samples + i for question in questions for i in range(samples)],
        decoding=decoding,
        stop_ids=stop_ids,
        seed=seed,
    )
    said = sampler(request, progress)
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
