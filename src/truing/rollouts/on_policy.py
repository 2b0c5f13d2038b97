"""The source of policy optimisation: each round samples with the live policy, scores, rewards and credits; the learner replays it.

What is drawn depends on the seed and the round alone, so a round that was lost to a kill is drawn again, token for token.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from truing.advantages import moments
from truing.data.experience import Experience
from truing.data.source import TreeSource
from truing.data.tree import Credit, Tree
from truing.functional import kl_k3
from truing.models.heads import ActorCritic
from truing.objectives import Mean, averaged
from truing.parallel.world import World
from truing.randomness import counted_seed
from truing.records import Prompt, Reward, Rollout
from truing.rewards.base import RewardFunction
from truing.rewards.combine import Combination
from truing.rollouts.collect import Decode, Question, Sampler, collect
from truing.rollouts.credit import CreditRule, Given, Judged
from truing.rollouts.died import LESS_IN_PLACE, named
from truing.rollouts.kl_control import KLControl
from truing.rollouts.sampler import Decoding
from truing.rollouts.scoring import Reference, Scored, compare, score, tree_of


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """How a round goes."""

    samples: Annotated[int, Field(gt=0)] = 1
    """Answers to each prompt; credit by groups needs two or more."""
    missing_end_penalty: Annotated[float, Field(ge=0)] = 1.0
    """Taken from the reward of an answer that was cut before its end token. Customary: 1 (Huang et al. 2024, the EOS trick)."""
    kl_in: Literal["reward", "loss"] = "reward"
    """Whether the KL is a price in the reward (k1 for each token) or a term of the loss."""
    critic_warmup: Annotated[int, Field(ge=0)] = 0
    """First rounds in which the critic alone learns."""
    on_bad_reward: Literal["drop", "stop"] = "drop"
    """Whether an answer whose reward raised, hung or is not a number is counted and left out, or ends the run. A round without any
    reward is then counted, named and not learnt from; the third in a row ends the run, since the reward must be broken."""
    sampler_tolerance: Annotated[float, Field(gt=0)] | None = None
    """Mean difference of log-probabilities that sampler and scorer may have; null is 0.001 in fp32 and 0.2 in bf16."""


MAX_UNREWARDED_IN_A_ROW = 3
FEWEST, BELOW = 8, 4.0
"""Answers, and standard errors below 0, from which on a mean k1 cannot be chance: a KL is not negative."""


class BadRewardError(ValueError):
    """A reward could not be had, and the run is to stop there, or those of several rounds in a row could not."""


@dataclass(kw_only=True, eq=False)
class OnPolicy:
    """Yields one `Experience` after another. Its state: how far in the prompts, the KL's coefficient, what rewards came to, rounds
    without any."""

    prompts: TreeSource
    """Trunks, whose keys are places in `records`."""
    records: Sequence[Prompt]
    model: ActorCritic
    reference: Reference
    reward: RewardFunction
    combination: Combination
    """From parts to the number that an answer is judged by."""
    credit: CreditRule
    control: KLControl
    rounds: Rounds
    decoding: Decoding
    stop_ids: frozenset[int]
    decode: Decode
    world: World
    record: Callable[[Mapping[str, object]], None]
    """Takes a line of samples.jsonl."""
    warn: Callable[[str], None]
    """Tells the user."""
    sampler: Sampler
    """Draws the answers: the policy itself, or a program that is brought to its weights before each round."""
    unrewarded: int = field(init=False)
    """Rounds of which no answer had a reward."""
    unrewarded_in_a_row: int = field(init=False)

    def __post_init__(self) -> None:
        self.unrewarded = self.unrewarded_in_a_row = 0

    def __iter__(self) -> Iterator[Experience]:
        while True:
            yield self.next()

    def next(self) -> Experience:
        """One round."""
        number = self.prompts.steps_taken
        trees = self.prompts.step_trees(number)
        self.prompts.steps_taken += 1
        mine = [
            Question(number=place, prompt=self.records[tree.key], trunk=tree.trunk)
            for place, tree in enumerate(trees)
            if place % self.world.size == self.world.rank
        ]
        self.sampler.bring(number)
        with named(who="the local sampler", when=f"round {number + 1}", less=LESS_IN_PLACE):  # the others name themselves
            groups = collect(
                self.sampler,
                mine,
                self.decoding,
                samples=self.rounds.samples,
                stop_ids=self.stop_ids,
                decode=self.decode,
                seed=counted_seed(self.prompts.seed, "rollout", number),
                version=number,
            )
        self.model.begin_round()
        scored = score(
            self.model,
            self.reference,
            groups,
            temperature=self.decoding.temperature,
            budget=self.prompts.micro_tokens,
        )
        flat = [one for group in scored for one in group]
        gap = compare(flat, self.world, dtype=self.model.policy.dtype, tolerance=self.rounds.sampler_tolerance)
        rewards = list(self.reward([one.rollout for one in flat]))
        self._refuse(flat, rewards)
        numbers = [question.number for question in mine]
        combined = self.combination(rewards, [len(one.rollout.completion.tokens) for one in flat], self.world.gather)
        scores = [value - self._penalty(one) for value, one in zip(combined.scores, flat, strict=True)]
        self._write(number, numbers, flat, rewards, scores)
        experience = self._credited(number, len(trees), numbers, scored, rewards, scores, gap)
        return replace(experience, metrics={**experience.metrics, **combined.metrics})

    def _credited(
        self,
        number: int,
        prompts: int,
        numbers: Sequence[int],
        scored: Sequence[Sequence[Scored]],
        rewards: Sequence[Reward],
        scores: Sequence[float],
        gap: Mean,
    ) -> Experience:
        weight = self.control.coefficient
        in_reward = weight if self.rounds.kl_in == "reward" else 0.0
        judged = _judged(scored, scores)
        given = self.credit([group for group in judged if group], in_reward, self.world.sum)
        places = [place for place, group in zip(numbers, judged, strict=True) if group]
        kept = [group for group in judged if group]
        trees = tuple(_tree(group, of_group, place) for group, of_group, place in zip(kept, given, places, strict=True))
        parts = [
            *(answer_metrics(group) for group in scored),
            reward_metrics(rewards),
            *(group_metrics(group) for group in judged),
            {"sampler_gap": gap} if self.world.rank == 0 else {},
        ]
        metrics = averaged(self.world.gather(parts))
        self._count(number, rewards, rewarded="reward" in metrics)
        self._doubt(number, [one.kl for group in scored for one in group])
        metrics["unrewarded"] = float(self.unrewarded)
        if self.credit.needs_critic and "reward" in metrics:
            metrics |= _explained(kept, given, self.world)
        metrics["kl_coefficient"] = weight
        metrics["prompts"] = float(prompts)
        self.control.observe(kl=metrics["kl"], episodes=prompts * self.rounds.samples)
        return Experience(
            round=number,
            trees=trees,
            answers=tuple(tree_of([one.rollout for one in group], place) for place, group in zip(numbers, scored, strict=True)),
            prompts=prompts,
            kl_weight=weight if self.rounds.kl_in == "loss" else 0.0,
            critic_only=number < self.rounds.critic_warmup,
            metrics=metrics,
        )

    def _penalty(self, one: Scored) -> float:
        """What an answer pays for having been cut."""
        return self.rounds.missing_end_penalty if one.rollout.completion.stop == "length" else 0.0

    def _refuse(self, flat: Sequence[Scored], rewards: Sequence[Reward]) -> None:
        """Raises BadRewardError, on every rank, for the first reward with a problem, where the run is to stop there."""
        if self.rounds.on_bad_reward == "drop":
            return
        bad = self.world.gather(
            [
                f"{one.rollout.prompt.origin}: {reward.problem} (answer: {one.rollout.response[:80]!r})"
                for one, reward in zip(flat, rewards, strict=True)
                if reward.problem
            ]
        )
        if bad:
            raise BadRewardError(f"{bad[0]}; mend the reward, or set rounds.on_bad_reward=drop to leave such answers out")

    def _count(self, number: int, rewards: Sequence[Reward], *, rewarded: bool) -> None:
        """Counts and names a round without any reward. Raises BadRewardError, on every rank, for the third in a row."""
        if rewarded:
            self.unrewarded_in_a_row = 0
            return
        self.unrewarded += 1
        self.unrewarded_in_a_row += 1
        problems = "; ".join(sorted({reward.problem for reward in rewards})) or "see the other ranks"
        if self.unrewarded_in_a_row == MAX_UNREWARDED_IN_A_ROW:
            raise BadRewardError(
                f"round {number + 1}: no answer has a reward ({problems}), as in the {MAX_UNREWARDED_IN_A_ROW - 1} rounds before;"
                " mend the reward, and the same command goes on (with reward_changed=true where its file or model is another now)"
            )
        self.warn(f"round {number + 1}: no answer has a reward ({problems}); nothing is learnt from it")

    def _doubt(self, number: int, kls: Sequence[float]) -> None:
        """Warns of a mean k1 that is below 0 beyond chance."""
        mean, variance, count = moments(torch.tensor(kls), self.world.sum)
        error = math.sqrt(variance / max(1.0, count - 1))
        if count >= FEWEST and mean < -BELOW * error:
            self.warn(
                f"round {number + 1}: the KL from the reference is {mean:.3g} +- {error:.2g}, and none is below 0: the answers are"
                " not drawn from the policy that scores them; look at sampler_gap"
            )

    def _write(
        self, number: int, numbers: Sequence[int], flat: Sequence[Scored], rewards: Sequence[Reward], scores: Sequence[float]
    ) -> None:
        """Every rollout into samples.jsonl, in the order of the round on any number of ranks."""
        k = self.rounds.samples
        rows = [
            (numbers[i // k] * k + i % k, sample_row(number + 1, one.rollout, reward, score=score, kl=one.kl))
            for i, (one, reward, score) in enumerate(zip(flat, rewards, scores, strict=True))
        ]
        for _, row in sorted(self.world.gather(rows), key=lambda placed: placed[0]):
            self.record(row)

    def state_tensors(self) -> Mapping[str, Tensor]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {
            "prompts": self.prompts.state_dict(),
            "control": self.control.state_dict(),
            "combination": self.combination.state_dict(),
            "unrewarded": [self.unrewarded, self.unrewarded_in_a_row],
        }

    def load_state(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        self.prompts.load_state({}, state["prompts"])
        self.control.load_state(state["control"])
        self.combination.load_state(state["combination"])
        self.unrewarded, self.unrewarded_in_a_row = map(int, state["unrewarded"])


def _judged(scored: Sequence[Sequence[Scored]], scores: Sequence[float]) -> list[list[Judged]]:
    """The answers that have a reward, each with the number it is judged by."""
    values = iter(scores)
    pairs = [[(one, next(values)) for one in group] for group in scored]
    return [[Judged(scored=one, score=score) for one, score in group if not math.isnan(score)] for group in pairs]


def answer_metrics(group: Sequence[Scored]) -> dict[str, Mean]:
    """What can be said of answers without their rewards."""
    k3 = [float(kl_k3(one.old, one.reference).double().sum()) for one in group]
    return {
        "kl": _mean([one.kl for one in group]),
        "kl_k3": _mean(k3),
        "entropy": Mean(-sum(float(one.old.double().sum()) for one in group), float(sum(len(one.old) for one in group))),
        **rollout_metrics([one.rollout for one in group]),
    }


def rollout_metrics(rollouts: Sequence[Rollout]) -> dict[str, Mean]:
    """Ends, lengths and empty answers."""
    return {
        "ended": _mean([float(one.completion.stop == "end") for one in rollouts]),
        "length": _mean([float(len(one.completion.tokens)) for one in rollouts]),
        "empty": _mean([float(not one.response.strip()) for one in rollouts]),
    }


def reward_metrics(rewards: Sequence[Reward]) -> dict[str, Mean]:
    """The mean reward and its parts, of the answers that have them, and the share that has not."""
    good = [reward.value for reward in rewards if not reward.problem]
    found = {"bad_rewards": _mean([float(bool(reward.problem)) for reward in rewards])}
    if good:
        found["reward"] = _mean(good)
    for name in dict.fromkeys(name for reward in rewards for name in reward.parts):
        found[f"reward_{name}"] = _mean([reward.parts[name] for reward in rewards if name in reward.parts])
    for name in dict.fromkeys(name for reward in rewards for name in reward.notes):
        found[f"reward_{name}"] = _mean([reward.notes[name] for reward in rewards if name in reward.notes])
    return found


def group_metrics(group: Sequence[Judged]) -> dict[str, Mean]:
    """Whether all answers to a prompt have the same score: by their group alone they teach nothing."""
    if len(group) < 2:
        return {}
    return {"equal_groups": _mean([float(len({one.score for one in group}) == 1)])}


def _mean(values: Sequence[float]) -> Mean:
    return Mean(math.fsum(values), float(len(values)))


def _explained(groups: Sequence[Sequence[Judged]], given: Sequence[Sequence[Given]], world: World) -> dict[str, float]:
    """1 - Var(R - V) / Var(R) over the tokens of all ranks: 1 where the critic knows the returns, 0 where a constant would do."""
    values = [one.scored.values for group in groups for one in group if one.scored.values is not None]
    returns = [returned for of_group in given for _, returned in of_group if returned is not None]
    said, true = (torch.cat(rows) if rows else torch.zeros(0) for rows in (values, returns))
    (_, left, _), (mean, spread, _) = moments(true - said, world.sum), moments(true, world.sum)
    return {"explained_variance": 1 - left / spread if spread > 0 else 0.0, "returns": mean}


def _tree(group: Sequence[Judged], given: Sequence[Given], place: int) -> Tree:
    credit = tuple(
        Credit(
            old=tuple(one.scored.old.tolist()),
            reference=tuple(one.scored.reference.tolist()),
            advantages=tuple(advantages.tolist()),
            values=tuple(one.scored.values.tolist()) if one.scored.values is not None else (),
            returns=tuple(returns.tolist()) if returns is not None else (),
        )
        for one, (advantages, returns) in zip(group, given, strict=True)
    )
    return replace(tree_of([one.scored.rollout for one in group], place), credit=credit)


def sample_row(
    step: int, rollout: Rollout, reward: Reward, *, score: float | None = None, kl: float | None = None, held_out: bool = False
) -> dict[str, object]:
    """An answer as a line of samples.jsonl; one to a held-out prompt has no score and no KL, since nothing is learnt from it."""
    return {
        "step": step,
        "held_out": held_out,
        "prompt": [{"role": message.role, "content": message.content} for message in rollout.prompt.messages],
        "response": rollout.response,
        "reward": None if reward.problem else reward.value,
        "score": None if reward.problem else score,
        "parts": dict(reward.parts),
        "notes": dict(reward.notes),
        "problem": reward.problem,
        "kl": kl,
        "length": len(rollout.completion.tokens),
        "stop": rollout.completion.stop,
        "policy": rollout.version,
    }
