"""A reward as a judge: a learned reward model or rules score both answers, and the difference is a Bradley-Terry probability.

It sees one answer at a time, so there is no order to be biased by: both orders say the same.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from truing.data.chat import ChatTokenizer
from truing.judges.judgement import Comparison, Judgement
from truing.records import Completion, Prompt, Reward, Rollout
from truing.rewards.base import RewardFunction

WHOLE_TEXT = 1 << 20
"""No limit on tokens: what was said is scored as a whole."""


@dataclass(frozen=True, kw_only=True)
class RewardJudge:
    """P(first better) = sigma((r(first) - r(second)) / scale). Example: `RewardJudge(reward=rule)([comparison])[0].side`."""

    reward: RewardFunction
    chat: ChatTokenizer | None = None
    """The tokenizer and template that a learned reward model was trained with; rules of text need none."""
    scale: float = 1.0
    """How large a difference makes a probability of 73%; 1 for a reward model that was trained by Bradley-Terry."""
    name: str = "the reward"
    identity: str = ""
    """A hash of what the reward depends on, for provenance."""

    def __call__(self, comparisons: Sequence[Comparison]) -> list[Judgement]:
        """Judgements of the differences; an answer without a reward is a problem."""
        rollouts = [
            rollout
            for comparison in comparisons
            for rollout in rollouts_of(comparison.prompt, (comparison.first, comparison.second), comparison.finished, self.chat)
        ]
        rewards = self.reward(rollouts)
        return [self._judgement(first, second) for first, second in zip(rewards[::2], rewards[1::2], strict=True)]

    def _judgement(self, first: Reward, second: Reward) -> Judgement:
        problem = first.problem or second.problem
        if problem:
            return Judgement(orders=(math.nan, math.nan), problem=problem)
        gap = max(-700.0, min(700.0, (second.value - first.value) / self.scale))
        probability = 1 / (1 + math.exp(gap))
        return Judgement(orders=(probability, probability))


def rollouts_of(
    prompt: Prompt, answers: Sequence[str], finished: Sequence[bool], chat: ChatTokenizer | None
) -> tuple[Rollout, ...]:
    """Answers as rewards see them: the tokens that a reward model was trained on, with an end token where the answer had ended."""
    trunk, tokens = (), [()] * len(answers)  # type: tuple[int, ...], list[tuple[int, ...]]
    if chat is not None:
        encoded = chat.tree_of_responses(prompt.messages, answers, max_tokens=WHOLE_TEXT, finished=tuple(finished), sampled=True)
        # Unfinished and empty leaves no token to be scored: it is scored as having ended at once.
        if encoded.tree is None:
            encoded = chat.tree_of_responses(prompt.messages, answers, max_tokens=WHOLE_TEXT, sampled=True)
        assert encoded.tree is not None, "a prompt has messages"
        trunk, tokens = encoded.tree.trunk, [branch.tokens for branch in encoded.tree.branches]
    return tuple(
        Rollout(
            prompt=prompt,
            trunk=trunk,
            completion=Completion(tokens=said, stop="end" if ended else "length"),
            response=answer,
        )
        for answer, said, ended in zip(answers, tokens, finished, strict=True)
    )
