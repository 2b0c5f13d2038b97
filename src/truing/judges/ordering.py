"""Answers to a prompt in order: by a reward, one at a time; or by a judge, each against each. Plain functions, no files.

A judge's score of an answer is its mean probability to beat the others (Borda's count with probabilities), so a judge that
contradicts itself in a circle still gives an order, and the pairs it was made of are kept beside it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from truing.data.chat import ChatTokenizer
from truing.judges.judgement import Comparison, Judge, Judgement
from truing.judges.reward import rollouts_of
from truing.records import Messages, Prompt
from truing.rewards.base import RewardFunction
from truing.runs.canonical import digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer and whose it is. Example: `Answer(text="Yes, it is on.", writer="sft")`."""

    text: str
    finished: bool = True
    """Whether it ended by itself and not by a limit on its length."""
    writer: str = ""
    """Who wrote it, for people."""
    identity: str = ""
    """A hash of what decided it: weights, tokenizer, decoding."""
    model: str = ""
    """A hash of the model alone, by which a judge's own answers are known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A prompt and answers to it that differ. Example: `Answered(prompt=p, answers=(Answer(text="Yes."), Answer(text="No.")))`."""

    prompt: Prompt
    answers: tuple[Answer, ...]

    @classmethod
    def of(cls, prompt: Prompt, answers: Sequence[Answer], *, unfinished: bool = False) -> "tuple[Answered, Dropped]":
        """Without what cannot be used: empty answers, repetitions, unless they are wanted unfinished ones, and such with a NUL
        character, which no data file may hold; counted."""
        kept: dict[str, Answer] = {}
        dropped = Dropped()
        for answer in answers:
            if not answer.text.strip():
                dropped = replace(dropped, empty=dropped.empty + 1)
            elif "\0" in answer.text:
                dropped = replace(dropped, unreadable=dropped.unreadable + 1)
            elif not answer.finished and not unfinished:
                dropped = replace(dropped, unfinished=dropped.unfinished + 1)
            elif answer.text in kept:
                dropped = replace(dropped, repeated=dropped.repeated + 1)
            else:
                kept[answer.text] = answer
        return cls(prompt=prompt, answers=tuple(kept.values())), dropped


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """Answers that were not compared, by reason."""

    empty: int = 0
    unreadable: int = 0
    unfinished: int = 0
    repeated: int = 0

    def __add__(self, other: "Dropped") -> "Dropped":
        return Dropped(**{name: getattr(self, name) + getattr(other, name) for name in Dropped.__dataclass_fields__})


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing:
    """Two answers, by their places, and what was said of them: `judgement` is of `first` against `second`."""

    first: int
    second: int
    judgement: Judgement

    def comparison(self, answered: Answered) -> Comparison:
        """What was judged."""
        first, second = answered.answers[self.first], answered.answers[self.second]
        return Comparison(prompt=answered.prompt, first=first.text, second=second.text, finished=(first.finished, second.finished))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ordered:
    """Answers with their scores, higher is better. Example: `order_by_judge([answered], judge)[0].ranked()`."""

    answered: Answered
    scores: tuple[float, ...]
    """One an answer; NaN for one that could not be scored."""
    by: str
    """Who ordered, for people."""
    identity: str
    """A hash of what decided the order."""
    pairings: tuple[Pairing, ...] = ()
    """Each pair once, where a judge compared them; empty where a reward scored each answer by itself."""
    problems: tuple[str, ...] = ()
    """What went wrong, each thing once; how often: `missing`."""

    @property
    def missing(self) -> int:
        """Judgements of pairs, or scores of answers that were scored by themselves, that are not there because something failed."""
        if self.pairings:
            return sum(len(one.judgement.problems) for one in self.pairings)
        return sum(not math.isfinite(score) for score in self.scores) if self.problems else 0

    def ranked(self) -> list[int]:
        """Places of the answers that have a score, best first; of equal ones the earlier first."""
        places = [place for place, score in enumerate(self.scores) if math.isfinite(score)]
        return sorted(places, key=lambda place: -self.scores[place])

    def pairing(self, first: int, second: int) -> Pairing | None:
        """What a judge said of two answers, the way round that was asked for."""
        for one in self.pairings:
            if (one.first, one.second) == (first, second):
                return one
            if (one.second, one.first) == (first, second):
                return Pairing(first=first, second=second, judgement=one.judgement.swapped())
        return None


def order_by_reward(
    items: Sequence[Answered],
    reward: RewardFunction,
    *,
    chat: ChatTokenizer | None = None,
    by: str = "the reward",
    identity: str = "",
) -> list[Ordered]:
    """Scores are rewards. `chat` is the tokenizer of a learned reward model; rules of text need none."""
    groups = [
        rollouts_of(item.prompt, [one.text for one in item.answers], [one.finished for one in item.answers], chat)
        if item.answers
        else ()
        for item in items
    ]
    rewards = iter(reward([rollout for group in groups for rollout in group]))
    found = []
    for item, group in zip(items, groups, strict=True):
        said = [next(rewards) for _ in group]
        problems = tuple(dict.fromkeys(one.problem for one in said if one.problem))
        scores = tuple(math.nan if one.problem else one.value for one in said)
        found.append(Ordered(answered=item, scores=scores, by=by, identity=identity, problems=problems))
    return found


def order_by_judge(items: Sequence[Answered], judge: Judge) -> list[Ordered]:
    """Each answer against each other of its prompt, in one call of the judge. A failed pair leaves the others their say."""
    pairs = [(number, *pair) for number, item in enumerate(items) for pair in combinations(range(len(item.answers)), 2)]
    asked = [Pairing(first=i, second=j, judgement=_NOT_YET).comparison(items[number]) for number, i, j in pairs]
    judgements = judge(asked) if asked else []
    of: dict[int, list[Pairing]] = {}
    for (number, i, j), judgement in zip(pairs, judgements, strict=True):
        of.setdefault(number, []).append(Pairing(first=i, second=j, judgement=judgement))
    return [_ordered(item, of.get(number, []), judge) for number, item in enumerate(items)]


_NOT_YET = Judgement(orders=(math.nan, math.nan), problem="not asked yet")


def _ordered(item: Answered, pairings: Sequence[Pairing], judge: Judge) -> Ordered:
    return Ordered(
        answered=item,
        scores=mean_wins(pairings, len(item.answers)),
        by=judge.name,
        identity=judge.identity,
        pairings=tuple(pairings),
        problems=tuple(dict.fromkeys(problem for one in pairings for problem in one.judgement.problems)),
    )


def mean_wins(pairings: Sequence[Pairing], answers: int) -> tuple[float, ...]:
    """For each answer its mean probability over the pairs that it is in and that have a judgement; NaN where there is none."""
    won: list[list[float]] = [[] for _ in range(answers)]
    for one in pairings:
        if not one.judgement.problem:
            won[one.first].append(one.judgement.probability)
            won[one.second].append(1 - one.judgement.probability)
    return tuple(math.fsum(chances) / len(chances) if chances else math.nan for chances in won)


def prompt_hash(messages: Messages) -> str:
    """A hash of a conversation: the same in every file and run."""
    return digest([[turn.role, turn.content] for turn in messages])
